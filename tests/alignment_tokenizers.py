"""Tiny real tokenizers of the kinds that students and teachers have, trained on a few lines of many scripts.

tests/data/alignment holds rows and chunks computed with PKU-YuanGroup/TIDE da47bac, and the entries of the vocabularies
of Qwen3 (Apache-2.0) and Llama 3.1 (Llama 3.1 Community License) that those rows need.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).parent / "data" / "alignment"

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\r\n",
    "What is 12 plus 34? The sum is 46. What is 20 plus 15? The sum is 35.",
    "Grüße aus Köln, déjà vu, naïve café, résumé and Ångström",
    "日本語のテキストと中文文本，以及한국어 텍스트",
    "Привет мир, как дела? مرحبا بالعالم नमस्ते दुनिया",
    "emoji 🙂 and 👩‍🚀 and 🤖 and ▁ and \t tabs\u3000wide",
    "user assistant system\n\nuser\nassistant\n",
] * 4

# ChatML: contents as they are; the last answer has an empty think block before it (as Qwen3 without thinking).
CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.last and '</think>' not in message.content %}"
    "{{- '<think>\n\n</think>\n\n' + message.content.lstrip('\n') }}"
    "{%- else %}{{- message.content }}{%- endif %}"
    "{{- '<|im_end|>\n' }}"
    "{%- endfor %}"
)
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]

# As Llama 3: a start token, headers, trimmed contents.
HEADERS = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
)
HEADERS_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def dress(backend: Tokenizer, template: str, end_of_turn: str, **roles: str) -> PreTrainedTokenizerFast:
    """The tokenizer as models.load_tokenizer gives it: with a template, a mask token and an end token."""
    backend.add_special_tokens([end_of_turn, "<|mask|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end_of_turn, mask_token="<|mask|>", **roles)
    fast.chat_template = template
    return fast


def byte_level(
    template: str = CHATML, end_of_turn: str = "<|im_end|>", *, nfc: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen3 and Llama 3."""
    backend = Tokenizer.from_str(_byte_level())
    backend.normalizer = normalizers.NFC() if nfc else None
    backend.add_special_tokens(CHATML_TOKENS)
    return dress(backend, template, end_of_turn)


@cache
def _byte_level() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    )
    return backend.to_str()


def merging_line_breaks(template: str, end_of_turn: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """Byte-level BPE whose tokens take in line breaks after full stops, as Qwen3's do."""
    characters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merged = [(".", "Ċ"), (".", ".Ċ")]
    ids = characters | {a + b: len(characters) + n for n, (a, b) in enumerate(merged)}
    backend = Tokenizer(models.BPE(ids, merged))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(CHATML_TOKENS)
    return dress(backend, template, end_of_turn)


@cache
def sentencepiece_model(kind: str = "unigram") -> bytes:
    """A SentencePiece model with byte fallback that keeps every character."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type=kind,
        vocab_size=420,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def metaspace(
    template: str = HEADERS, end_of_turn: str = "<|eot_id|>", *, prefix: str = "never"
) -> PreTrainedTokenizerFast:
    """SentencePiece unigram for the tokenizers library; `prefix`: where a space is added (never, first, always)."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    backend = Tokenizer(models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(HEADERS_TOKENS)
    return dress(backend, template, end_of_turn, bos_token="<|begin_of_text|>")


def llama_bpe(template: str = HEADERS, end_of_turn: str = "<|eot_id|>") -> PreTrainedTokenizerFast:
    """SentencePiece BPE as Llama 2 has it: a normalizer writes the spaces and adds one in front of every section."""
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abdehilmnorstuw.,"]
    vocabulary += ["▁t", "▁th", "▁the", "he"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("h", "e")]
    ids = {token: index for index, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(HEADERS_TOKENS)
    return dress(backend, template, end_of_turn, bos_token="<|begin_of_text|>")


def words(template: str = HEADERS, end_of_turn: str = "<|eot_id|>") -> PreTrainedTokenizerFast:
    """WordPiece: a vocabulary whose bytes are not known."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(HEADERS_TOKENS)
    return dress(backend, template, end_of_turn, bos_token="<|begin_of_text|>")


def excerpt(name: str, template: str, end_of_turn: str, **roles: str) -> PreTrainedTokenizerFast:
    """The part of a published tokenizer (qwen3, llama3) that the vectors in tests/data/alignment need."""
    return dress(Tokenizer.from_file(str(DATA / f"{name}_excerpt.json")), template, end_of_turn, **roles)
