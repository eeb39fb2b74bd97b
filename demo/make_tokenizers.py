"""Trains the demo's two tokenizers on demo text and saves them into demo/teacher and demo/student.

They differ on purpose, as those of LLaDA2 and Qwen3 do: SentencePiece (unigram, byte fallback) against byte-level BPE,
other pieces, other special tokens, another chat template. `python demo/make_tokenizers.py` takes seconds and gives the
committed files again.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.problems import chat_rows

HERE = Path(__file__).parent
TEACHER_PIECES, STUDENT_TOKENS = 324, 324  # small enough that both cut words, in different places
MAX_LENGTH = 512
PAD, MASK = "<|endoftext|>", "<|mask|>"

# Ling's template, which LLaDA2 uses.
TEACHER_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<role>' + {'system': 'SYSTEM', 'user': 'HUMAN', 'assistant': 'ASSISTANT'}[message.role] + '</role>' }}"
    "{{- message.content + '<|role_end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<role>ASSISTANT</role>' }}{%- endif %}"
)
TEACHER_ROLES, TEACHER_END = ["<role>", "</role>"], "<|role_end|>"

# ChatML, which Qwen3 uses.
STUDENT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
STUDENT_ROLES, STUDENT_END = ["<|im_start|>"], "<|im_end|>"


def demo_text(roles: Iterable[str]) -> list[str]:
    """Training text: the contents of clean rows, and the role words of one template as often as they occur in it."""
    rows = chat_rows("train", 4_000, seed=5)
    contents = [message["content"] for row in rows for message in row["messages"]]
    return contents + list(roles) * len(rows)


def sentencepiece_model(lines: Iterable[str], pieces: int) -> bytes:
    """A SentencePiece unigram model that keeps every byte: no normalisation, no dummy prefix, byte fallback."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        byte_fallback=True,
        split_digits=True,
        split_by_whitespace=False,  # pieces may span words: chunks of several student tokens to one of the teacher
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def fast_sentencepiece(model: bytes) -> Tokenizer:
    """The same unigram model for the tokenizers library; pieces and scores are taken over one to one."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def byte_level_bpe(lines: Iterable[str], tokens: int) -> Tokenizer:
    """A byte-level BPE with single digits, split into words as GPT-2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=tokens, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, roles: list[str], end_of_turn: str, template: str) -> None:
    """Adds the special tokens and the chat template; the folder loads with AutoTokenizer.from_pretrained."""
    tokenizer.add_special_tokens([PAD, MASK, end_of_turn, *roles])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end_of_turn,
        pad_token=PAD,
        mask_token=MASK,
        extra_special_tokens=roles,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    print(f"{folder}: {len(fast)} tokens; pad {fast.pad_token_id}, mask {fast.mask_token_id}, eos {fast.eos_token_id}")


def make_tokenizers(teacher: Path, student: Path) -> None:
    """Trains and saves both tokenizers; the teacher's folder also holds the SentencePiece model itself."""
    model = sentencepiece_model(demo_text(["SYSTEM", "HUMAN", "ASSISTANT"]), TEACHER_PIECES)
    save(fast_sentencepiece(model), teacher, TEACHER_ROLES, TEACHER_END, TEACHER_TEMPLATE)
    (teacher / "tokenizer.model").write_bytes(model)
    bpe = byte_level_bpe(demo_text(["system\n", "user\n", "assistant\n"]), STUDENT_TOKENS)
    save(bpe, student, STUDENT_ROLES, STUDENT_END, STUDENT_TEMPLATE)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--teacher", type=Path, default=HERE / "teacher", help="folder of the teacher's tokenizer")
    arguments.add_argument("--student", type=Path, default=HERE / "student", help="folder of the student's tokenizer")
    folders = arguments.parse_args()
    make_tokenizers(folders.teacher, folders.student)
