"""The report: a table for people, one object for programs, pictures."""
