"""Outside of bubblewrap: what a program is shown of the machine, and the process in which it is shown nothing else.

A program sees the system's programs and libraries (``/usr`` and its kin), the interpreter with its packages, and a
temporary folder, ``/tmp``, that is its own; all but that is read-only. There is no home, no folder of a run or of a
dataset, and no network but a loopback interface of its own.
"""

from __future__ import annotations

import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

from mopd.distill.errors import UserError

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/ssl/openssl.cnf")
_CODE = "/opt/mopd"
"""Where the server's own modules are, inside."""
_MAIN = (
    "import sys; sys.path += {packages!r}; sys.path.append({code!r}); "
    "from mopd.rollouts.sandbox.bubblewrap.server import main; main()"
)
_PRELOADED = ("numpy", "json", "threading", "subprocess", "datetime", "enum", "typing", "unittest")
"""What programs import most, so that no fork spends its time on it."""
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}


@functools.cache
def _python() -> tuple[str, tuple[str, ...]]:
    """(the interpreter itself, folders that it and its packages are in, not those of the system)."""
    paths = sysconfig.get_paths()
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isabs(path)]
    folders = [sys.base_prefix, paths["purelib"], paths["platlib"], *libraries]
    outside = [os.path.realpath(path) for path in folders if not path.startswith(tuple(f"{s}/" for s in _SYSTEM))]
    return os.path.realpath(sys.executable), tuple(dict.fromkeys(path for path in outside if path != "/usr"))


def _command(program: str) -> list[str]:
    """The command line of bubblewrap over the server.

    Raises:
        UserError: a folder that programs would be shown has the user's home in it.
    """
    interpreter, folders = _python()
    home = os.path.realpath(os.path.expanduser("~"))
    if wide := [folder for folder in folders if f"{home}/".startswith(f"{folder.rstrip('/')}/")]:
        raise UserError(f"the interpreter's folder {wide[0]} has the home folder in it, which programs must not see")
    own = ["--unshare-user"] if os.geteuid() else ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    binds: list[str] = []
    for path in _SYSTEM:
        if os.path.islink(path):
            binds += ["--symlink", os.readlink(path), path]
        else:
            binds += ["--ro-bind-try", path, path]
    code = f"{_CODE}/mopd/rollouts/sandbox"
    above = {str(parent) for path in (*_SETTINGS, *folders, code) for parent in Path(path).parents}
    for path in sorted(above - {"/"}):  # bubblewrap makes them for its own user alone
        binds += ["--perms", "0755", "--dir", path]
    for path in (*_SETTINGS, *folders):
        binds += ["--ro-bind-try", path, path]
    binds += ["--ro-bind", str(Path(__file__).parents[1]), code]
    packages = list(dict.fromkeys(os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")))
    return [
        *(program, *own, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *(*binds, "--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"),
        *("--chdir", "/tmp", "--", interpreter, "-S", "-s", "-P", "-B", "-W", "ignore"),
        *("-c", _MAIN.format(packages=packages, code=_CODE)),
    ]


class BubblewrapBox:
    """Bubblewrap with the server of programs in it, and the ends of the pipes to it.

    Args:
        program: descriptor of the file that holds a program's text.
        wall_seconds: in which it has to be ready.

    Attributes:
        descriptors: by their names in :data:`rollouts.sandbox.child.PLACES`, what the tests' server needs of it;
            :meth:`handed_over` closes them here.

    Raises:
        UserError: it can't be had on this machine; the message says what is missing.
    """

    def __init__(self, program: int, *, wall_seconds: float) -> None:
        bubblewrap = shutil.which("bwrap")
        if bubblewrap is None:
            raise UserError("no bwrap is on the PATH; install it (Debian, Ubuntu: apt-get install bubblewrap)")
        command = _command(bubblewrap)
        control, status, to_program, from_program = os.pipe(), os.pipe(), os.pipe(), os.pipe()
        self.descriptors = {
            "control": control[1],
            "status": status[0],
            "from_program": from_program[0],
            "to_program": to_program[1],
        }
        inside = (control[0], status[1], to_program[0], from_program[1])
        errors = os.memfd_create("errors")
        libraries = {name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=control[0],
                stdout=status[1],
                stderr=errors,
                env=_ENVIRONMENT | libraries,
                pass_fds=(to_program[0], from_program[1], program),
                start_new_session=True,
            )
            for descriptor in inside:
                os.close(descriptor)
            try:
                self._start(to_program[0], from_program[1], program, wall_seconds)
            except BaseException as error:
                self.end()
                if isinstance(error, UserError):
                    lines = os.pread(errors, 1 << 16, 0).decode(errors="replace").strip().splitlines()
                    raise UserError(f"{error}: {lines[-1] if lines else 'it says nothing'}") from error
                raise
        finally:
            os.close(errors)

    def _start(self, reads: int, writes: int, program: int, wall_seconds: float) -> None:
        pipes = {"reads": reads, "writes": writes, "program": program}
        settings = json.dumps({"pipes": pipes, "preload": _PRELOADED}).encode() + b"\n"
        with suppress(BrokenPipeError):  # it ended
            os.write(self.descriptors["control"], settings)
        poll = select.poll()
        poll.register(self.descriptors["status"], select.POLLIN)
        line, end = b"", time.monotonic() + wall_seconds
        while b"\n" not in line:
            waits = poll.poll(1000 * max(0.0, end - time.monotonic()))
            chunk = os.read(self.descriptors["status"], 1 << 12) if waits else b""
            if not chunk:
                raise UserError("bwrap starts no interpreter without network, home and privileges here")
            line += chunk

    def handed_over(self) -> None:
        """The tests' server has the pipes: this process closes its own ends, so that the server's end is theirs."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors = {}

    def end(self) -> None:
        """Kill it, and with it whatever runs inside."""
        self.handed_over()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
