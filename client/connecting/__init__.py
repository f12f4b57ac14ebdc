"""Connecting: finding the system, the routes to its partitions, one link to each, and how long to wait."""
