"""Writes rollouts of several turns: any engine writes the turns, environments answer them, and all goes round by round.

In a round every episode that is not over gets its next turn, in the batches of the engine, and then its environment's
answer, all side by side. An episode that is over holds nobody. Who is in a round follows from what was written and
answered alone, so a run that is resumed writes the same where tools answer the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from mopd.distill.types import EpisodeRecord, Finish, Prompt, Rollout, RunError, Sampler, UserError, Weights
from mopd.rollouts.engines.base import EXAM_STEP, SamplerSettings
from mopd.rollouts.environments.base import Step, Turn
from mopd.rollouts.environments.runner import Failed, Runner
from mopd.rollouts.environments.task import EnvironmentTask, Opened
from mopd.rollouts.environments.tools import ERROR, Tool
from mopd.rollouts.environments.turns import joined
from mopd.rollouts.tokenizer import encode

TURN_KEYS = 1 << 24
"""Numbers of rollouts of a turn: a turn's randomness is keyed by turn x this + the rollout's number in its step."""
SHOWN_CHARS = 4000
"""Of a message of an environment, of which the end is left out where it is longer; the model reads how much is."""
ATTEMPTS = 2
"""How often an episode is opened before another takes its place."""
REPLACEMENTS = 2
"""How many others may take the place of an episode in turn, before it counts as failed for good."""
NEXT_TURN = re.compile(r"/turn-\d+$")
"""The end of the id of a prompt that is an episode under way, of which one more turn is written and no answer asked."""


class TurnWriter(Protocol):
    """What an engine's sampler needs to write turns."""

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """See :class:`distill.types.Sampler`."""
        ...

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """See :class:`distill.types.Sampler`."""
        ...

    def write(
        self, prompts: Sequence[Prompt], numbers: Sequence[int], *, step: int, greedy: bool, max_new_tokens: int
    ) -> list[Rollout]:
        """One completion of each prompt, in order, of ``max_new_tokens`` at most.

        Args:
            numbers: different ones; they key each completion's randomness in the place of its number in the step.

        One that evaluations can sample from takes ``exam``, too: as :class:`rollouts.engines.base.ExamDecoding` says.
        """
        ...


NOT_BEGUN = EpisodeRecord(0.0, "turns", 0)


@dataclass(frozen=True, slots=True)
class _How:
    """How episodes are played.

    Attributes:
        greedy: the likeliest token each time.
        measured: an episode that fails for good counts as wrong, and is one rollout, the last where it was cut.
        exam: sampled as evaluations want it; see :class:`rollouts.engines.base.ExamDecoding`.
    """

    step: int
    greedy: bool
    measured: bool
    exam: bool = False

    @property
    def written(self) -> dict[str, Any]:
        """What an engine is told of it; ``exam`` alone where it is one."""
        return {"step": self.step, "greedy": self.greedy, **({"exam": True} if self.exam else {})}


@dataclass(slots=True)
class _Live:
    """An episode under way.

    Attributes:
        ids, mask, logprobs, support: of the sequence so far; a cut begins another. ``support`` has
            a row a trained token.
        messages: the conversation so far.
        tools: what may be called.
        done: sequences that a cut ended.
    """

    prompt: Prompt
    task: EnvironmentTask
    index: int
    group: int
    episode: Opened
    messages: list[Turn]
    tools: tuple[Tool, ...]
    ids: list[int]
    mask: list[bool]
    logprobs: list[float]
    support: list[np.ndarray] = field(default_factory=list)
    wrote: list[Turn] = field(default_factory=list)
    text: str = ""
    done: list[Rollout] = field(default_factory=list)
    record: EpisodeRecord = NOT_BEGUN
    finish: Finish = "length"
    version: tuple[int, int] = (0, 0)
    attempts: int = 1
    replacements: int = 0
    over: bool = False


