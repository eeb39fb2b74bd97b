#!/usr/bin/env bash
#SBATCH --job-name=distill
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
# Distils on all nodes. Environment: DS_CONFIG, RANKS_PER_NODE as in distill_moe.sh.
#   sbatch --nodes=2 slurm/distill.sh [--recipe X] [any field of the recipe]
set -euo pipefail
source slurm/common.sh
run_stages distill -- "$@"
