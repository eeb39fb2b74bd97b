# shellcheck disable=SC2086 # CONTAINER is several words
# Sourced by the jobs: stages, warnings, exit codes, the way back into the queue. Facts of the cluster: site.sh.
: "${SLURM_JOB_ID:?is not set: submit this script with sbatch}"
source slurm/site.sh

TRIES=3    # starts in a row that may finish nothing before the job gives up
SHORT=2400 # seconds: under a time limit below this, Slurm's warning waits until a quarter of it is left

# A container is a command before python, or options of srun (pyxis). HERE runs a command beside this script; a step has the
# options STEP, and its tasks run theirs behind INSIDE.
case ${CONTAINER:-} in
  -*) HERE="srun --nodes=1 --ntasks=1 --overlap --cpu-bind=none --cpus-per-task=$SLURM_CPUS_ON_NODE $CONTAINER" STEP=$CONTAINER INSIDE='' ;;
  *) HERE=${CONTAINER:-} STEP='' INSIDE=${CONTAINER:-} ;;
esac

[ "${SLURM_GPUS_ON_NODE:-0}" != 0 ] || unset SLURM_GPUS_ON_NODE

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node differ
RANKS_PER_NODE=${SLURM_GPUS_ON_NODE:-${RANKS_PER_NODE:-2}}
DS_CONFIG=${DS_CONFIG:-ds_configs/zero3${SLURM_GPUS_ON_NODE:+_bf16}.json}
# one task of an array: its SLURM_JOB_ID may be the whole array's
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}
LOGS=$LOG_FOLDER/$SLURM_JOB_NAME-$SLURM_JOB_ID
export MASTER_ADDR MASTER_PORT RANKS_PER_NODE LOGS INSIDE PYTHONUNBUFFERED=1
mkdir -p "$LOG_FOLDER"

say() { printf '== %(%F %T)T %s\n' -1 "$*"; }

# The run directory and the folder of the aligned dataset, a line each.
folders() {
  $HERE python - "$@" << 'END'
import sys
from pipeline.config.cli import parse, parser
from pipeline.core.errors import exit_code
def show():
    recipe, _ = parse(parser(""))
    print(recipe.run_dir, recipe.data.aligned, sep="\n")
sys.exit(exit_code("slurm", show))
END
}

# Runs a command in the background, so that this script hears a warning at once and passes it on as the given signal.
warned='' child='' child_signal=''
warn() {
  local left=$((${SLURM_JOB_END_TIME:-0} - $(date +%s))) limit=$((${SLURM_JOB_END_TIME:-0} - ${SLURM_JOB_START_TIME:-0}))
  if [ "$1" = USR1 ] && [ "$limit" -lt "$SHORT" ] && [ "$left" -gt $((limit / 4)) ]; then
    say "warned $left s before the end: too early under a limit of $limit s"
    (sleep $((left - limit / 4)) && kill -s USR1 $$) > /dev/null 2>&1 &
    return 0 # a bare return would give the status of what the signal broke off
  fi
  warned=yes
  say "told to stop ($1)"
  [ -z "$child" ] || kill -s "$child_signal" "$child" 2> /dev/null || true
}
supervise() { # SIGNAL COMMAND ...
  local code
  child_signal=$1
  "${@:2}" &
  child=$!
  [ -z "$warned" ] || kill -s "$child_signal" "$child"
  while :; do # a trapped signal ends `wait` before the command has ended
    wait "$child" && code=0 || code=$?
    kill -0 "$child" 2> /dev/null || break
  done
  child=''
  return "$code"
}

run_stage() { # STAGE, the recipe
  case $1 in
    align) supervise TERM $HERE python pipeline/align.py --processes "$SLURM_CPUS_ON_NODE" "${@:2}" ;;
    # srun passes USR1 on to all processes of the step; scancel and preemption (TERM) reach them by themselves, too
    distill) supervise USR1 srun --export=ALL --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 --label $STEP \
      bash slurm/node.sh --deepspeed "$DS_CONFIG" "${@:2}" ;;
    evaluate) evaluate_in_shards "${@:2}" ;;
    watch) supervise TERM $HERE python pipeline/evaluate.py --watch "${@:2}" ;;
    *) supervise TERM $HERE python "pipeline/$1.py" "${@:2}" ;;
  esac
}

