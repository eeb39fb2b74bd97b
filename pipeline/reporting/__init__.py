"""The report of a run: what is read from run directories, figures, the page, the summary."""
