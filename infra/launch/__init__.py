"""Training on nodes that are there: under Slurm, or on hosts by ssh."""
