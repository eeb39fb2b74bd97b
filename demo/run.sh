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
train() { deepspeed --num_gpus "$ranks" --master_port "$port" pipeline/distill.py --deepspeed ds_configs/zero3.json "$@"; }

say "align: tie the tokens of both tokenizers by the bytes they spell"
python pipeline/align.py "$@"
say "undistilled: the student alone, on data of which 30% is wrong"
train --name demo-undistilled --data.aligned runs/aligned/demo --teachers '[]' "$@"
say "distilled: the same student, data, steps and seed beside the MoE teacher"
train "$@"
say "evaluate: exact match on held-out problems"
python pipeline/evaluate.py --model demo/teacher --label teacher "$@"
python pipeline/evaluate.py --name demo-undistilled "$@"
python pipeline/evaluate.py "$@"
say "report"
python pipeline/report.py --baseline runs/demo-undistilled "$@"
say "done"
