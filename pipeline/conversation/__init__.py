"""Talking to a model: in the terminal, and on a page of this machine."""
