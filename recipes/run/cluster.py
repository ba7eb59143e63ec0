"""The Ray cluster of a command that trains: one of its own, or the one that RAY_ADDRESS names."""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_any
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import psutil

from mopd.distill import start_worker
from mopd.distill.errors import RunError, UserError
from mopd.distill.fork_server import fork_server
from mopd.distill.guard import MARK, confirm, dismiss, end_cluster, ray_died, start_guard
from mopd.distill.hosts import ENVIRONMENT, HOSTS
from mopd.recipes.resolve.placement import RAY_PREFIX, temporary_folder

ATTEMPTS = 3
"""How often a node is started: Ray gives it 30 s to come up, which a machine with other work may not keep."""

PATIENCE = {"RAY_gcs_server_port_wait_time_s": "120", "RAY_worker_register_timeout_seconds": "600"}
"""Ray's own deadlines (30 s and 60 s), which a process that waits for a core would miss; a dead one shows at once."""


LOOK_SECONDS = 0.2
"""Between two looks at whether what Ray waits for has died."""

FOLDERS = set[Path]()
"""Of the clusters that this process has started."""

GUARDS: list[subprocess.Popen[bytes]] = []
"""Of those clusters."""

LAST_WORDS: list[Callable[[BaseException], None]] = []
"""Of the runs that this process carries out: called where one ends without an exception that reaches it. They write a
page in the worst case, and raise nothing."""
ENDING = threading.Event()
"""Set where this process ends itself, with an exit code of its own."""

BLOCKED = {signal.SIGTERM}
"""Slurm sends it to every process of a job, and a step that is to be finished needs its ranks."""


@contextmanager
def ray_cluster(out: Path, *, niceness: int = 0, device: str = "") -> Iterator[None]:
    """A Ray cluster of this run's own, behind a token and on the loopback alone, or the one that RAY_ADDRESS names.

    Args:
        niceness: of its processes, above that of this one.
        device: of the student; if "cpu", workers are forks of one process that has imported their libraries. On a GPU
            none is: who has touched one cannot be forked.

    Raises:
        UserError: there is no cluster at RAY_ADDRESS, or a port that the environment names is taken, or the folder of
            temporary files has too long a name.
        RunError: Ray does not start, or starts a cluster that anybody may join.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # "local": without an address Ray would join whatever cluster somebody has started on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    with ExitStack() as closing:
        settings: dict[str, str] = {}
        if address == "local":
            closing.enter_context(locked_doors())
            settings = own_processes(closing, niceness)
            if device == "cpu":
                settings |= closing.enter_context(fork_server_of(settings))
        try:
            with environment(settings), own_ways() if address == "local" else nullcontext():
                # Ray's own logs are quiet: what fails is raised, and the guard says the rest.
                start_ray(
                    closing, Path(settings[MARK]) if address == "local" else None,
                    address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL,
                    namespace=str(out),
                )  # fmt: skip
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster at RAY_ADDRESS={address}: {error}; start one, unset RAY_ADDRESS, or, where its nodes "
                "ask for a token (`ray start` may set one up in ~/.ray), set RAY_AUTH_MODE=token"
            ) from error
        if address == "local":
            refuse_open_cluster()
        yield


def own_processes(closing: ExitStack, niceness: int) -> dict[str, str]:
    """A folder for a cluster of one's own. With ``closing`` ends every process of it, whatever has become of Ray, and
    the folder goes. What killed runs have left of theirs goes first.

    Returns:
        The environment that the cluster is to be started in.
    """
    base = temporary_folder()
    remove_abandoned(base)
    folder = Path(tempfile.mkdtemp(prefix=RAY_PREFIX, dir=base))
    owner = closing.enter_context(open(folder / "new", "w"))  # noqa: SIM115  (ours until it is closed, or we are dead)
    fcntl.flock(owner, fcntl.LOCK_EX)
    os.rename(folder / "new", folder / "owner")  # locked before anybody can look for it
    FOLDERS.add(folder)
    closing.callback(_end_cluster, folder)
    return {
        MARK: str(folder),
        "RAY_TMPDIR": str(folder),
        "RAY_worker_niceness": str(niceness),
        # Ray would start a process a core before anybody wants one; HOSTS starts those that are wanted.
        "RAY_prestart_worker_first_driver": "0",
    }


def _end_cluster(folder: Path) -> None:
    end_cluster(folder)
    FOLDERS.discard(folder)


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables while the context lasts."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def fork_server_of(settings: Mapping[str, str]) -> AbstractContextManager[dict[str, str]]:
    """What forks the workers of the cluster that ``settings`` are for."""
    return fork_server(
        Path(settings[MARK]), "mopd.distill.student.rank:import_libraries", "cpu", variables={**settings, **ENVIRONMENT}
    )


@contextmanager
def own_ways() -> Iterator[None]:
    """A cluster that is started meanwhile starts its workers by :mod:`distill.start_worker`, and has no process that
    serves nobody in a run: what reads logs for a driver that does not show them, what would ask for more machines, and
    the dashboard. Each takes a second of a core to start, and the driver waits for the last.
    """
    from ray._private import ray_constants
    from ray._private.node import Node

    left_out = ("start_log_monitor", "start_monitor", "start_api_server")
    kept = {name: getattr(Node, name) for name in left_out}
    script = ray_constants.SETUP_WORKER_FILENAME
    ray_constants.SETUP_WORKER_FILENAME = start_worker.__file__  # an absolute path stays what it is in os.path.join
    for name in left_out:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        ray_constants.SETUP_WORKER_FILENAME = script
        for name, method in kept.items():
            setattr(Node, name, method)


def remove_abandoned(base: Path) -> None:
    """End the processes and remove the folders of clusters whose runs are dead."""
    for folder in base.glob(f"{RAY_PREFIX}*"):
        try:
            with open(folder / "owner") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                end_cluster(folder)
        except OSError:  # it lives, is another user's, or not ours at all
            continue


def end_everything(code: int) -> NoReturn:
    """End this process where it stands, and all that it started: no lock and no process of the run is left."""
    ENDING.set()
    for guard in GUARDS:
        guard.kill()  # first: all else dies on purpose
    children = psutil.Process().children(recursive=True)
    for folder in tuple(FOLDERS):
        _end_cluster(folder)
    for child in children:
        with suppress(psutil.Error):
            child.kill()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """A process beside this one ends what is left of the cluster, should this one not come to it. This one ends with
    it: after the death of Ray no call of Ray's returns, so nothing could be raised."""
    from ray._private import ray_constants, worker

    kinds = {"GCS": ray_constants.PROCESS_TYPE_GCS_SERVER, "raylet": ray_constants.PROCESS_TYPE_RAYLET}
    node = worker._global_node
    assert node is not None, "a cluster of our own was started"
    worker.print_to_stdstream = lambda *_, **__: None  # a dead raylet's last 20 lines; the guard says it in one
    guard = start_guard(folder, {name: node.all_processes[kind][0].process.pid for name, kind in kinds.items()})
    GUARDS.append(guard)
    over, verdict = threading.Event(), threading.Lock()

    def wait() -> None:
        ray_died(guard)
        with verdict:  # whoever comes later keeps to it: a run that ends well, or all of this process
            if not (over.is_set() or ENDING.is_set()):
                confirm(guard)
                for note in tuple(LAST_WORDS):
                    note(RunError("a process of Ray's died, and with it all processes of the run"))
                os._exit(1)

    threading.Thread(target=wait, daemon=True, name="guard").start()
    try:
        yield
    finally:
        with verdict:
            over.set()
        dismiss(guard)
        GUARDS.remove(guard)


