"""Recipes: their fields, their checks, the command line, and the shipped ones."""
