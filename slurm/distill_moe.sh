#!/usr/bin/env bash
#SBATCH --job-name=distill_moe
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
# The whole job: align if needed, distill on all nodes, evaluate, report. From the repository root:
#   sbatch --nodes=2 slurm/distill_moe.sh [--recipe X] [any field of the recipe, as --data.seed 1]
# Facts of the cluster: slurm/site.sh. Environment: DS_CONFIG, the engine's settings (default: ds_configs/zero3_bf16.json
# on GPUs, zero3.json without); RANKS_PER_NODE, for jobs without GPUs (2). Evaluation has one shard per rank.
set -euo pipefail
source slurm/common.sh
run_stages align distill evaluate report -- "$@"
