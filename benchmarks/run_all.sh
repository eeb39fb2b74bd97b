#!/usr/bin/env bash
# Every benchmark on this machine, one after the other (about 20 minutes on two cores that nobody else uses), then
# RESULTS.md. Usage: benchmarks/run_all.sh [FOLDER for the JSON files]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
python demo/code/fetch_tokenizers.py
[ -f data/code/train.jsonl ] || python demo/code/harvest.py
python benchmarks/align.py --turns 2 --out "$out"
python benchmarks/packing.py --out "$out"
python benchmarks/step.py --turns 2 --cases "Reverse CALM" "TIDAL + CompDemo" --out "$out"
python benchmarks/scaling.py --out "$out"
python benchmarks/sample.py --out "$out"
python benchmarks/deploy.py --out "$out"
python benchmarks/expert_parallel.py --out "$out"
python benchmarks/render.py "$out"
