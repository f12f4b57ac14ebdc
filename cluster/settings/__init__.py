"""Settings: what is asked for, what the data was created with, and the small files that say where things run."""
