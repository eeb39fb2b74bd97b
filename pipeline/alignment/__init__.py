"""Cross-tokenizer alignment: chunks of bytes that student and teacher tokens have in common."""

from pipeline.alignment.chunks import align_chunks
from pipeline.alignment.vocabulary import token_bytes

__all__ = ["align_chunks", "token_bytes"]
