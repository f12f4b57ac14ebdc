"""Histories as Parquet files, for programs that do not know trilogue: `trilogue export`, `trilogue verify --export`."""
