"""Cross-tokenizer alignment: chunks of bytes that student and teacher tokens have in common."""

from pipeline.alignment.chunks import align_chunks
from pipeline.alignment.vocabulary import shared_vocab, token_bytes

__all__ = ["align_chunks", "shared_vocab", "token_bytes"]