class EpisodeSampler:
    """Satisfies :class:`distill.types.Sampler`: prompts of environments become episodes, the others single answers, and
    those that end in the middle of an episode (:data:`NEXT_TURN`) its next turn alone.

    Args:
        writer: of an engine; or :class:`GoldWriter`.
        tasks: the environments by domain.
        tokenizer: the student's.
        samples_per_prompt: episodes of each prompt, where they are not greedy.
        max_new_tokens: of an answer to a prompt without an environment.
        end_token_ids: any of them ends a turn.
    """

    def __init__(
        self,
        writer: TurnWriter,
        tasks: Mapping[str, EnvironmentTask],
        tokenizer: PreTrainedTokenizerBase,
        *,
        samples_per_prompt: int,
        max_new_tokens: int,
        end_token_ids: Sequence[int],
    ) -> None:
        self._writer, self._tasks, self._tokenizer = writer, dict(tasks), tokenizer
        self._samples, self._max_new_tokens = samples_per_prompt, max_new_tokens
        self._ends = frozenset(end_token_ids)
        self._runners = {domain: Runner(task.limits.seconds) for domain, task in tasks.items()}

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """See :class:`distill.types.Sampler`."""
        self._writer.load_weights(weights, version=version)

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """See :class:`distill.types.Sampler`. Greedy, an episode is one rollout, the last one where it was cut.

        Raises:
            RunError: every episode of a domain failed.
        """
        how = _How(step, greedy=greedy, measured=greedy)
        yield self._sampled(prompts, how, samples=1 if greedy else self._samples)

    def examine(self, prompts: Sequence[Prompt], *, step: int, sample: int | None) -> Iterator[list[Rollout]]:
        """One rollout a prompt as evaluations want them: as :meth:`sample` greedily, or sampled as they say.

        Args:
            sample: its number, which keys its randomness; None: greedily.

        Raises:
            RunError: every episode of a domain failed.
        """
        keyed = step if sample is None else EXAM_STEP + sample
        yield self._sampled(prompts, _How(keyed, greedy=sample is None, measured=True, exam=True), samples=1)

    def _sampled(self, prompts: Sequence[Prompt], how: _How, *, samples: int) -> list[Rollout]:
        planned = [(prompt, group, group * samples + k) for group, prompt in enumerate(prompts) for k in range(samples)]
        live = [self._open(prompt, group, index) for prompt, group, index in planned if self._is_episode(prompt)]
        try:
            self._play([episode for episode in live if not episode.over], how)
        finally:
            self._close([episode for episode in live if not episode.over])
        _refuse_if_all_failed(live)
        written = {episode.index: self._rollouts(episode, measured=how.measured) for episode in live}
        single = [each for each in planned if each[2] not in written]
        for tokens in sorted({self._answer_tokens(prompt) for prompt, _, _ in single}):
            alike = [each for each in single if self._answer_tokens(each[0]) == tokens]
            prompts, numbers = [prompt for prompt, _, _ in alike], [index for _, _, index in alike]
            answers = self._writer.write(prompts, numbers, max_new_tokens=tokens, **how.written)
            for (_, group, index), rollout in zip(alike, answers, strict=True):
                written[index] = [replace(rollout, group=group)]
        in_order = [rollout for _, _, index in planned for rollout in written[index]]
        if len(in_order) > len(planned):  # some were cut
            in_order = [replace(rollout, index=number) for number, rollout in enumerate(in_order)]
        return in_order

    def _is_episode(self, prompt: Prompt) -> bool:
        return prompt.domain in self._tasks and NEXT_TURN.search(prompt.id) is None

    def _answer_tokens(self, prompt: Prompt) -> int:
        """The limit of what is written after a prompt that no environment answers."""
        task = self._tasks.get(prompt.domain)
        return self._max_new_tokens if task is None else task.limits.turn_tokens

    # ---- an episode's life

    def _open(self, prompt: Prompt, group: int, index: int) -> _Live:
        task = self._tasks[prompt.domain]
        try:
            opened = task.restart(prompt)
        except UserError as error:
            opened = Opened(_Unopened(str(error)), (), ())
        n = len(prompt.token_ids)
        return _Live(
            prompt, task, index, group, opened, list(opened.messages), opened.tools, [*prompt.token_ids], [False] * n,
            [0.0] * n,
        )  # fmt: skip

    def _play(self, live: list[_Live], how: _How) -> None:
        while live := [episode for episode in live if not episode.over]:
            self._write(live, how)
            asked = [episode for episode in live if not episode.over]
            self._answer(asked, measured=how.measured)
            self._close([episode for episode in asked if episode.over])

    def _close(self, live: Sequence[_Live]) -> None:
        for domain, runner in self._runners.items():
            runner.close([each.episode.episode for each in live if each.prompt.domain == domain])

    def _write(self, live: Sequence[_Live], how: _How) -> None:
        """Every episode's next message, in the batches of the engine; those of one limit together."""
        for tokens in sorted({episode.task.limits.turn_tokens for episode in live}):
            writers = [episode for episode in live if episode.task.limits.turn_tokens == tokens]
            prompts = [replace(e.prompt, token_ids=tuple(e.ids)) for e in writers]
            numbers = [e.index + TURN_KEYS * (e.record.turns + e.task.limits.turns * e.replacements) for e in writers]
            rollouts = self._writer.write(prompts, numbers, max_new_tokens=tokens, **how.written)
            for episode, rollout in zip(writers, rollouts, strict=True):
                self._take(episode, rollout)

    def _take(self, episode: _Live, rollout: Rollout) -> None:
        """Put what was written after the sequence, and read it."""
        before, written = len(episode.ids), len(rollout.token_ids) - len(episode.ids)
        episode.ids = rollout.token_ids.tolist()
        episode.mask += [True] * written
        episode.logprobs += rollout.sampler_logprobs[before:].tolist()
        if rollout.support_ids is not None:
            episode.support.append(rollout.support_ids[before:])
        episode.finish = rollout.finish
        oldest = rollout.version[0] if not episode.record.turns else min(episode.version[0], rollout.version[0])
        episode.version = oldest, max(episode.version[1] if episode.record.turns else -1, rollout.version[1])
        episode.text = self._text(rollout.token_ids[before:].tolist())
        message = episode.task.turns.read(episode.text, episode.tools)
        episode.wrote.append(message)
        calls = len(message.get("tool_calls") or ()) + ("malformed" in message)
        record = episode.record
        episode.record = replace(record, turns=record.turns + 1, tool_calls=record.tool_calls + calls)

    def _text(self, written: list[int]) -> str:
        kept = written[:-1] if written and written[-1] in self._ends else written  # not per token
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))

    def _answer(self, live: Sequence[_Live], *, measured: bool) -> None:
        """What the environments say to what was written; malformed calls are answered here."""
        for domain, runner in self._runners.items():
            asked = [episode for episode in live if episode.prompt.domain == domain]
            sound = [episode for episode in asked if "malformed" not in episode.wrote[-1]]
            answers = dict(zip(map(id, sound), runner.steps([_asking(episode) for episode in sound]), strict=True))
            for episode in asked:
                answer = answers[id(episode)] if id(episode) in answers else _malformed(episode)
                if isinstance(answer, Failed):
                    answer = self._again(episode, answer, runner)
                if isinstance(answer, Failed):
                    self._replace(episode, measured=measured)
                    continue
                try:
                    self._take_answer(episode, answer)
                except ValueError as error:  # the chat template does not write what the environment said
                    _count(episode, Failed("answer", str(error)))
                    self._replace(episode, measured=measured)

    def _again(self, episode: _Live, failed: Failed, runner: Runner) -> Step | Failed:
        """Open an episode anew and tell it all that was written; what was written stays as it is."""
        _count(episode, failed)
        answer: Step | Failed = failed
        while episode.attempts < ATTEMPTS:
            episode.attempts += 1
            self._close([episode])
            answer = self._told_again(episode, runner)
            if not isinstance(answer, Failed):
                return answer
            _count(episode, answer)
        return answer

    def _told_again(self, episode: _Live, runner: Runner) -> Step | Failed:
        try:
            episode.episode = episode.task.restart(episode.prompt)
        except UserError as error:
            return Failed("raised", str(error))
        answer: Step | Failed = Failed("answer", "was told nothing")
        for message in episode.wrote:
            if "malformed" not in message:
                (answer,) = runner.steps([_asking(episode, message)])
            if isinstance(answer, Failed):
                break
        return answer

    def _replace(self, episode: _Live, *, measured: bool) -> None:
        """Put another in the place of one that failed for good; where models are measured, it counts as wrong."""
        failures, number = episode.record.failures, episode.replacements + 1
        while not measured and number <= REPLACEMENTS:
            try:
                other = episode.task.another(episode.prompt, number, self._tokenizer)
            except UserError:
                failures, number = (*failures, "raised"), number + 1
                continue
            self._close([episode])
            new = self._open(other, episode.group, episode.index)
            for name in type(new).__dataclass_fields__:
                setattr(episode, name, getattr(new, name))
            episode.record = EpisodeRecord(0.0, "turns", 0, failures=failures)
            episode.replacements = number
            return
        episode.record = replace(episode.record, failures=failures, ended="failed", reward=0.0)
        episode.over = True

    def _take_answer(self, episode: _Live, answer: Step) -> None:
        record, limits = episode.record, episode.task.limits
        if answer.done:
            assert answer.reward is not None
            episode.record, episode.over = replace(record, reward=float(answer.reward), ended="done"), True
            return
        new = () if answer.restart else answer.messages
        errors = sum(str(message["content"]).startswith(ERROR) for message in new)
        record = replace(
            record, tool_errors=record.tool_errors + errors, failed_first=record.failed_first | answer.failed
        )
        episode.record = record
        if record.turns >= limits.turns:
            episode.over = True
            return
        shown = [_shortened(message) for message in answer.messages]
        wrote, turns, tools = episode.wrote[-1], episode.task.turns, episode.tools
        if answer.restart:
            episode.messages, episode.tools = list(shown), answer.tools
            self._cut(episode)
            return
        cut = turns.drops(episode.messages, shown, tools, episode.text)
        after = joined(episode.ids, turns.after(episode.messages, shown, tools))
        episode.messages += [{key: value for key, value in wrote.items() if key != "malformed"}, *shown]
        if cut:
            self._cut(episode)
        elif len(episode.ids) + len(after) + limits.turn_tokens > limits.tokens + len(episode.prompt.token_ids):
            episode.record, episode.over = replace(record, ended="tokens"), True
        else:
            episode.ids += after
            episode.mask += [False] * len(after)
            episode.logprobs += [0.0] * len(after)

    def _cut(self, episode: _Live) -> None:
        """End the sequence, and begin the next with the conversation as the template writes it from here on."""
        episode.done.append(self._sequence(episode, f"{episode.prompt.id}/turn-{episode.record.turns}"))
        text = episode.task.turns.prompt(episode.messages, episode.tools)
        episode.ids = list(encode(self._tokenizer, text))
        episode.mask, episode.logprobs, episode.support = [False] * len(episode.ids), [0.0] * len(episode.ids), []
        limits = episode.task.limits
        if len(episode.ids) + limits.turn_tokens > limits.tokens + len(episode.prompt.token_ids):
            episode.record, episode.over = replace(episode.record, ended="tokens"), True

    def _rollouts(self, episode: _Live, *, measured: bool) -> list[Rollout]:
        last = [self._sequence(episode, episode.prompt.id)] if any(episode.mask) else []
        sequences = [replace(rollout, episode=episode.record) for rollout in [*episode.done, *last]]
        if measured:
            return [replace(sequences[-1], prompt=replace(sequences[-1].prompt, id=episode.prompt.id))]
        return sequences

    def _sequence(self, episode: _Live, name: str) -> Rollout:
        first = episode.mask.index(True)
        prompt = replace(episode.prompt, id=name, token_ids=tuple(episode.ids[:first]))
        mask_T = np.array(episode.mask)
        support_TK = None
        if episode.support:
            rows_NK = np.concatenate(episode.support)
            support_TK = np.zeros((len(mask_T), rows_NK.shape[1]), dtype=np.int32)
            support_TK[mask_T] = rows_NK
        return Rollout(
            prompt=prompt,
            token_ids=np.array(episode.ids, dtype=np.int32),
            loss_mask=mask_T,
            sampler_logprobs=np.array(episode.logprobs, dtype=np.float32),
            finish=episode.finish,
            version=episode.version,
            group=episode.group,
            index=episode.index,
            support_ids=support_TK,
            episode=episode.record,
        )


