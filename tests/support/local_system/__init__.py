"""A system as a user starts it, and everything that happens to it: load, kills, bad networks. For tests with real processes."""
