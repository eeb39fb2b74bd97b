"""Published model families, a file each."""
