#!/usr/bin/env bash
# A real pretrained pair across tokenizers: see recipe.yaml. Called by `make real`, which sets the environment; what is done
# is not done again. Usage: demo/real/run.sh [options of every stage, such as --optim.steps 20]
set -euo pipefail
cd "$(dirname "$0")/../.."
started=$SECONDS
say() { printf '\n== %s (%d s so far)\n' "$*" $((SECONDS - started)); }
recipe=(--recipe demo/real/recipe.yaml "$@")

say "models and data"
python demo/real/fetch.py
python demo/code/harvest.py --folder data/real/code --longest 200
say "align: SmolLM2's tokens and Gemma's"
python pipeline/align.py "${recipe[@]}"
python pipeline/check_pair.py --student data/real/smollm2 --teacher data/real/gemma3 --input causal --data data/real/code/validation.jsonl
say "precompute: what Gemma says of every chunk"
python pipeline/precompute.py "${recipe[@]}"
say "train, one core per run: undistilled, and by TIDE-Cross"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + 1) / 2))}
train() { python pipeline/distill.py "${recipe[@]}" "$@"; } # ZeRO-3 on one rank
train --name real-undistilled --data.aligned runs/aligned/real --teachers '[]' &
other=$!
train
wait $other
unset OMP_NUM_THREADS
say "measure"
python -m demo.real.measure
say "done"
