"""Environments of the package ``verifiers``: its own rollouts, tools and rewards, with the student as the model.

An episode is one of the package's: its ``Env`` plays a task of its taskset, and every completion that it asks for goes
to the endpoint of :mod:`endpoint`, which makes it a turn. What the package calls a harness, the loop that runs tools
between turns, is the package's own chat loop, run in this process instead of in one an episode.

Source: the package ``verifiers`` 0.4.0, its modules ``v1.env``, ``v1.harness`` and ``v1.harnesses.null``.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import functools
import importlib
import importlib.machinery
import itertools
import os
import secrets
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, get_args

import httpx

from mopd.distill.types import UserError
from mopd.rollouts.environments.base import Turn
from mopd.rollouts.environments.dialogue import (
    DialogueEpisode,
    End,
    Request,
    Session,
    first_request,
    read_messages,
)
from mopd.rollouts.environments.endpoint import MODEL, student_endpoint
from mopd.rollouts.environments.tools import Tool
from mopd.rollouts.tasks.base import TaskSplit, deal_in_order, place_in_turn, refuse_unknown_split, split_of

EXTRA = "pip install 'mopd[envs]'"
TASKS = 10_000
"""Of a taskset at most; those after them are left where they are."""
KEY = "MOPD_STUDENT_TOKEN"
"""The variable of this process in which the package finds the endpoint's token."""
HARNESS = "mopd_chat"
MODULES = (
    "configs.agent", "dialects.chat", "envs.single_agent.env", "harnesses.null.harness", "utils.decorators",
    "utils.loaders",
)  # fmt: skip
"""Of the package, what is used here."""
KEPT_REQUESTS = 4096
STOP_SECONDS = 20.0


