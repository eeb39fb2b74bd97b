#!/usr/bin/env bash
#SBATCH --job-name=study
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm/%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# A study as a job array, each task every n-th seed; what is done is not done again, so submit until all is. From the root:
#   sbatch slurm/study.sh --study demo/study/carry.yaml        then: python pipeline/study.py --study ... --table
# Facts of the site: slurm/site.sh.
set -euo pipefail
: "${SLURM_ARRAY_TASK_ID:?is not set: submit this script with sbatch}"
source slurm/site.sh
exec python pipeline/study.py --workers 1 --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
