"""A process that has imported the libraries of a run, and forks itself where Ray wants a worker.

Each process of a run imports torch, transformers and DeepSpeed, seconds of a core every time. Here they are imported
once, before the process has a second thread or has touched a GPU, and a worker is a fork of it: milliseconds, and the
libraries' memory is shared. Ray starts a worker by a command; :mod:`distill.start_worker` takes that command's place,
hands what it was given to the server that its ``ADDRESS`` names, and starts the worker as Ray does where there is none,
or where the worker must differ in what is read at an import. Ray itself is imported in the forks: it reads of its
environment, as it is imported, whose worker it is.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mopd.distill.start_worker import ADDRESS

READ_AT_IMPORT = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "DS_ACCELERATOR")
"""Variables that libraries read as they are imported: a worker that is given another value is not forked."""

LONGEST = 1 << 22
"""Bytes of one request: a command and an environment, which the kernel bounds by less."""


@contextmanager
def fork_server(folder: Path, modules: str, *args: str, variables: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A server beside this process while the context lasts; it imports while whoever asks already waits.

    Args:
        folder: where its socket is made.
        modules: ``module:function`` that imports what workers will need, called with ``args``.
        variables: of the environment, which all its forks have.

    Yields:
        The environment variable by which :mod:`distill.start_worker` knows the server.
    """
    path = folder / "fork"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        os.chmod(path, 0o600)
        server.listen(64)
        command = [sys.executable, "-P", "-m", __name__, str(server.fileno()), modules, *args]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is not for it
            pass_fds=[server.fileno()],
            env={**os.environ, **variables},
        )
    try:
        yield {ADDRESS: str(path)}
    finally:
        process.kill()
        process.wait()


def main(number: str, modules: str, *args: str) -> None:
    """Import, then fork a worker for each that asks, which runs it."""
    module, _, function = modules.partition(":")
    getattr(importlib.import_module(module), function)(*args)
    gc.collect()
    gc.freeze()  # what is here is everybody's: no fork's collector writes to it
    if len(os.listdir("/proc/self/task")) > 1:
        return  # something has started a thread, which no fork would have; workers are started as Ray does
    _become(*_wait_for_worker(socket.socket(fileno=int(number))))


def _wait_for_worker(server: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What a worker was asked for with, and its files; returns in a fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever ends is not waited for
    while True:
        connection = server.accept()[0]
        with suppress(OSError, ValueError):
            request, files = _read(connection)
            given = request["environment"]
            if any(name in given and given[name] != os.environ.get(name) for name in READ_AT_IMPORT):
                connection.sendall(b"no\n")
            elif os.fork() == 0:
                os.setpgid(0, 0)  # Ray kills the group of a worker that has ended
                server.close()
                connection.sendall(b"ok\n")
                connection.detach()  # until this process ends: whoever waits at the other end ends then
                return request, files
            for file in files:
                os.close(file)
        connection.close()


def _read(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One request: JSON up to a line's end, and with its first byte, a space, the three standard files."""
    files = array.array("i")
    text, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(3 * files.itemsize))
    for _, _, data in ancillary:
        files.frombytes(data)
    while not text.endswith(b"\n") and len(text) < LONGEST:
        more = connection.recv(65536)
        if not more:
            raise ValueError("whoever asked has ended")
        text += more
    return json.loads(text), list(files)


def _become(request: Mapping[str, Any], files: list[int]) -> None:
    """Run a worker's script in this fork, as if it had been started by its command."""
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    sys.argv[:] = request["command"]
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # not every fork the same; Python's own generator is seeded anew at a fork
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _, *given = sys.argv
    main(*given)
