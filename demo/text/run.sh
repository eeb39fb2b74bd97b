#!/usr/bin/env bash
# The study on real text: data, two teachers and students, killed and started at will. In the project's environment:
# demo/text/run.sh [--quick | WORKERS]
set -euo pipefail
cd "$(dirname "$0")/../.."
quick=() suffix=
if [ "${1:-}" = --quick ]; then
  quick=(--optim.steps 2 --optim.global_batch 8 --data.validation.rows 8) suffix=-quick
fi
base=runs/study/text-base$suffix teachers=runs/study/text-teachers$suffix
[ -f data/text/student/config.json ] || python -m demo.text.make_data
pretrain() { [ -d "$base/$1" ] || python -m demo.text.pretrain "$1" $((${#quick[@]} ? 2 : $2)) "$base"; }
pretrain student 700
for teacher in moe dense; do
  run=runs/study/text-training$suffix/$teacher
  [ ! -d $teachers/$teacher ] || continue
  pretrain teacher_$teacher 1000
  words=(--recipe demo/text/teacher_$teacher.yaml --student.path "$base/teacher_$teacher" --run_dir "$run" "${quick[@]}")
  python pipeline/align.py "${words[@]}"
  python pipeline/distill.py --deepspeed ds_configs/zero0.json "${words[@]}"
  python pipeline/evaluate.py "${words[@]}" ${suffix:+--evaluation.limit 4}
  mkdir -p $teachers
  rm -rf $teachers/.$teacher
  cp -r "$run"/checkpoints/step-*/export $teachers/.$teacher
  mv $teachers/.$teacher $teachers/$teacher
done
if [ -n "$suffix" ]; then
  exec python pipeline/study.py --study demo/text/quick.yaml
fi
python pipeline/study.py --study demo/text/study.yaml --workers "${1:-2}"
mkdir -p demo/text/results
cp runs/study/text/results.json demo/text/results/
python -m demo.text.measure
python -m demo.study.regimes