class VerifiersEnvironment:
    """Satisfies :class:`base.Environment`: the tasks of a taskset, drawn by a keyed number and split by what they ask.

    Args:
        name: of the taskset: a module that is installed, or ``owner/name`` of the hub whose package is.
        args: of the package's environment, for example ``{"taskset": {"level": 2}, "agent": {"max_turns": 4}}``.
        seconds: that the first request of an episode may take.

    Raises:
        UserError: the package or the taskset is not there, or what it plays cannot be trained here.
    """

    stored = True
    """Its rollouts are kept; see :mod:`kept`."""

    def __init__(self, name: str, args: Mapping[str, Any], *, seconds: float) -> None:
        self.name = f"verifiers:{name}"
        self._seconds = seconds
        self._vf = _package()
        self._env = self._made(name, args)
        self._tasks = self._read_tasks()
        self._splits = self._dealt()
        self._hub = _Hub(self._env)
        self._token = os.environ.setdefault(KEY, secrets.token_urlsafe(24))
        self._known = functools.lru_cache(maxsize=KEPT_REQUESTS)(self._asked_first)

    def reset(self, *, seed: int, split: str, index: int, easy: bool = False) -> DialogueEpisode:
        """See :class:`base.Environment`; an easy form there is none.

        Raises:
            UserError: no such split, it has fewer tasks than are asked for, or one asks for nothing.
        """
        refuse_unknown_split(self.name, split)
        numbers = self._splits[split]
        place = place_in_turn(f"{self.name}/{seed}", split, index, len(numbers))
        if place is None:
            raise UserError(
                f"{self.name} has {len(numbers)} tasks for {split}, and task {index + 1} is asked for; lower "
                f"`evaluate.{split}_prompts` to {len(numbers)}, or take a taskset of more"
            )
        messages, tools = self._known(numbers[place])
        return DialogueEpisode(functools.partial(self._start, numbers[place]), messages, tools)

    # ---- what is played

    def _made(self, name: str, args: Mapping[str, Any]) -> Any:
        loaders = self._vf.utils.loaders
        _register_harness(self._vf)
        given = {**args, "taskset": {**args.get("taskset", {}), "id": name}}
        try:
            kind = loaders.env_config_type(name, given.get("id", ""))
            bundled = loaders.default_harness_id(name) != "bash"
            for role, default in _seats(kind()).items():
                seat = {"runtime": {"type": "subprocess"}, **given.get(role, {})}
                if default.harness is None and not bundled:
                    seat.setdefault("harness", {"id": HARNESS})
                given[role] = seat
            env = loaders.load_environment(loaders.resolve_env_config(given))
        except Exception as error:  # of the package, of pydantic, and of a taskset's own code
            raise UserError(f"{self.name} cannot be made with {dict(args)}: {error!s:.600}") from error
        self._check_seats(env)
        return env

    def _check_seats(self, env: Any) -> None:
        seats = _seats(env.config)
        acting = [role for role, seat in seats.items() if seat.model is None]
        if len(acting) != 1:
            raise UserError(
                f"{self.name} has {len(acting)} seats that the student would play ({', '.join(acting) or 'none'}); "
                "give every other a `model` and a `client` in `args`"
            )
        for role, harness in env._harnesses.items():
            if harness.EXECUTES_CODE and seats[role].runtime.type == "subprocess":
                raise UserError(
                    f"{self.name}: the harness {harness.config.id!r} of {role!r} would run what a model writes on this "
                    f"machine; give `args: {{{role}: {{runtime: {{type: docker}}}}}}`, or the harness `null`"
                )

    def _read_tasks(self) -> Sequence[Any]:
        try:
            tasks = list(itertools.islice(self._env.taskset, TASKS))
        except Exception as error:
            raise UserError(f"the tasks of {self.name} cannot be read: {error!s:.600}") from error
        if not tasks:
            raise UserError(f"{self.name} has no tasks")
        return tasks

    def _dealt(self) -> dict[str, list[int]]:
        """The numbers of the tasks of each split: by hash of what a task asks, or where that leaves a split without a
        task, which happens to small tasksets, by the order of the hashes, in the same parts.
        """
        alike: dict[str, list[int]] = {}
        for number, task in enumerate(self._tasks):
            data = task.data
            asked = f"{data.system_prompt}\n{data.prompt_text}" if data.prompt else str(number)
            alike.setdefault(asked, []).append(number)
        if len(alike) < len(get_args(TaskSplit)):
            raise UserError(
                f"{self.name} has {len(alike)} different tasks, too few for one each to learn from, to validate and to "
                "test on; take a taskset of more"
            )
        splits = {asked: split_of(asked) for asked in alike}
        if set(splits.values()) != set(get_args(TaskSplit)):
            splits = deal_in_order(alike)
        return {
            split: [number for asked, numbers in alike.items() if splits[asked] == split for number in numbers]
            for split in get_args(TaskSplit)
        }

    # ---- the first request of a task

    def _asked_first(self, number: int) -> tuple[list[Turn], list[Tool]]:
        """The first messages and tools of a task: read off the task where they follow from it, or else asked for."""
        data = self._tasks[number].data
        if self._follows(number):
            wire = [] if data.system_prompt is None else [{"role": "system", "content": data.system_prompt}]
            if isinstance(data.prompt, str):
                wire.append({"role": "user", "content": data.prompt})
            else:
                wire += [self._vf.dialects.chat.message_to_wire(message) for message in data.prompt]
            return list(read_messages(wire)), list(self._tools)
        request = self._probed(number)
        return list(request.messages), list(request.tools)

    def _follows(self, number: int) -> bool:
        task = self._tasks[number]
        plain = type(self._env) is self._vf.envs.single_agent.env.SingleAgentEnv
        ours = all(harness.config.id == HARNESS for harness in self._env._harnesses.values())
        changed = self._vf.utils.decorators.discover_decorated(task, "intercept")
        return plain and ours and bool(task.data.prompt) and not changed

    @functools.cached_property
    def _tools(self) -> tuple[Tool, ...]:
        """Of every task; servers tell them."""
        config = self._env.taskset.config
        served = [*self._env.taskset.toolsets(config), *self._tasks[0].toolsets(self._tasks[0].config)]
        return self._probed(0).tools if served else ()

    def _probed(self, number: int) -> Request:
        try:
            return first_request(functools.partial(self._start, number), seconds=self._seconds)
        except TimeoutError as error:
            raise UserError(f"task {number} of {self.name} asked for nothing in {self._seconds:g} s") from error
        except Exception as error:
            raise UserError(f"task {number} of {self.name} did not begin: {error}") from error

    # ---- an episode

    def _start(self, number: int, session: Session) -> Callable[[], None]:
        episode = self._hub.submit(self._play(self._tasks[number], session))

        def stop() -> None:
            episode.cancel()

        return stop

    async def _play(self, task: Any, session: Session) -> None:
        endpoint, names = student_endpoint(), list[str]()
        client = self._vf.configs.client.EvalClientConfig(base_url=endpoint.url, api_key_var=KEY)
        context = self._vf.clients.ModelContext(model=MODEL, client=client)

        def minted(trace: Any) -> None:
            names.append(trace.id)
            endpoint.open(session, token=self._token, name=trace.id)

        try:
            await self._hub.ready()
            episode = await self._env.run_episode(task, context, on_trace=minted)
            session.put(self._verdict(episode))
        except Exception as error:
            session.put(End(why=f"{type(error).__name__}: {error!s:.300}"))
        finally:
            for name in names:
                endpoint.close(self._token, name)

    def _verdict(self, episode: Any) -> End:
        if not episode.ok:
            errors = [error for each in (episode, *episode.traces) if (error := each.last_error) is not None]
            why = f"{errors[0].type}: {errors[0].message!s:.300}" if errors else "ended badly and said no reason"
            return End(why=why)
        seats = _seats(self._env.config)
        return End(reward=sum(trace.reward for trace in episode.traces if seats[trace.agent.name].model is None))


