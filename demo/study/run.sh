#!/usr/bin/env bash
# The studies of docs/evidence.md and docs/reliability.md. Called by `make study`, which sets the environment. What is done is not
# done again; complete seeds of the reliability study stand as they were committed.
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
[ $# -gt 0 ] || set -- reliability carry noisy scarce scarce_carry
for study in "$@"; do
  if [ "$study" = reliability ]; then
    python -m demo.study.teachers demo/study/reliability/published_teachers.yaml
    [ -f demo/study/reliability/published_mechanism.json ] || python -m demo.study.mechanism demo/study/reliability/published_teachers.yaml
    python pipeline/study.py --study demo/study/reliability/published.yaml --workers "$workers"
    cp runs/study/published/results.json demo/study/reliability/published.json
    python -m demo.study.teachers
    [ -f demo/study/reliability/mechanism.json ] || python -m demo.study.mechanism
    python pipeline/study.py --study demo/study/reliability/study.yaml --workers "$workers"
    cp runs/study/reliability/results.json demo/study/reliability/
  else
    dense_teacher
    python pipeline/study.py --study "demo/study/$study.yaml" --workers "$workers"
    cp "runs/study/$study/results.json" "demo/study/results/$study.json"
  fi
done
python -m demo.study.regimes
python -m demo.study.evidence # `git diff docs demo/study` shows what differs from the committed studies
