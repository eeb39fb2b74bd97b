#!/usr/bin/env bash
# Each stage as a job of its own that waits for the one before: only distill holds all nodes. From the repository root:
#   NODES=2 bash slurm/pipeline.sh [--recipe X] [any field of the recipe]
set -euo pipefail
source slurm/site.sh

after=()
submit() { # STAGE, options of sbatch in one word, the recipe
  local job
  # shellcheck disable=SC2086 # several options
  job=$(sbatch --parsable $2 "${after[@]}" "slurm/$1.sh" "${@:3}")
  job=${job%;*} # of several clusters, sbatch adds the name
  echo "$job $1"
  after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
}

submit align "$ALIGN_OPTIONS" "$@"
submit distill "--nodes=${NODES:-1}" "$@"
submit evaluate "$EVALUATE_OPTIONS" "$@"
submit report "$ALIGN_OPTIONS" "$@"
