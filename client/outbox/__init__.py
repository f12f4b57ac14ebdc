"""The outbox: what was handed over and has no outcome yet, in memory or in an SQLite file."""
