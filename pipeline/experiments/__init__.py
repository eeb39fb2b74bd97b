"""Studies: a grid of recipes over seeds, run to results that can be compared."""
