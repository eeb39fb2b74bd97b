"""Generated programs: taken out of answers, run in a sandbox, scored."""
