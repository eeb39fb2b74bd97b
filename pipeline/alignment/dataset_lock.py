"""One process at a time builds a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.core.errors import BadInput
from pipeline.core.files import lock
from pipeline.core.log import log


@contextmanager
def dataset_lock(folder: Path) -> Iterator[bool]:
    """Waits while another process builds this dataset, as parts of a job array may do; yields whether it had to.

    Raises BadInput where the lock file cannot be written, or not locked.
    """
    path, waited = folder.with_name(f".{folder.name}.lock"), False
    with ExitStack() as stack:
        while True:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("w"))
            except OSError as error:
                raise BadInput(
                    f"cannot write to {folder.parent} ({error.strerror}): choose another data.aligned"
                ) from None
            try:
                lock(file)
            except BlockingIOError:
                log.info(f"{folder} is being built by another process: waiting for it")
                lock(file, wait=True)
                waited = True
            with suppress(FileNotFoundError):  # or another file by now: the one before has removed its lock
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
        stack.callback(path.unlink, missing_ok=True)
        yield waited
