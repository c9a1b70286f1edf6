"""What was downloaded or made before, as it lies on disk."""
