#!/usr/bin/env bash
# A newcomer's first hour in three minutes: own chats in three formats, an own model, every stage, a branch of the run, in a folder
# whose path has spaces and letters beyond ASCII. Prints each command and ends at the first that fails.
# Usage, with the environment of `make install` (or any with requirements.txt) on PATH: tests/newcomer.sh FOLDER
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
home="$1/erste Schritte für TIDE"
mkdir -p "$home"
git -C "$root" ls-files -z --cached --others --exclude-standard | tar -C "$root" --null -T - --ignore-failed-read -c | tar -C "$home" -x
cd "$home"
run() {
  printf '\n$'
  printf ' %s' "${@@Q}"
  printf '   (%d s so far)\n' "$SECONDS"
  "$@"
}

mkdir "my data"
python - << 'END'
import gzip, json
from pathlib import Path

rows = [json.loads(line) for line in Path("demo/data/student_train.jsonl").read_text().splitlines()[:300]]
chats = [[message["content"] for message in row["messages"]] for row in rows]
mine = Path("my data")
sharegpt = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in chats[:100]]
(mine / "sharegpt.json").write_text(json.dumps(sharegpt))
alpaca = [{"instruction": q, "input": "", "output": a} for q, a in chats[100:200]]
(mine / "alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca))
with gzip.open(mine / "prompts.jsonl.gz", "wt") as file:
    file.writelines(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in chats[200:280])
(mine / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[280:]))
Path("problems.jsonl").write_text(
    "".join(json.dumps({"question": q, "answer": row["answer"]}) + "\n" for row, (q, _) in zip(rows[280:], chats[280:]))
)
Path("my_task.yaml").write_text(Path("docs/evaluation.md").read_text().split("```yaml\n")[1].split("```")[0])

from tests.test_convert import write_source

write_source(Path("my data/my qwen3"), "qwen3", initializer_range=0.02)  # random weights, no mask token
END
cat > my.yaml << 'END'
name: häppchen
data:
  sources:
    - {path: my data/sharegpt.json, name: sharegpt}
    - {path: my data/alpaca.jsonl, name: alpaca}
    - {path: my data/prompts.jsonl.gz, name: prompts}
  validation: {path: my data/held_out.jsonl, rows: 20}
  student_length: 128
student: {path: students/my own, block_size: 8}
teachers: [{name: llada2, path: demo/teacher_full, tokenizer: demo/teacher, length: 128, input: full}]
objective: {strategy: tide_cross}
optim: {lr: 1.0e-3, steps: 6, global_batch: 16, micro_tokens: 16384}
checkpoint: {every_steps: 4}
evaluation: {tasks: [my_task.yaml], preset: demo}
logging: {every_steps: 2}
END

run python pipeline/convert.py --source "my data/my qwen3" --output "students/my own"
run python pipeline/check_pair.py --student "students/my own" --teacher demo/teacher --data "my data/sharegpt.json"
run python pipeline/plan.py --recipe my.yaml --gpus-per-node 2 --rows 280 --mean-tokens 50
run python pipeline/prepare.py --recipe my.yaml
run python pipeline/align.py --recipe my.yaml
run deepspeed --num_gpus 2 --master_port "${MASTER_PORT:-29500}" pipeline/distill.py --deepspeed ds_configs/zero3.json --recipe my.yaml
run python pipeline/status.py
run python pipeline/status.py runs/häppchen
run python pipeline/evaluate.py --model "students/my own" --label start --run_dir runs/start --recipe my.yaml
run python pipeline/evaluate.py runs/häppchen
run python pipeline/evaluate.py compare runs/start/evaluation/start runs/häppchen
run python pipeline/chat.py --model runs/häppchen --once "How many apples are 5 plus 6?" --max-new-tokens 16
run python pipeline/report.py runs/häppchen --baseline start=runs/start/evaluation/start
run python pipeline/export.py --checkpoint runs/häppchen --format transformers --output "students/as they are served"
run python pipeline/distill.py --recipe my.yaml --name "häppchen mehr" --data.aligned runs/aligned/häppchen \
  --student.path runs/häppchen/checkpoints/step-00000006/export --student.tokenizer "students/my own" --data.seed 1 --optim.steps 2 --optim.lr 1e-4
run ls "students/as they are served/model.safetensors" runs/häppchen/report.html "runs/häppchen mehr/checkpoints/step-00000002/COMPLETE"
[ "$(ls -A "$1")" = "erste Schritte für TIDE" ] # nothing is left beside the folder
echo "done in $SECONDS s"
