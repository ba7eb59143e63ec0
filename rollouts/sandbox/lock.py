"""Layers two and three of the sandbox: processes give up what they could do harm with, and cannot take it back.

The server (rollouts/sandbox/child.py) calls :func:`lock_server` once, after everything it needs is imported: from then
on it can compute, fork, and end what it forked. Each fork calls :func:`lock_fork` before it runs generated code: it can
compute, read descriptor 0 and write descriptor 1. Each property that safety needs can be held by more than one
mechanism; all that the machine offers are applied, and properties that none holds are named.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import time

NOBODY = 65534
_TYPE_FLAGS_AT, _IMMUTABLE_TYPE = 168, 1 << 8  # of CPython's PyTypeObject on a 64-bit machine
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522

# System calls by machine: (audit architecture, read, write, those that running pure Python needs once all is imported,
# those that the server needs besides). The third, in order: mmap mprotect munmap brk rt_sigaction rt_sigprocmask
# rt_sigreturn mremap madvise setitimer exit exit_group futex sigaltstack getrandom clock_gettime gettimeofday getpid
# sched_yield. No open, socket, clone or kill. The fourth: read write close poll (ppoll) dup2 (dup3) clone fork wait4
# kill fcntl getppid prctl gettid set_robust_list pipe2 prlimit64 seccomp rseq pread64.
_SYSTEM_CALLS: dict[str, tuple[int, int, int, tuple[int, ...], tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        0,
        1,
        (9, 10, 11, 12, 13, 14, 15, 25, 28, 38, 60, 231, 202, 131, 318, 228, 96, 39, 24),
        (0, 1, 3, 7, 33, 56, 57, 61, 62, 72, 110, 157, 186, 273, 293, 302, 317, 334, 17),
    ),
    "aarch64": (
        0xC00000B7,
        63,
        64,
        (222, 226, 215, 214, 134, 135, 139, 216, 233, 103, 93, 94, 98, 132, 278, 113, 169, 172, 124),
        (63, 64, 57, 73, 24, 220, 260, 129, 25, 173, 167, 178, 99, 59, 261, 277, 293, 67),
    ),
}
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # _DENY: the call fails with EPERM
_UNKNOWN = 0x00050000 | errno.ENOSYS

# What a program that may use any Python has no use for, by machine, in order: ptrace syslog setns unshare mount umount2
# pivot_root chroot swapon swapoff reboot init_module delete_module quotactl acct kexec_load add_key request_key keyctl
# perf_event_open name_to_handle_at open_by_handle_at process_vm_readv process_vm_writev kcmp finit_module
# kexec_file_load bpf userfaultfd. Then those that all machines number alike: io_uring, mount's newer ones, pidfd_getfd.
_REACHING: dict[str, tuple[int, ...]] = {
    "x86_64": (
        *(101, 103, 308, 272, 165, 166, 155, 161, 167, 168, 169, 175, 176, 179, 163, 246, 248, 249, 250, 298, 303, 304),
        *(310, 311, 312, 313, 320, 321, 323),
    ),
    "aarch64": (
        *(117, 116, 268, 97, 40, 39, 41, 51, 224, 225, 142, 105, 106, 60, 89, 104, 217, 218, 219, 241, 264, 265),
        *(270, 271, 272, 273, 294, 280, 282),
    ),
}
_REACHING_EVERYWHERE = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442, 443)
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE_3, _NAMESPACE_FLAGS, _X32 = 435, 0x7E020000, 0x40000000


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def lock_server(*, empty_folder: str) -> tuple[list[str], list[str]]:
    """Give up network, files and privileges; what is left is to compute, to fork, and to end forks.

    Args:
        empty_folder: becomes the root of the file system where the machine allows it.

    Returns:
        (mechanisms that hold, properties that none of them holds); nothing may be executed unless the second is empty.
    """
    libc = _LIBC
    held: list[str] = []
    as_root = os.geteuid() == 0
    droppable = as_root and _can_drop_user()
    # A new user namespace keeps the user's own identity outside it, so another uid is better where it can be had.
    own_user = 0 if droppable else _CLONE_NEWUSER
    network = _CLONE_NEWNET | _CLONE_NEWIPC
    for flags in (own_user | network, own_user, network):
        if flags and libc.unshare(flags) == 0:
            held += ["user namespace"] * bool(flags & own_user) + ["network namespace"] * bool(flags & network)
            break
    os.chdir(empty_folder)
    with contextlib.suppress(OSError):
        os.chroot(".")
        held.append("empty root")
    if droppable:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        held.append("dropped user")
    drop_capabilities()
    if (for_server := _program(serves=True)) is not None and _filter_system_calls(for_server):
        held.append("system call filter")
    return held, _missing(set(held), as_root=as_root)


def lock_fork(*, memory_bytes: int, cpu_seconds: float, server: int) -> None:
    """Bound what a fork of a locked server can do to computing, reading descriptor 0 and writing descriptor 1.

    Args:
        memory_bytes: limit of the address space.
        cpu_seconds: from now on, after which the kernel kills the process.
        server: process id of the server, with which this process ends.

    Raises:
        OSError: the filter that the server has cannot be narrowed.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:
        os._exit(1)  # it ended before it could be waited for
    _limit(memory_bytes=memory_bytes, cpu_seconds=cpu_seconds)
    if _FOR_FORKS is not None and not _filter_system_calls(_FOR_FORKS):
        raise OSError(ctypes.get_errno(), "seccomp")


