"""shoal: a distributed runtime for Python."""
