"""The system calls that a program in the sandbox may make: a filter (seccomp) built by libseccomp.

libseccomp is where apt or systemd is. Its own Python binding exists for Debian's Python only, and the wrappers of PyPI call the
same library through ctypes, as the few lines here do.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import tempfile

from pipeline.core.errors import BadInput

LIBRARY = "libseccomp.so.2"
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000  # SCMP_ACT_ALLOW; SCMP_ACT_ERRNO, its lower half the error number
_EQUAL, _UNKNOWN = 4, -1  # SCMP_CMP_EQ, __NR_SCMP_ERROR

ALLOWED = """
read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek close close_range
open openat dup dup2 dup3 fcntl fcntl64 flock ioctl pipe pipe2 sendfile sendfile64 copy_file_range
stat stat64 lstat lstat64 fstat fstat64 newfstatat fstatat64 statx statfs statfs64 fstatfs fstatfs64 access faccessat
faccessat2 readlink readlinkat getdents getdents64 getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
getcwd chdir fchdir mkdir mkdirat rmdir rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat
chmod fchmod fchmodat fchmodat2 umask truncate truncate64 ftruncate ftruncate64 fallocate fsync fdatasync fadvise64
utime utimes utimensat futimesat
mmap mmap2 munmap mprotect mremap madvise msync brk
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigreturn sigaltstack pause kill tkill
tgkill alarm getitimer setitimer restart_syscall
time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 nanosleep clock_nanosleep
clock_nanosleep_time64 times getrusage
select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create epoll_create1 epoll_ctl epoll_wait
epoll_pwait epoll_pwait2 sendto recvfrom shutdown getsockname getpeername getsockopt
getpid getppid gettid getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getgroups getgroups32 getresuid
getresuid32 getresgid getresgid32 getpgrp getpgid getsid getpriority uname sysinfo getrlimit ugetrlimit setrlimit prlimit64
execve exit exit_group wait4 waitid arch_prctl set_thread_area set_tid_address set_robust_list rseq futex futex_time64
sched_yield sched_getaffinity getcpu getrandom membarrier
""".split()  # noqa: SIM905  a table, not one name a line
"""What Python's standard library needs in one process of one thread. What is not here does not exist in the sandbox (ENOSYS: the
C library falls back to an older call, as on an older kernel): no new process or namespace, no ptrace or reading of other
processes, no keyrings, no System V IPC, no memory files, no sockets but a pair of connected ones (asyncio wakes itself up
with one), and whatever a kernel may learn after this list. `execve` is how bubblewrap starts Python; what a program starts
in its place keeps every limit."""


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def system_call_filter() -> bytes:
    """The filter for this machine's architecture, as bwrap's --seccomp reads it. Calls of another architecture kill.

    Raises BadInput without libseccomp.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise BadInput(
            f"generated code runs only behind a filter of system calls, and {LIBRARY} is missing: install libseccomp "
            "(Debian: apt-get install libseccomp2)"
        ) from None
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(_REFUSE | errno.ENOSYS))

    def allow(name: str, *comparisons: _Comparison) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        conditions = (_Comparison * len(comparisons))(*comparisons)
        if number != _UNKNOWN:  # an older libseccomp does not know the newest
            library.seccomp_rule_add_array(rules, ctypes.c_uint32(_ALLOW), number, len(comparisons), conditions)

    for name in ALLOWED:
        allow(name)
    allow("socketpair", _Comparison(0, _EQUAL, socket.AF_UNIX))
    with tempfile.TemporaryFile() as file:
        library.seccomp_export_bpf(rules, file.fileno())
        library.seccomp_release(rules)
        file.seek(0)
        return file.read()
