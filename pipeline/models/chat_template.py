"""Chat templates are programs that come with a model: whether one ends, and what it says when it refuses."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from pipeline.core.errors import BadInput

SECONDS = 10
CHARACTERS = 1_000_000
"""Of a conversation of two words; published templates write some thousands."""
_WORDS = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


def check_chat_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raises BadInput for no template, one that is none, one that does not end, and one that writes without end.

    A template may refuse the conversation that it is tried with: what it takes is seen with the data.
    """
    if not tokenizer.chat_template:
        raise BadInput(
            f"{path}: no chat template; add chat_template.jinja to the tokenizer, or score a base model with "
            "`--evaluation.chat false`"
        )
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = ", ".join(tokenizer.chat_template)
        raise BadInput(f"{path}: chat templates {names}, but no default; save the one to use as chat_template.jinja")
    try:
        with _time_limit(SECONDS):
            text = tokenizer.apply_chat_template(_WORDS, tokenize=False, enable_thinking=False)
    except TemplateSyntaxError as error:
        raise BadInput(f"{path}: its chat template is not Jinja: {error.message} (line {error.lineno})") from None
    except (TimeoutError, MemoryError, OverflowError, RecursionError) as error:
        raise BadInput(f"{path}: its chat template does not end ({error or type(error).__name__})") from None
    except Exception:
        return
    if len(text) > CHARACTERS:
        raise BadInput(f"{path}: its chat template writes {len(text):,} characters around two words")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block after that time; in the main thread alone, where Python can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"stopped after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