def freeze_classes() -> None:
    """Make every class that exists as immutable as built-in ones are: setting an attribute of it raises TypeError.

    A program that changes ``Counter`` for the time of a comparison, and puts it back, would leave no trace. Python has
    no call for this; the flag is set in the class's memory, after a look that it is where it should be.

    Raises:
        RuntimeError: this interpreter keeps its flags elsewhere.
    """
    known_flags = vars(type)["__flags__"].__get__  # past what a class itself may call so
    waiting, seen = [object], set[type]()
    while waiting:
        cls = waiting.pop()
        seen.add(cls)
        waiting += [sub for sub in type.__subclasses__(cls) if sub not in seen]
        flags = ctypes.c_ulong.from_address(id(cls) + _TYPE_FLAGS_AT)
        if flags.value != known_flags(cls):
            raise RuntimeError("classes of this interpreter cannot be frozen")
        if not flags.value & _IMMUTABLE_TYPE:
            flags.value |= _IMMUTABLE_TYPE


def _can_drop_user() -> bool:
    """Whether root may become nobody here: some containers take the capability away, some map no other user."""
    try:
        os.setgroups([])
        os.seteuid(NOBODY)
        os.seteuid(0)
    except OSError:
        return False
    return True


def _missing(held: set[str], *, as_root: bool) -> list[str]:
    """Properties that safety needs and no mechanism of ``held`` gives, with what could give them."""
    filtered = "system call filter" in held
    ordinary = filtered and not as_root  # an ordinary user whose process can only compute needs no other uid
    holds = {
        "privileges (a dropped uid or a user namespace)": bool(held & {"dropped user", "user namespace"}) or ordinary,
        "network (a network namespace or seccomp)": filtered or "network namespace" in held,
        "files (a chroot or seccomp)": filtered or "empty root" in held,
        "other processes (seccomp, or a dropped uid)": filtered or "dropped user" in held,
    }
    return [name for name, ok in holds.items() if not ok]


def _limit(*, memory_bytes: int, cpu_seconds: float) -> None:
    seconds = int(time.process_time() + cpu_seconds) + 1
    for kind, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def drop_capabilities() -> None:
    """Zero all capabilities: those of root, and those that a new user namespace comes with."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if _LIBC.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _program(*, serves: bool) -> _Filter | None:
    """The filter that leaves the system calls of the server, or of a fork of it; None: unknown for this machine."""
    if platform.machine() not in _SYSTEM_CALLS:
        return None
    architecture, read, write, computing, serving = _SYSTEM_CALLS[platform.machine()]
    load, jump_equal, ret = 0x20, 0x15, 0x06
    number_at, architecture_at, first_argument_at = 0, 4, 16
    rows = [
        (load, 0, 0, architecture_at),
        (jump_equal, 1, 0, architecture),
        (ret, 0, 0, _KILL),
        (load, 0, 0, number_at),
    ]
    for call in (*computing, *(serving if serves else ())):
        rows += [(jump_equal, 0, 1, call), (ret, 0, 0, _ALLOW)]
    for call, descriptor in () if serves else ((read, 0), (write, 1)):
        rows += [
            (jump_equal, 0, 4, call),
            (load, 0, 0, first_argument_at),
            (jump_equal, 0, 1, descriptor),
            (ret, 0, 0, _ALLOW),
            (ret, 0, 0, _DENY),
        ]
    rows.append((ret, 0, 0, _DENY))
    return _Filter(len(rows), (_Instruction * len(rows))(*(_Instruction(*row) for row in rows)))


def filter_namespaces() -> None:
    """Give up, for this process and all it starts, system calls that make namespaces, mount, or reach other processes.

    Raises:
        OSError: the machine has no such filter, or its system calls are not known.
    """
    machine = platform.machine()
    if machine not in _REACHING:
        raise OSError(errno.ENOSYS, f"system calls of {machine} are not known")
    load, jump_equal, jump_from, jump_any, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    rows = [
        (load, 0, 0, 4),  # the architecture
        (jump_equal, 1, 0, _SYSTEM_CALLS[machine][0]),
        (ret, 0, 0, _KILL),
        (load, 0, 0, 0),  # the number
        (jump_from, 0, 1, _X32),
        (ret, 0, 0, _DENY),
        (jump_equal, 0, 1, _CLONE_3),  # its flags lie in memory; whoever lacks it takes clone
        (ret, 0, 0, _UNKNOWN),
    ]
    for call in (*_REACHING[machine], *_REACHING_EVERYWHERE):
        rows += [(jump_equal, 0, 1, call), (ret, 0, 0, _DENY)]
    rows += [
        (jump_equal, 0, 3, _CLONE[machine]),
        (load, 0, 0, 16),  # its flags
        (jump_any, 0, 1, _NAMESPACE_FLAGS),
        (ret, 0, 0, _DENY),
        (ret, 0, 0, _ALLOW),
    ]
    if not _filter_system_calls(_Filter(len(rows), (_Instruction * len(rows))(*(_Instruction(*row) for row in rows)))):
        raise OSError(ctypes.get_errno(), "seccomp")


def _filter_system_calls(program: _Filter) -> bool:
    """Give up the system calls that a filter does not leave. False: this machine has no such filter."""
    return (
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0
    )


_LIBC = ctypes.CDLL(None, use_errno=True)
_FOR_FORKS = _program(serves=False)
"""Made once, in the server: each fork only hands it to the kernel, before it runs generated code."""