class _Hub:
    """The event loop of an environment, on which it serves its shared tools and plays its episodes."""

    def __init__(self, env: Any) -> None:
        self._env, self._lock = env, threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broken: Exception | None = None

    def submit(self, coroutine: Any) -> Future[Any]:
        """Run a coroutine, which has to await :meth:`ready` first."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True, name="verifiers").start()
                self._stop, self._ready = asyncio.Event(), asyncio.Event()
                self._served = asyncio.run_coroutine_threadsafe(self._serve(), self._loop)
                # Before Python ends the threads of executors, with which the package clears up.
                getattr(threading, "_register_atexit", atexit.register)(self._end)
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def ready(self) -> None:
        """Wait until shared tools are served.

        Raises:
            Exception: whatever kept them from it.
        """
        await self._ready.wait()
        if self._broken is not None:
            raise self._broken

    async def _serve(self) -> None:
        try:
            async with self._env.serving():
                self._ready.set()
                await self._stop.wait()
        except Exception as error:
            self._broken = error
        finally:
            self._ready.set()

    def _end(self) -> None:
        """End the servers of shared tools, which would outlive this process."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        with contextlib.suppress(Exception):  # they are on their own then, and this process ends
            self._served.result(timeout=STOP_SECONDS)


def _seats(config: Any) -> dict[str, Any]:
    return importlib.import_module("verifiers.v1.configs.agent").agent_config_fields(config)


def _package() -> Any:
    """The package's ``v1``.

    Raises:
        UserError: it is not installed, or an older one.
    """
    try:
        for name in MODULES:
            importlib.import_module(f"verifiers.v1.{name}")
        return importlib.import_module("verifiers.v1")
    except ImportError as error:
        raise UserError(f"environments of verifiers need its package, 0.4 ({error}); install it: {EXTRA}") from error


# ---- the chat loop of the package, in this process


def _register_harness(vf: Any) -> None:
    """Offer :func:`_harness` under its name: the package finds what it plays with as modules by name."""
    name = f"verifiers.v1.harnesses.{HARNESS}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update(ChatHarness=_harness(vf), __all__=["ChatHarness"])
        sys.modules[name] = module


def _harness(vf: Any) -> Any:
    null = vf.harnesses.null.harness

    class ChatHarness(null.NullHarness):
        """The package's ``null`` harness, whose chat loop runs here and not in a process of its own."""

        async def setup(self, runtime: Any) -> None:
            """Nothing is installed."""

        async def launch(
            self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: dict[str, str], data: Any,
            tool_interception_url: str | None = None,
        ) -> Any:  # fmt: skip
            system, prompt = self.resolve_prompt(data)
            messages = [] if not system else [{"role": "system", "content": system}]
            if isinstance(prompt, str):
                messages.append({"role": "user", "content": prompt})
            else:
                messages += [vf.dialects.chat.message_to_wire(message) for message in prompt or ()]
            specs = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
            try:
                await _chat(_program(vf), ctx.model, endpoint, secret, specs, messages, tool_interception_url)
            except SystemExit as end:  # as the program ends
                return vf.runtimes.ProgramResult(int(end.code or 0), "", "the chat loop lost its endpoint")
            return vf.runtimes.ProgramResult(0, "", "")

    return ChatHarness


@functools.cache
def _program(vf: Any) -> Any:
    """The module of the package's chat loop. The package joins it with two others into one script, so each of them uses
    the others' names without importing them; here they are given to it."""
    utils = vf.harnesses.utils
    modules = (utils.core, utils.compaction, utils.mcp)
    for module in modules:
        for name, value in {name: value for other in modules for name, value in vars(other).items()}.items():
            vars(module).setdefault(name, value)
    return utils.core


async def _chat(
    program: Any,
    model: str,
    endpoint: str,
    secret: str,
    specs: dict[str, Any],
    messages: list[Any],
    gate: str | None,
) -> None:
    """What the package's chat program does with its arguments."""
    async with contextlib.AsyncExitStack() as stack:
        # Plain HTTP to this machine: no certificates are read, which takes longer than an episode.
        http = await stack.enter_async_context(httpx.AsyncClient(verify=False, timeout=None))
        client = importlib.import_module("openai").AsyncOpenAI(
            base_url=endpoint, api_key=secret, http_client=http, max_retries=0
        )
        tools, dispatch, servers = await program.connect_mcp({"mcpServers": specs}, stack)
        compactor = program.Compactor(client, model, tools, False, None)
        compactor.note_good(messages)
        args = argparse.Namespace(
            tool_interception_url=gate or "", api_key=secret, bash=False, edit=False, search=False
        )
        await program.run_chat_loop(args, compactor, messages, dispatch, servers, http)
