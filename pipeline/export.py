"""Writes a trained model in a format that others read:
`python pipeline/export.py --checkpoint runs/NAME --format sdar --output students/NAME`.

`transformers`: plain transformers opens it, and it generates by itself. `sdar`: SGLang and LMDeploy serve it (students of
Qwen3's shape and tokenizer). `llada2`: SGLang serves it. docs/serving.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial
from typing import get_args

from pipeline.config.recipe import ExportFormat
from pipeline.core.errors import exit_code
from pipeline.core.log import log
from pipeline.core.version import plain_parser
from pipeline.evaluation.stage import model_folder


def main() -> None:
    """Parses the command line and exports."""
    p = plain_parser(__doc__)
    p.add_argument(
        "--checkpoint", required=True, help="run directory (its newest checkpoint), checkpoint, export or model"
    )
    p.add_argument("--format", required=True, choices=get_args(ExportFormat))
    p.add_argument("--output", required=True, type=Path, help="new folder")
    p.add_argument(
        "--push-to", default="", metavar="NAME", help="upload it to the hub as USER/NAME, once it is written"
    )
    p.add_argument("--public", action="store_true", help="of a new model on the hub (default: private)")
    p.add_argument("--licence", default="", help="of the model, as the hub names it (apache-2.0): goes into the card")
    options = p.parse_args()

    from pipeline.models.export_formats import export_again
    from pipeline.models.hub import push

    source = model_folder(options.checkpoint)
    export_again(source, options.format, options.output)
    if options.push_to:
        log.info(push(options.output, options.push_to, private=not options.public, licence=options.licence))
    log.info(f"{source} written as {options.format} to {options.output}; its README.md says how to use it")


command = partial(exit_code, "export", main)  # tide-export

if __name__ == "__main__":
    sys.exit(command())
