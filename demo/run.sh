#!/usr/bin/env bash
# The demo: everything between a fresh checkout and runs/demo/report.html. Called by `make demo`, which sets the environment.
# Usage: demo/run.sh [RANKS] [options of every stage, such as --optim.steps 20]
set -euo pipefail
cd "$(dirname "$0")/.."
ranks=${1:-2}
shift || true
started=$SECONDS
say() { printf '\n== %s (%d s so far)\n' "$*" $((SECONDS - started)); }
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# DeepSpeed's launchers keep to errors; told the device, they need not warn that they found no other
python -c 'import sys, torch; sys.exit(torch.accelerator.is_available())' && export DS_ACCELERATOR=cpu
train() { deepspeed --log_level error --num_gpus "$ranks" --master_port "$port" pipeline/distill.py --deepspeed ds_configs/zero3.json "$@"; }
wait_for() { for job in "$@"; do wait "$job"; done; }

say "align: tie the tokens of both tokenizers by the bytes they spell"
python pipeline/align.py "$@"
say "undistilled: the student goes on alone, with data of which 30% lack the carry"
train --name demo-undistilled --data.aligned runs/aligned/demo --teachers '[]' "$@"
say "CALM: the same start, data, steps and seed beside the MoE teacher"
train --name demo-calm --data.aligned runs/aligned/demo --objective.strategy calm "$@"
say "TIDE-Shared: CALM-TIDAL towards the teacher that CompDemo shows two views"
train "$@"
say "evaluate: exact match on held-out problems, and what fewer forwards cost"
threads=${OMP_NUM_THREADS:-$((($(nproc) + 1) / 2))} # two at a time
score() { OMP_NUM_THREADS=$threads python pipeline/evaluate.py "$@" & jobs+=($!); }
jobs=()
score --run_dir runs/demo-start --model demo/student --label start "$@"
score --name demo-undistilled "$@"
wait_for "${jobs[@]}"
jobs=()
score --name demo-calm "$@"
score "$@"
wait_for "${jobs[@]}"
jobs=()
sweep=(--sweep threshold=0.7,0.8,0.9,0.95 --evaluation.limit 100)
score --name demo-undistilled "${sweep[@]}" "$@"
score "${sweep[@]}" "$@"
wait_for "${jobs[@]}"
say "report"
python pipeline/report.py --baseline start=runs/demo-start/evaluation/start undistilled=runs/demo-undistilled calm=runs/demo-calm "$@"
say "done"
