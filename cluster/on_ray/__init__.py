"""On Ray: starting and ending it, the actor classes with every option, placement, and the Supervisor."""
