#!/usr/bin/env bash
# What a GPU is asked: equality with the CPU, waits, the step at real sizes, decoding. One GPU of 80 GB, at most 12 minutes.
#   benchmarks/gpu.sh [--cpu] [--short] [--out FOLDER] [equality] [waits] [step] [decode]
# No part named means all. Each has a time limit of its own and writes FOLDER/PART.json as it goes (default benchmarks/results/gpu).
# --cpu is a dry run at toy sizes. `.whl/`, where there is one, holds wheels of packages that the machine lacks.
set -uo pipefail
cd "$(dirname "$0")/.."
out=benchmarks/results/gpu options=() parts=() cpu=
while (($#)); do
  case $1 in
    --cpu) cpu=1; options+=(--cpu) ;;
    --short) options+=(--short) ;;
    --out) out=$2; shift ;;
    equality|waits|step|decode) parts+=("$1") ;;
    *) sed -n 2,5p "$0"; exit 2 ;;
  esac
  shift
done
((${#parts[@]})) || parts=(equality waits step decode)
declare -A limit=([equality]=150 [waits]=90 [step]=240 [decode]=210)
python=$([[ -x .venv/bin/python ]] && echo .venv/bin/python || command -v python3)
if [[ -z $cpu ]] && compgen -G '.whl/*.whl' >/dev/null; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl || exit
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
if [[ -n $cpu ]]; then
  limit=([equality]=600 [waits]=600 [step]=600 [decode]=600)  # a busy machine may take its time
  export CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu
fi
export PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
status=0
for part in "${parts[@]}"; do
  echo "== $part (limit ${limit[$part]} s)"
  timeout "${limit[$part]}" "$python" -m "benchmarks.gpu.$part" --out "$out" "${options[@]}"
  code=$?
  ((code == 0)) || { echo "== $part ended with exit code $code"; status=1; }
done
exit $status
