#!/usr/bin/env bash
#SBATCH --job-name=align
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Tokenizes and ties both sides, on the CPUs of one node; finished shards are kept.
#   sbatch slurm/align.sh [--recipe X] [any field of the recipe]
set -euo pipefail
source slurm/common.sh
run_stages align -- "$@"
