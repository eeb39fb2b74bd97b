#!/usr/bin/env bash
# Submits a job with what slurm/site.sh says that it asks for, and prints its number. From the repository root:
#   bash slurm/submit.sh [options of sbatch] JOB [--recipe X] [any field of the recipe]      JOB: a script of slurm/ without .sh
set -euo pipefail
source slurm/site.sh
options=()
while [[ ${1:-} == -* ]]; do
  options+=("$1")
  shift
done
case ${1:?JOB is missing: distill_moe, align, distill, evaluate, report, watch or study} in
  distill_moe | distill | study) asks=$GPU_JOBS ;;
  evaluate | watch) asks=$ONE_GPU_JOBS ;;
  align | report) asks=$CPU_JOBS ;;
  *) echo "submit.sh: no job $1 (an option of sbatch is one word: --nodes=2)" >&2 && exit 2 ;;
esac
mkdir -p "$LOG_FOLDER"
name=%x-%j
[ "$1" != study ] || name=%x-%A_%a
# shellcheck disable=SC2086 # several options
exec sbatch --output="$LOG_FOLDER/$name.log" $asks "${options[@]}" "slurm/$1.sh" "${@:2}"
