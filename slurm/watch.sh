#!/usr/bin/env bash
#SBATCH --job-name=watch
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Scores every new checkpoint of a run while it trains, which never waits for that.
#   sbatch slurm/watch.sh [--recipe X] [any field of the recipe]
set -euo pipefail
source slurm/common.sh
run_stages watch -- "$@"
