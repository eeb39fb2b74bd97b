#!/usr/bin/env bash
#SBATCH --job-name=study
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm/%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# A study as a job array, each task every n-th seed (`--shard`). A task that is warned saves, goes back into the queue and
# goes on; what is done is not done again. From the root:
#   sbatch slurm/study.sh --study demo/study/carry.yaml        then: python pipeline/study.py --study ... --table
# Facts of the site: slurm/site.sh.
set -euo pipefail
source slurm/common.sh
trap 'warn USR1' USR1
trap 'warn TERM' TERM
# shellcheck disable=SC2086 # several words
supervise USR1 $HERE python pipeline/study.py --workers 1 "$@" && code=0 || code=$?
[ -z "$warned" ] || [ "$code" = 0 ] || code=75 # also if it could not hear yet
[ "$code" != 75 ] || requeue
exit "$code"
