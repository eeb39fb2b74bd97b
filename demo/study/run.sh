#!/usr/bin/env bash
# The study of docs/evidence.md. Called by `make study`, which sets the environment. What is done is not done again.
# Usage: demo/study/run.sh [--quick | WORKERS]
set -euo pipefail
cd "$(dirname "$0")/../.."
python demo/study/make_data.py
if [ "${1:-}" = --quick ]; then
  exec python pipeline/study.py --study demo/study/quick.yaml
fi
teacher=runs/study/teacher
if [ ! -d $teacher/export ]; then
  python pipeline/align.py --recipe study_teacher
  python pipeline/distill.py --recipe study_teacher --run_dir $teacher
  rm -rf $teacher/.export
  cp -r $teacher/checkpoints/step-00000800/export $teacher/.export
  mv $teacher/.export $teacher/export
fi
mkdir -p demo/study/results
for study in carry noisy scarce scarce_carry; do
  python pipeline/study.py --study demo/study/$study.yaml --workers "${1:-2}"
  cp runs/study/$study/results.json demo/study/results/$study.json
done
python -m demo.study.evidence # `git diff docs demo/study/results` shows what differs from the committed study
