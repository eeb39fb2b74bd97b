#!/usr/bin/env bash
# One shard of an evaluation: started by srun, once per GPU (without GPUs, per rank).
set -euo pipefail
if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
  IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-$(seq --separator=, 0 $((RANKS_PER_NODE - 1)))}"
  export CUDA_VISIBLE_DEVICES=${gpus[SLURM_LOCALID % ${#gpus[@]}]}
fi
# shellcheck disable=SC2086 # several words
exec ${INSIDE:-} python pipeline/evaluate.py --shard "$SLURM_PROCID/$SLURM_NTASKS" "$@"
