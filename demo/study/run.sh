#!/usr/bin/env bash
# The studies of docs/evidence.md and docs/reliability.md. Called by `make study`, which sets the environment. What is done is not
# done again; the reliability study stands as it is committed: delete its results (*.json) to have it anew.
# Usage: demo/study/run.sh [--quick | WORKERS [STUDY...]], of reliability, carry, noisy, scarce, scarce_carry (default: all)
set -euo pipefail
cd "$(dirname "$0")/../.."
python demo/study/make_data.py
if [ "${1:-}" = --quick ]; then
  python -m demo.study.teachers demo/study/reliability/quick_teachers.yaml
  python pipeline/study.py --study demo/study/reliability/quick.yaml
  exec python pipeline/study.py --study demo/study/quick.yaml
fi
workers=${1:-2}
shift || true
dense_teacher() {
  local teacher=runs/study/teacher
  [ ! -d $teacher/export ] || return 0
  python pipeline/align.py --recipe study_teacher
  python pipeline/distill.py --recipe study_teacher --run_dir $teacher
  rm -rf $teacher/.export
  cp -r $teacher/checkpoints/step-00000800/export $teacher/.export
  mv $teacher/.export $teacher/export
}
mkdir -p demo/study/results
reliability=demo/study/reliability
[ $# -gt 0 ] || set -- reliability carry noisy scarce scarce_carry
for study in "$@"; do
  if [ "$study" = reliability ]; then
    if [ ! -f $reliability/published.json ]; then
      python -m demo.study.teachers $reliability/published_teachers.yaml
      [ -f $reliability/published_mechanism.json ] || python -m demo.study.mechanism $reliability/published_teachers.yaml
      python pipeline/study.py --study $reliability/published.yaml --workers "$workers"
      cp runs/study/published/results.json $reliability/published.json
    fi
    if [ ! -f $reliability/results.json ]; then
      python -m demo.study.teachers
      [ -f $reliability/mechanism.json ] || python -m demo.study.mechanism
      python pipeline/study.py --study $reliability/study.yaml --workers "$workers"
      cp runs/study/reliability/results.json $reliability/
    fi
  else
    dense_teacher
    python pipeline/study.py --study "demo/study/$study.yaml" --workers "$workers"
    cp "runs/study/$study/results.json" "demo/study/results/$study.json"
  fi
done
python -m demo.study.regimes
python -m demo.study.evidence # `git diff docs demo/study` shows what differs from the committed studies