def stop_ray() -> None:
    """``ray.shutdown()``; processes of our own cluster are killed, for they hold nothing that is not on the disk."""
    import ray
    from ray._private import worker

    if not ray.is_initialized():
        return
    HOSTS.clear()
    if (node := worker._global_node) is not None:
        kill = node.kill_all_processes
        node.kill_all_processes = lambda **_: kill(check_alive=False, allow_graceful=False)
    ray.shutdown()


def start_ray(closing: ExitStack, folder: Path | None, **options: Any) -> None:
    """``ray.init(**options)``, and once more where the node was not up in time; ``closing`` shuts it down.

    Args:
        folder: of a cluster that is started, which has a guard from when Ray connects to it: from then on Ray ends this
            process where one of its own is dead.

    Raises:
        ConnectionError: there is no cluster at the address.
        RunError: no node came up.
    """
    import ray

    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    for attempt in range(ATTEMPTS):
        try:
            with _term_kept(), deaths_noticed(), ExitStack() as guarding:
                with nullcontext() if folder is None else _connecting(partial(guarding.enter_context, guarded(folder))):
                    ray.init(**options)
                closing.callback(stop_ray)
                closing.push(guarding.pop_all())  # which ends first: what it guards ends on purpose
        except ConnectionError:
            raise
        except Exception as error:  # Ray raises bare exceptions of any class here
            ray.shutdown()
            if attempt == ATTEMPTS - 1:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise RunError(f"Ray did not start in {ATTEMPTS} attempts: {first}") from error
        else:
            return


@contextmanager
def _connecting(first: Callable[[], Any]) -> Iterator[None]:
    """Ray calls ``first`` before it connects to the node that it has started."""
    from ray._private import worker

    connect = worker.connect

    def connecting(*args: Any, **settings: Any) -> None:
        first()
        connect(*args, **settings)

    worker.connect = connecting
    try:
        yield
    finally:
        worker.connect = connect


