#!/usr/bin/env bash
# One node of a distillation: started by srun, once on each node. Ranks hear USR1 and save; torchrun would die of it.
set -euo pipefail
trap '' USR1
# torchrun would give each rank one thread; an optimizer on the host (ds_configs/zero3_offload.json) needs its share of cores
threads=$(($(nproc) / RANKS_PER_NODE))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}
# shellcheck disable=SC2086 # several words
exec ${INSIDE:-} torchrun --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" --nproc_per_node "$RANKS_PER_NODE" \
  --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" --shutdown_timeout 600 --no-python bash slurm/rank.sh "$@"
