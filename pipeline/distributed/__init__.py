"""Ranks: what launchers say, topology, collectives, signals, the watchdog."""
