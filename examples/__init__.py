"""Programs that show how to use shoal; run them from the root of the repository."""
