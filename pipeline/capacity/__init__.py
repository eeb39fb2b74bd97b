"""What a run needs, from the models' configs alone: memory, traffic, arithmetic, time. See pipeline/plan.py."""
