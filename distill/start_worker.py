"""What Ray's raylet runs to start a worker of our own cluster: asks the fork server, or starts it as Ray does.

A script of its own, with nothing imported that a Python has not, for it runs once a worker. Ray gives it the arguments
of its own script (`ray/_private/workers/setup_worker.py`), whose place it has.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, which has a types.py

import array
import json
import os
import signal
import socket
from importlib.util import find_spec

CONTEXT, LANGUAGE = "--serialized-runtime-env-context=", "--language="
ADDRESS = "MOPD_FORK_SERVER"
"""In the environment of a cluster's processes: the socket of its server."""


def hand_over(arguments: list[str]) -> bool:
    """Have the server fork this worker, and wait for its end; whether it did.

    A worker that asks for more than environment variables (another Python, a container) is not forked.
    """
    address = os.environ.get(ADDRESS, "")
    context = json.loads(next((a.removeprefix(CONTEXT) for a in arguments if a.startswith(CONTEXT)), "{}"))
    other = {name for name, value in context.items() if value and name not in ("env_vars", "py_executable")}
    python = context.get("py_executable") or sys.executable
    if not address or other or python != sys.executable or f"{LANGUAGE}PYTHON" not in arguments:
        return False
    request = {
        "command": [argument for argument in arguments if not argument.startswith((CONTEXT, LANGUAGE))],
        "environment": {**os.environ, **(context.get("env_vars") or {})},
        "folder": os.getcwd(),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    }
    text = json.dumps(request).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(address)
            files = array.array("i", [0, 1, 2])
            server.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])  # something must go with them
            server.sendall(text)
            if server.recv(3) != b"ok\n":
                return False
            server.recv(1)  # nothing comes: it is closed when the worker has ended
        except OSError:  # no server, or it has ended
            return False
    return True


def start_as_ray_does(arguments: list[str]) -> None:
    """Become Ray's own script."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    script = os.path.join(os.path.dirname(spec.origin), "_private", "workers", "setup_worker.py")
    os.execv(sys.executable, [sys.executable, script, *arguments])


if __name__ == "__main__":
    _, *given = sys.argv
    if not hand_over(given):
        start_as_ray_does(given)