class _Unopened:
    """Stands for an episode that cannot be opened: its first step fails, as one that breaks does."""

    def __init__(self, why: str) -> None:
        self._why = why
        self.messages: Sequence[Turn] = ()
        self.tools: Sequence[Tool] = ()

    async def step(self, message: Turn) -> Step:
        raise RunError(self._why)


def _count(episode: _Live, failed: Failed) -> None:
    episode.record = replace(episode.record, failures=(*episode.record.failures, failed.reason))


def _asking(episode: _Live, message: Turn | None = None) -> Callable[[], Any]:
    opened, answered = episode.episode, episode.wrote[-1] if message is None else message
    return lambda: opened.step(answered)


def _malformed(episode: _Live) -> Step:
    why = f"{ERROR}{episode.wrote[-1]['malformed']}"
    return Step(({"role": "tool", "content": why},), failed=True)


def _shortened(message: Turn) -> Turn:
    content = str(message["content"])
    if len(content) <= SHOWN_CHARS:
        return dict(message)
    left_out = len(content) - SHOWN_CHARS
    return {**message, "content": f"{content[:SHOWN_CHARS]}\n[{left_out} more characters are left out]"}


def _refuse_if_all_failed(live: Sequence[_Live]) -> None:
    """Nothing is learnt of an environment that never works.

    Raises:
        RunError: every episode of a domain failed for good.
    """
    for domain in dict.fromkeys(episode.prompt.domain for episode in live):
        of_domain = [episode for episode in live if episode.prompt.domain == domain]
        if all(episode.record.ended == "failed" for episode in of_domain):
            reasons = sorted({reason for episode in of_domain for reason in episode.record.failures})
            raise RunError(
                f"the environment of domain {domain!r} failed in all of {len(of_domain)} episodes and in those that "
                f"took their place ({', '.join(reasons)}); correct it, and resume"
            )


