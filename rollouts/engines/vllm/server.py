"""Who owns a vLLM process: starts it in its own Python, asks it, writes weights for it, and ends it.

It lives in a host (:class:`distill.hosts.Host`), which may be on another node than the driver, or in the driver itself
where nothing else runs; the files that the process reads lie in the memory of that node.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mopd.distill.guard import memory_folder
from mopd.distill.recipe import LoRA
from mopd.distill.recipe.schema.vllm import Transport
from mopd.distill.types import RunError
from mopd.rollouts.engines.vllm import process
from mopd.rollouts.engines.vllm.files import served_folder, write_adapter, write_model
from mopd.rollouts.engines.workers import as_tensor

SHOWN_LINES = 12
"""Of a log, at the end of a message."""
END_SECONDS = 20.0
"""How long the end of a killed process is waited for; one that a driver keeps in a call takes longer."""
OWN_VARIABLES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the process itself
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # what it reads lies in a folder
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several servers, and the student's ranks, share the cores
}
SPECULATION = "speculative_config"
"""vLLM's argument under which it guesses several tokens a forward, by draft heads of the checkpoint or otherwise."""
DEFAULT_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""Of a process on a CPU, where the environment does not say; GiB that keys and values take."""


class ServerLost(RunError):
    """A vLLM process died, did not answer in time, or failed in a way that another time may not."""


class ServerRefused(RunError):
    """A vLLM process does not start, or does not take a request: it would be the same again."""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One server of vLLM.

    Attributes:
        number: from 0.
        python: absolute path of the Python that has vLLM.
        device: ``cpu`` or ``cuda``.
        dtype: of the weights, ``float32`` or ``bfloat16``.
        logs: folder of its log; None: nobody keeps it.
        gpus: the part of a GPU that it has; of its memory it takes nine tenths.
        extra: further arguments of vLLM's engine.
    """

    number: int
    python: str
    device: str
    dtype: str
    logs: str | None
    gpus: float
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HeldModel:
    """What a server holds when it starts.

    Attributes:
        path: folder of the checkpoint.
        trust_remote_code: run Python code that lies in the folder.
        lora: of a student whose adapter alone is published; None: no adapter is held.
    """

    path: str
    trust_remote_code: bool = False
    lora: LoRA | None = None


