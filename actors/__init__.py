"""The actors of the message path, as plain classes: they know the wire and the disk, and nothing of Ray."""
