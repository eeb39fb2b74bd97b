#!/usr/bin/env bash
# Does certainty forcing save forwards? From the demo's student, on the demo's data, without a teacher: as it is, and with
# `objective.certainty`. What is done is not done again. Usage, in the environment of .venv: demo/few_steps/run.sh [LAST SEED]
set -euo pipefail
cd "$(dirname "$0")/../.."
python pipeline/align.py
for seed in $(seq 0 "${1:-7}"); do
  for weight in 0 2; do
    run=(--run_dir "runs/few-steps/$weight/$seed" --data.aligned runs/aligned/demo --data.seed "$seed" --teachers '[]'
      --objective.certainty.weight "$weight" --checkpoint.every_steps 0)
    python pipeline/distill.py "${run[@]}"
    python pipeline/evaluate.py "${run[@]}" --sweep threshold=0.3,0.5,0.7,0.8,0.9,0.95,1.1
  done
done
python -m demo.few_steps.table
