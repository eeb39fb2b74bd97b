"""Makes a block-diffusion student of an autoregressive model:
`python pipeline/convert.py --source Qwen/Qwen3-0.6B-Base --output students/qwen3-0.6b`, then `student.path` in a recipe.

Llama, Qwen2 and Qwen3 with a chat template: a folder or hub name with safetensors, or a GGUF file in it (`--gguf`).
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from pipeline.core.errors import exit_code
from pipeline.core.log import log
from pipeline.core.version import plain_parser


def main() -> None:
    """Parses the command line, converts, and says what was done."""
    p = plain_parser(__doc__)
    p.add_argument("--source", required=True, help="folder or hub name of the autoregressive model")
    p.add_argument("--gguf", default="", help="a GGUF file in it, read instead of safetensors (needs the package gguf)")
    p.add_argument("--output", required=True, type=Path, help="new folder of the student")
    options = p.parse_args()

    from pipeline.models.conversion import convert

    conversion = convert(options.source, options.output, gguf=options.gguf)
    made = "added" if conversion.mask_token_added else "was there"
    before, after = conversion.vocab_size
    log.info(f"{options.output}: mask token {conversion.mask_token} ({made}), {before} -> {after} embeddings")
    log.info(f"train it with `student: {{path: {options.output}}}` in a recipe")


command = partial(exit_code, "convert", main)  # tide-convert

if __name__ == "__main__":
    sys.exit(command())
