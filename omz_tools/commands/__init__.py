"""One file for each console script: arguments and exit status, nothing else."""
