"""From a descriptor to verified files."""
