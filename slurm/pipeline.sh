#!/usr/bin/env bash
# Each stage as a job of its own that waits for the one before: only distill holds all nodes. From the repository root:
#   NODES=2 bash slurm/pipeline.sh [--recipe X] [any field of the recipe]
set -euo pipefail

after=()
submit() { # STAGE, an option of sbatch, the recipe
  local job
  job=$(bash slurm/submit.sh --parsable "$2" "${after[@]}" "$1" "${@:3}")
  job=${job%;*} # of several clusters, sbatch adds the name
  echo "$job $1"
  after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
}

submit align --nodes=1 "$@"
submit distill "--nodes=${NODES:-1}" "$@"
submit evaluate --nodes=1 "$@"
submit report --nodes=1 "$@"