# One shard per rank answers, on its own GPU; then one process scores what they have answered.
evaluate_in_shards() {
  local shards=$((SLURM_NNODES * RANKS_PER_NODE))
  if [ "$shards" -gt 1 ]; then # a shard that fails ends no other: what those answer is kept
    supervise TERM srun --export=ALL --ntasks="$shards" --ntasks-per-node="$RANKS_PER_NODE" --overcommit --cpu-bind=none --label $STEP \
      bash slurm/shard.sh "$@" || return
  fi
  [ -z "$warned" ] || return 75
  supervise TERM $HERE python pipeline/evaluate.py "$@"
}

# A field of distill's status file.
status() { $HERE python -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$run_dir/status/distill.json" "$1"; }

# Changes whenever distill writes its status file; empty without one.
status_version() { stat --format '%i %y' "$run_dir/status/distill.json" 2> /dev/null || true; }

newest_checkpoint() { compgen -G "$run_dir/checkpoints/step-*/COMPLETE" | tail -n 1 || true; }

# Adds a line for what is finished by now (shards, checkpoints, answers, scores). Equal lines: starts that finished nothing.
fruitless() {
  {
    compgen -G "$aligned/*.arrow" || true
    compgen -G "$run_dir/checkpoints/step-*/COMPLETE" || true
    find "$run_dir/evaluation" -type f -printf '%p %s\n' 2> /dev/null | sort || true
  } | cksum >> "$LOGS.starts"
  [ "$(uniq -c "$LOGS.starts" | awk 'END { print $1 }')" -gt "$TRIES" ]
}

# Whether Slurm still wants this job: a cancelled one is COMPLETING by now, a preempted one RUNNING until it ends.
wanted() { [ "$(squeue --noheader --job "$JOB" --format %T)" = RUNNING ]; }

requeue() { # WORDS: puts this job back into the queue, if Slurm still wants it; Slurm then ends this script
  wanted || return 0
  say "back into the queue$*"
  ! scontrol requeue "$JOB" || sleep 600
}

# The job: stages in turn, up to the first that does not end well. A warned job goes back into the queue.
run_stages() { # STAGE ... -- the recipe
  local stages=() stage code before after
  while [ "$1" != -- ]; do
    stages+=("$1")
    shift
  done
  shift
  trap 'warn USR1' USR1
  trap 'warn TERM' TERM
  { read -r run_dir && read -r aligned; } < <(folders "$@") || exit 2
  say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), nodes: $SLURM_NNODES ($SLURM_JOB_NODELIST)," \
    "ranks per node: $RANKS_PER_NODE, engine: $DS_CONFIG, run directory: $run_dir"
  if fruitless; then
    say "the last $TRIES starts finished no shard, checkpoint or score: given up (see $LOGS*.log)"
    exit 1
  fi
  for stage in "${stages[@]}"; do
    say "$stage"
    before=$(status_version)
    run_stage "$stage" "$@" && code=0 || code=$?
    after=$(status_version)
    if [ "$stage" = distill ] && [ -n "$after" ] && [ "$after" != "$before" ]; then
      code=$(status exit_code) # launchers change exit codes: the status file has the stage's own
      [ "$code" = 0 ] || say "$(status message)"
    elif [ -n "$warned" ] && [ "$code" != 0 ]; then
      code=75 # ended by the warning: what it had finished is kept
    fi
    [ -z "$warned" ] || [ "$code" != 0 ] || [ "$stage" = "${stages[-1]}" ] || code=75 # no time for the next one
    [ "$code" = 0 ] || break
  done
  [ "$code" != 75 ] || requeue "; newest checkpoint: $(newest_checkpoint)"
  [ "$code" = 0 ] && say "done" || say "$stage ended with exit code $code: see $LOGS*.log and $run_dir/status/$stage.json"
  exit "$code"
}
