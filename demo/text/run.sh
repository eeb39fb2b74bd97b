#!/usr/bin/env bash
# The study on real text: data, two teachers and students, killed and started at will. In the project's environment:
# demo/text/run.sh [--quick | WORKERS]
set -euo pipefail
cd "$(dirname "$0")/../.."
steps=(700 1000 400) quick=() suffix=
if [ "${1:-}" = --quick ]; then
  steps=(2 2 2) quick=(--optim.steps 2 --optim.global_batch 8 --data.validation.rows 8 --evaluation.limit 4) suffix=-quick
fi
base=runs/study/text-base$suffix teachers=runs/study/text-teachers$suffix
[ -f data/text/teacher_moe/config.json ] || python -m demo.text.make_data
pretrain() { [ -d $base/$1 ] || python -m demo.text.pretrain "$1" "$2" $base; }
pretrain student ${steps[0]}
for teacher in moe dense; do
  run=runs/study/text-training$suffix/$teacher
  [ ! -d $teachers/$teacher ] || continue
  pretrain teacher_$teacher ${steps[1]}
  words=(--recipe demo/text/teacher_$teacher.yaml --student.path $base/teacher_$teacher --run_dir $run)
  words+=(--data.aligned runs/aligned/text-teacher-$teacher$suffix "${quick[@]}")
  python pipeline/align.py "${words[@]}"
  python pipeline/distill.py --deepspeed ds_configs/zero0.json "${words[@]}"
  python pipeline/evaluate.py "${words[@]}"
  mkdir -p $teachers
  rm -rf $teachers/.$teacher
  cp -r "$run/checkpoints/step-$(printf %08d ${steps[2]})/export" $teachers/.$teacher
  mv $teachers/.$teacher $teachers/$teacher
done
if [ -n "$suffix" ]; then
  exec python pipeline/study.py --study demo/text/quick.yaml
fi
python pipeline/study.py --study demo/text/study.yaml --workers "${1:-2}"
mkdir -p demo/text/results
python -m demo.text.measure
cp runs/study/text/results.json demo/text/results/
python -m demo.study.regimes
