"""What every room stands on: errors, files, the run directory, random keys, the log. Imports nothing of the project."""
