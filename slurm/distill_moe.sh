#!/usr/bin/env bash
#SBATCH --job-name=distill_moe
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
# The whole job: align if needed, distill on all nodes, evaluate, report. From the repository root:
#   sbatch --nodes=2 slurm/distill_moe.sh [STAGE ...] [--recipe X] [any field of the recipe, as --data.seed 1]
# STAGE: the stages to run, of align, distill, evaluate and report; default all. Facts of the cluster: slurm/site.sh.
# Environment: DS_CONFIG, the engine's settings (ds_configs/zero3.json); RANKS_PER_NODE, for jobs without GPUs (1).
set -euo pipefail
: "${SLURM_JOB_ID:?is not set: submit this script with sbatch}"
source slurm/site.sh

stages=()
while [[ ${1:-} =~ ^(align|distill|evaluate|report)$ ]]; do
  stages+=("$1")
  shift
done
[ ${#stages[@]} -gt 0 ] || stages=(align distill evaluate report)

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node differ
RANKS_PER_NODE=${SLURM_GPUS_ON_NODE:-${RANKS_PER_NODE:-1}}
export MASTER_ADDR MASTER_PORT RANKS_PER_NODE PYTHONUNBUFFERED=1
logs=slurm/$SLURM_JOB_NAME-$SLURM_JOB_ID

say() { printf '== %(%F %T)T %s\n' -1 "$*"; }

run_directory() {
  python - "$@" << 'END'
import sys
from pipeline.recipe import parse, parser
from pipeline.run_directory import exit_code
sys.exit(exit_code("distill_moe", lambda: print(parse(parser(""))[0].run_dir)))
END
}

# Changes whenever the stage writes its status file.
status_version() { stat --format '%i %y' "$run_dir/status/$1.json" 2> /dev/null || true; }

status_code() { python -c 'import json, sys; print(json.load(open(sys.argv[1]))["exit_code"])' "$run_dir/status/$1.json"; }

newest_checkpoint() { compgen -G "$run_dir/checkpoints/step-*/COMPLETE" | tail -n 1 || true; }

# One torchrun a node. Ranks that are told to stop save after the step they are in and exit with 75. The scheduler's warning
# (USR1) comes to this script alone, which passes it on to all processes of the step; torchrun would die of it. scancel and
# preemption (TERM) tell the step themselves: this script and torchrun stay until the ranks have saved.
distill() {
  local step code
  trap : TERM
  srun --export=ALL --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 \
    --open-mode=append --output="$logs-node%n.log" \
    bash -c 'trap "" USR1
      exec torchrun --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" --nproc_per_node "$RANKS_PER_NODE" \
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" --shutdown_timeout 600 pipeline/distill.py "$@"' \
    distill --deepspeed "${DS_CONFIG:-ds_configs/zero3.json}" "$@" &
  step=$!
  trap 'say "the scheduler warns: saving and stopping"; kill -USR1 "$step" || true' USR1
  while :; do # a trapped signal ends `wait` before the step has ended
    wait "$step" && code=0 || code=$?
    kill -0 "$step" 2> /dev/null || break
  done
  trap : USR1
  trap - TERM
  return "$code"
}

run_stage() {
  case $1 in
    align) python pipeline/align.py --processes "$SLURM_CPUS_ON_NODE" "${@:2}" ;;
    distill) distill "${@:2}" ;;
    *) python "pipeline/$1.py" "${@:2}" ;;
  esac
}

# Whether Slurm still wants this job: a cancelled one is COMPLETING by now, a preempted one RUNNING until it ends.
wanted() { [ "$(squeue --noheader --job "$SLURM_JOB_ID" --format %T)" = RUNNING ]; }

trap : USR1 # outside of distill, the warning has nothing to save and must not end this script
run_dir=$(run_directory "$@")
checkpoint=$(newest_checkpoint)
say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), nodes: $SLURM_NNODES ($SLURM_JOB_NODELIST)," \
  "ranks a node: $RANKS_PER_NODE, run directory: $run_dir"

for stage in "${stages[@]}"; do
  say "$stage"
  before=$(status_version "$stage")
  run_stage "$stage" "$@" && code=0 || code=$?
  # launchers change exit codes: the status file has the stage's own, if the stage came far enough to write one
  [ "$(status_version "$stage")" = "$before" ] || code=$(status_code "$stage")
  [ "$code" = 0 ] || break
done

if [ "$code" = 75 ] && wanted; then
  if [ "$(newest_checkpoint)" != "$checkpoint" ]; then
    say "back into the queue, to go on from $(newest_checkpoint)"
    scontrol requeue "$SLURM_JOB_ID" && sleep 600 # Slurm ends this script
  else
    say "no new checkpoint since the start: not put back into the queue"
  fi
fi
[ "$code" = 0 ] && say "done" || say "$stage ended with exit code $code: see $logs*.log and $run_dir/status/$stage.json"
exit "$code"
