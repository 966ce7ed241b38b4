"""A week in minutes: the load, what is measured meanwhile, and the picture of it; see `__main__`."""