def with_episodes(
    writer: Sampler, settings: SamplerSettings, *, tasks: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Sampler:
    """A sampler that also plays episodes, where any domain is an environment; else the sampler as it is.

    Args:
        tasks: of all domains.

    Raises:
        UserError: there are environments, and the engine cannot write turns.
    """
    environments = {domain: task for domain, task in tasks.items() if isinstance(task, EnvironmentTask)}
    if not environments:
        return writer
    if not callable(getattr(writer, "write", None)):
        raise UserError(
            f"domains {', '.join(environments)} are environments, and what samples ({type(writer).__name__}) "
            "cannot write turns; take `rollout.engine: in_process`"
        )
    return EpisodeSampler(
        cast(TurnWriter, writer),
        environments,
        tokenizer,
        samples_per_prompt=settings.samples_per_prompt,
        max_new_tokens=settings.decoding.max_new_tokens,
        end_token_ids=settings.decoding.end_token_ids,
    )


class GoldWriter:
    """Writes what a script says, turn by turn: the actor of the supervised method. It needs no weights.

    Args:
        closing: the token that closes an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, EnvironmentTask], closing: int) -> None:
        self._tokenizer, self._tasks, self._closing = tokenizer, dict(tasks), closing
        self._version = -1
        self._scripts: dict[str, Sequence[str]] = {}  # by the ids of prompts, of episodes under way

    def load_weights(self, weights: Weights, *, version: int) -> None:
        """Note the version that rollouts carry."""
        self._version = version

    def sample(self, prompts: Sequence[Prompt], *, step: int, greedy: bool = False) -> Iterator[list[Rollout]]:
        """One gold answer a prompt."""
        yield self.write(prompts, range(len(prompts)), step=step, greedy=greedy, max_new_tokens=0)

    def write(
        self, prompts: Sequence[Prompt], numbers: Sequence[int], *, step: int, greedy: bool, max_new_tokens: int
    ) -> list[Rollout]:
        """The gold answer of each prompt, or the next message of its episode's script; as long as it is."""
        return [self._rollout(prompt, number) for prompt, number in zip(prompts, numbers, strict=True)]

    def _rollout(self, prompt: Prompt, number: int) -> Rollout:
        task = self._tasks.get(prompt.domain)
        answer = prompt.answer if task is None else self._message(prompt, task, number // TURN_KEYS)
        written = (*encode(self._tokenizer, answer), self._closing)
        n = len(prompt.token_ids)
        return Rollout(
            prompt=prompt,
            token_ids=np.array([*prompt.token_ids, *written], dtype=np.int32),
            loss_mask=np.arange(n + len(written)) >= n,
            sampler_logprobs=np.zeros(n + len(written), dtype=np.float32),
            finish="eos",
            version=(self._version, self._version),
            group=number,
            index=number,
        )

    def _message(self, prompt: Prompt, task: EnvironmentTask, turn: int) -> str:
        turn %= task.limits.turns  # an episode that took another's place has numbers after those of that one
        script = self._scripts.pop(prompt.id, None) or task.script(prompt)
        if turn < len(script) - 1:
            self._scripts[prompt.id] = script
        return script[turn]


def gold_episodes(tasks: Mapping[str, EnvironmentTask], tokenizer: PreTrainedTokenizerBase, closing: int) -> Sampler:
    """The sampler of gold answers where some domains are environments, whose scripts are played.

    Args:
        closing: the token that closes an answer.
    """
    return EpisodeSampler(
        GoldWriter(tokenizer, tasks, closing),
        tasks,
        tokenizer,
        samples_per_prompt=1,
        max_new_tokens=0,
        end_token_ids=(closing,),
    )