@contextmanager
def deaths_noticed() -> Iterator[None]:
    """A GCS or a raylet that is started meanwhile and dies ends Ray's waits for it, of up to two minutes. With a start
    that fails both end: a GCS of a fixed port would be in the way of the next."""
    from ray._private import node, services

    started: list[tuple[str, subprocess.Popen[bytes]]] = []

    def noting(start: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **settings: Any) -> Any:
            info = start(*args, **settings)
            started.append((start.__name__.removeprefix("start_"), info.process))
            return info

        return noted

    changed = (
        (node, "wait_for_persisted_port", partial(_port_unless_dead, started)),
        (services, "get_node", partial(_node_unless_dead, started)),
        (services, "start_gcs_server", noting),
        (services, "start_raylet", noting),
    )
    with ExitStack() as closing:
        for module, name, change in changed:
            closing.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, change(getattr(module, name)))
        try:
            yield
        except BaseException:
            for _, process in started:
                process.kill()
                process.wait()
            raise


Started = Sequence[tuple[str, subprocess.Popen[bytes]]]


def _port_unless_dead(started: Started, wait: Callable[..., Any]) -> Callable[..., Any]:
    """``wait``, which keeps Python's lock while it waits for a port, in short pieces."""

    def waiting(*args: Any, timeout_ms: int) -> Any:
        late = time.monotonic() + timeout_ms / 1000
        while True:
            try:
                return wait(*args, timeout_ms=min(timeout_ms, int(1000 * LOOK_SECONDS)))
            except RuntimeError:
                _refuse_dead(started)
                if time.monotonic() >= late:
                    raise

    return waiting


def _node_unless_dead(started: Started, ask: Callable[..., Any]) -> Callable[..., Any]:
    """``ask``, which asks the GCS and has deadlines of its own, in a thread that is left to them."""

    def asking(*args: Any) -> Any:
        answer: Future[Any] = Future()

        def answers() -> None:
            try:
                answer.set_result(ask(*args))
            except BaseException as error:  # who asks gets it
                answer.set_exception(error)

        threading.Thread(target=answers, daemon=True, name="node").start()
        while not wait_for_any([answer], timeout=LOOK_SECONDS).done:
            _refuse_dead(started)
        return answer.result()

    return asking


def _refuse_dead(started: Started) -> None:
    for name, process in started:
        if process.poll() is not None:
            raise RunError(f"Ray's {name} (process {process.pid}) died as it started")


@contextmanager
def _term_kept() -> Iterator[None]:
    """Ray's processes are not sent SIGTERM, and it takes no handler's place in this one; both would end a step amid."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL  # None: no Python function
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)  # which children and threads inherit
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)


GCS_PORT = "RAY_GCS_SERVER_PORT"
"""The environment variable that gives a cluster's first port; Ray takes any free port without it."""


@contextmanager
def locked_doors() -> Iterator[None]:
    """What a cluster that is started meanwhile asks of whoever joins it: a token that it alone has, from this machine.

    Ray's own default is one token for all clusters of a user, in a file of theirs, and ports on every interface. Both
    settings are made in the environment, which the cluster's processes inherit; the token is on no command line. Ray
    reads them as it is imported, so they are given to what was imported before as well.

    Raises:
        UserError: the port that RAY_GCS_SERVER_PORT names is taken.
    """
    from ray._private import ray_constants

    def reread() -> None:
        raylet: Any = import_module("ray._raylet")  # compiled, without types
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()

    _refuse_taken_port(os.environ.get(GCS_PORT))
    # Named after the systems whose firewalls it was made for; on any, it has a cluster listen to its own machine.
    loopback = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in [*loopback, *token, "RAY_AUTH_TOKEN_PATH"]}
    many_machines = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(loopback | token)
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    ray_constants.ENABLE_RAY_CLUSTER = False
    reread()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        ray_constants.ENABLE_RAY_CLUSTER = many_machines
        reread()


def refuse_open_cluster() -> None:
    """Whether the doors are locked is asked of Ray: another version may read other settings.

    Raises:
        RunError: the cluster of this process asks for no token, or listens to other machines.
    """
    import ray

    raylet: Any = import_module("ray._raylet")
    asks = raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN
    address = ray.get_runtime_context().gcs_address
    if not (asks and ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback):
        raise RunError(
            f"Ray {ray.__version__} started a cluster at {address} that asks for {'a' if asks else 'no'} token, where "
            "one at 127.0.0.1 that asks for one was needed; install the version in constraints.txt, or start a cluster "
            "of your own and name it in RAY_ADDRESS"
        )


def _refuse_taken_port(port: str | None) -> None:
    if not port:
        return
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", int(port)))
        except (OSError, ValueError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(
                f"{GCS_PORT} is {port}, and Ray cannot listen there ({why}); name a free port, or unset it and any "
                "free one is taken"
            ) from error
