#!/usr/bin/env bash
# One rank of a distillation: started by torchrun. Its output goes to a log of its own.
set -euo pipefail
exec python pipeline/distill.py "$@" >> "$LOGS-rank$RANK.log" 2>&1
