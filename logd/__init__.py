"""The log writer: one process that owns the data directory and answers every read and write."""
