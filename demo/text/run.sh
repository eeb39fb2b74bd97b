#!/usr/bin/env bash
# The study on real text: data, two teachers (hours on two cores; killed and started at will), students. In the project's environment:
# demo/text/run.sh [--quick | WORKERS]
set -euo pipefail
cd "$(dirname "$0")/../.."
quick=() suffix=
if [ "${1:-}" = --quick ]; then
  quick=(--optim.steps 2 --optim.global_batch 8 --data.validation.rows 8) suffix=-quick
fi
[ -f data/text/student/config.json ] || python -m demo.text.make_data
for teacher in moe dense; do
  folder=runs/study/text-teachers$suffix run=runs/study/text-training$suffix/$teacher
  [ ! -d $folder/$teacher ] || continue
  python pipeline/align.py --recipe demo/text/teacher_$teacher.yaml "${quick[@]}"
  python pipeline/distill.py --deepspeed ds_configs/zero0.json --recipe demo/text/teacher_$teacher.yaml --run_dir $run "${quick[@]}"
  python pipeline/evaluate.py --recipe demo/text/teacher_$teacher.yaml --run_dir $run ${suffix:+--evaluation.limit 4}
  mkdir -p $folder
  rm -rf $folder/.$teacher
  cp -r $run/checkpoints/step-*/export $folder/.$teacher
  mv $folder/.$teacher $folder/$teacher
done
if [ -n "$suffix" ]; then
  exec python pipeline/study.py --study demo/text/quick.yaml
fi
python pipeline/study.py --study demo/text/study.yaml --workers "${1:-2}"
mkdir -p demo/text/results
cp runs/study/text/results.json demo/text/results/
python -m demo.text.measure
python -m demo.study.regimes
