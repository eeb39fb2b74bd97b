#!/usr/bin/env bash
# Each stage as a job of its own that waits for the one before: only distill holds all nodes. From the repository root:
#   NODES=2 bash slurm/pipeline.sh [--recipe X] [any field of the recipe]
set -euo pipefail
source slurm/site.sh

after=()
submit() { # NODES, STAGES, the recipe
  local job
  job=$(sbatch --parsable --nodes="$1" --job-name="${2// /-}" "${after[@]}" slurm/distill_moe.sh $2 "${@:3}")
  job=${job%;*} # of several clusters, sbatch adds the name
  echo "$job $2"
  after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
}

submit 1 align "$@"
submit "${NODES:-1}" distill "$@"
submit 1 "evaluate report" "$@"