class VLLMServer:
    """One vLLM process and its files. What is asked of it has a limit in seconds, after which it is lost."""

    def __init__(self, spec: ServerSpec) -> None:
        self._spec = spec
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._unread = b""
        self._folder: Path | None = None
        self._model: HeldModel | None = None
        self._written = 0

    def begin(self, model: HeldModel) -> None:
        """Stand in for ``model``, whose process starts with the weights that :meth:`publish` is given."""
        self.close()
        self._model = model

    def start(self, model: HeldModel, seconds: float) -> dict[str, Any]:
        """Start a process that holds ``model``, in the place of the one that is there; what it says of itself.

        Raises:
            ServerRefused: it ended, with the last lines of its log.
            ServerLost: it was killed, or is not up in ``seconds``.
        """
        self.begin(model)
        return self._start(served_folder(model.path, self._config(), self._files("model")), seconds)

    def ask(self, call: str, arguments: Mapping[str, Any], seconds: float | None) -> Any:
        """The answer of the process to one request; see :class:`rollouts.engines.vllm.process.VLLMProcess`.

        Raises:
            ServerLost: it died, did not answer in ``seconds``, or failed.
            ServerRefused: it will not, or cannot start.
        """
        assert self._channel is not None, "it was started"
        self._channel.settimeout(seconds)
        try:
            self._channel.sendall(json.dumps({"call": call, "arguments": arguments}).encode() + b"\n")
            reply = json.loads(self._line())
        except TimeoutError:
            raise ServerLost(f"{self} hangs: it has not answered `{call}` within {seconds:g} s") from None
        except OSError:
            raise self._death(call) from None
        if "failed" in reply:
            error = ServerRefused if call == "start" else ServerLost
            raise error(f"{self} failed at `{call}`: {reply['failed']:.500}")
        if "refused" in reply:
            raise ServerRefused(f"{self} refused `{call}`: {reply['refused']:.500}")
        return reply["answer"]

    def publish(
        self,
        state: Mapping[str, tuple[torch.dtype, np.ndarray]],
        version: int,
        transport: Transport,
        seconds: float,
    ) -> None:
        """Have the process hold ``state``, which are the weights of the model that it was started with, or of its
        adapter; ``transport`` is not auto.

        Raises:
            ServerLost, ServerRefused: see :meth:`ask`.
        """
        model, tensors = self._model, {name: as_tensor(dtype, array) for name, (dtype, array) in state.items()}
        assert model is not None, "it was started"
        self._written += 1
        folder = self._files(f"version-{version}-{self._written}", sum(array.nbytes for _, array in state.values()))
        try:
            if transport == "adapter":
                assert model.lora is not None, "refused where no adapter is trained"
                write_adapter(tensors, folder, lora=model.lora)
                self.ask("adapt", {"folder": str(folder), "number": self._written}, seconds)
                return
            own: Any = {"source": model.path, "trust_remote_code": model.trust_remote_code}
            own["heads"] = SPECULATION in self._spec.extra
            write_model(tensors, folder, config=self._config(), **own)
            if transport == "reload":
                self.ask("reload", {"folder": str(folder)}, seconds)
            else:
                self._end_process()
                self._start(str(folder), seconds)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End the process, and remove its files."""
        self._end_process()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start(self, folder: str, seconds: float) -> dict[str, Any]:
        ours, of_process = socket.socketpair()
        log: Any = subprocess.DEVNULL if self._log is None else open(self._log, "ab")  # noqa: SIM115  (closed below)
        try:
            self._child = subprocess.Popen(
                # -I: no folder of ours is looked through for modules; there is a `cache.py` beside this file
                [self._spec.python, "-I", process.__file__, str(of_process.fileno()), str(self._files(""))],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[of_process.fileno()],
                env=_environment(os.environ),
                start_new_session=True,  # a Ctrl-C ends a step, and not what it is written with
            )
        except OSError as error:
            ours.close()
            raise ServerRefused(f"{self} does not start: {error}; `rollout.vllm.python` is to be a Python") from error
        finally:
            of_process.close()
            if log is not subprocess.DEVNULL:
                log.close()
        self._channel, self._unread = ours, b""
        return self.ask("start", {"arguments": self._arguments(folder)}, seconds)

    def _arguments(self, folder: str) -> dict[str, Any]:
        assert self._model is not None
        spec, lora = self._spec, self._model.lora
        arguments: dict[str, Any] = {
            "model": folder,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # and not what the checkpoint's own says of sampling
            "dtype": spec.dtype,
            "trust_remote_code": self._model.trust_remote_code,
            "logprobs_mode": "processed_logprobs",
            "max_logprobs": -1,
            "enforce_eager": spec.device == "cpu",
            "disable_log_stats": True,
        }
        if spec.gpus:
            arguments["gpu_memory_utilization"] = round(0.9 * spec.gpus, 3)
        if lora is not None:
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(lora.rank)}
        return arguments | dict(spec.extra)

    def _line(self) -> bytes:
        assert self._channel is not None
        parts = [self._unread]
        while b"\n" not in parts[-1]:
            part = self._channel.recv(1 << 20)
            if not part:
                raise ConnectionResetError
            parts.append(part)
        line, _, self._unread = b"".join(parts).partition(b"\n")
        return line

    def _death(self, call: str) -> RunError:
        """What ended the process, with the last lines of its log; where it ended of itself, it would do so again."""
        assert self._child is not None
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(END_SECONDS)
        code = self._child.poll()
        killed = code is None or code < 0
        how = "has closed its socket" if code is None else f"was killed by {_signal(-code)}" if killed else (
            f"ended with exit code {code}"
        )  # fmt: skip
        shown = self._last_lines()
        error = ServerLost if killed or call != "start" else ServerRefused
        return error(f"{self} {how} at `{call}`{shown}")

    def _last_lines(self) -> str:
        if self._log is None or not self._log.is_file():
            return ""
        lines = self._log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]  # not per token
        return f"; the end of its log ({self._log}):\n" + "\n".join(lines)

    def _config(self) -> Any:
        from transformers import AutoConfig

        assert self._model is not None
        return AutoConfig.from_pretrained(self._model.path, trust_remote_code=self._model.trust_remote_code)

    @property
    def _log(self) -> Path | None:
        return None if self._spec.logs is None else Path(self._spec.logs) / f"server-{self._spec.number}.log"

    def _files(self, name: str, needed: int = 0) -> Path:
        """A folder for files that the process reads: in shared memory, or on the disk where that has no room."""
        if self._log is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=f"server-{self._spec.number}-", dir=memory_folder()))
        if needed and self._log is not None and shutil.disk_usage(self._folder).free < needed * 1.1:
            return self._log.parent / f"server-{self._spec.number}-{name}"
        return self._folder / name

    def _end_process(self) -> None:
        child, self._child = self._child, None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if child is not None:
            child.kill()
            with suppress(subprocess.TimeoutExpired):
                child.wait(END_SECONDS)
            if child.stdin is not None:
                child.stdin.close()

    def __str__(self) -> str:
        return f"vLLM server {self._spec.number}"


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Of a vLLM process: nothing that leads its Python to the packages of this one, and nothing of Ray's."""
    kept = {k: v for k, v in variables.items() if not k.startswith(("RAY_", "PYTHON")) and k != "VIRTUAL_ENV"}
    return DEFAULT_VARIABLES | kept | OWN_VARIABLES


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Of which vLLM makes room for one."""


def _lora_rank(rank: int) -> int:
    return next((room for room in LORA_RANKS if room >= rank), rank)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def rows_of(reply: Sequence[Sequence[Any]]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Completions as a process answers with them, as arrays: token ids, log-probabilities, likeliest ids."""
    return [
        (
            np.array(ids, dtype=np.int32),
            np.array(logprobs, dtype=np.float32),
            None if likeliest is None else np.array(likeliest, dtype=np.int32),
        )
        for ids, logprobs, likeliest in reply
    ]
