#!/usr/bin/env bash
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Scores the newest checkpoint.
#   sbatch slurm/evaluate.sh [--recipe X] [any field of the recipe]
set -euo pipefail
source slurm/common.sh
run_stages evaluate -- "$@"
