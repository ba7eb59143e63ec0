"""The teachers of a run, in processes of their own, routed by name through the rollout's domain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from mopd.distill.recipe import FaultRecipe
from mopd.distill.types import Metrics, Payload, PayloadName, Rollout, ScoredRollout, TeacherScore, TopK, Weights
from mopd.teachers.actor import ScoreResponse, TeacherGroup, TeacherSpec
from mopd.teachers.dry_run import DryRun, dry_run, dry_run_payload
from mopd.teachers.kinds.checkpoint import microbatches
from mopd.teachers.retokenized import ChunkCount, Retokenized, Retokenizer, as_chunks, asked_payload, trained
from mopd.teachers.shared_base import SharedBase
from mopd.teachers.validate import Expected, check_answer, likeliest_of
from mopd.teachers.views import HintCount, Reads, ScoreRequest, TeacherView, length, view_of
from mopd.teachers.worker_pool import WorkerPool


@dataclass(frozen=True, slots=True)
class _Pending:
    """A microbatch on its way.

    Attributes:
        teacher: whom it was given to.
        places: of its rollouts in the step.
        rollouts: those, as the teacher was asked about them.
        views: what the teacher reads of each.
        own: the same in the teacher's own tokens; empty where they are the student's.
        response: to come.
    """

    teacher: str
    places: list[int]
    rollouts: list[Rollout]
    views: list[TeacherView]
    own: list[Retokenized]
    response: Future[ScoreResponse]


class TeacherPool:
    """A grader: every rollout goes to its domain's teachers, all teachers score at the same time.

    Args:
        specs: teachers by name.
        routes: for each domain its teachers with their weights, which sum to 1.
        payload: what the loss needs of each teacher.
        faults: what to do with a process that died, hangs or fails.
        say: tells a person of it.
        resident: how many bases are held at a time, each in a process, where that is fewer than there are; each then
            takes the place of another at most once a call of :meth:`score`. None: all.
        on_student: those that are the student without its adapter, which its own ranks score.
        student: its weights; asked for whenever these score.
        reads: what a teacher reads in the place of a prompt, by its name; the others read the student's.
        retokenizers: of teachers that read rollouts in their own tokens, by name.
    """

    def __init__(
        self,
        specs: Mapping[str, TeacherSpec],
        *,
        routes: Mapping[str, Mapping[str, float]],
        payload: PayloadName,
        faults: FaultRecipe,
        say: Callable[[str], None],
        resident: int | None = None,
        on_student: Collection[str] = (),
        student: Callable[[], Weights] | None = None,
        reads: Mapping[str, Reads] | None = None,
        retokenizers: Mapping[str, Retokenizer] | None = None,
    ) -> None:
        self._specs = dict(specs)
        self._routes = {domain: dict(weights) for domain, weights in routes.items()}
        self._payload: PayloadName = payload
        over: dict[TeacherSpec, dict[str, str | None]] = {}
        for name, spec in specs.items():
            if name not in on_student:
                over.setdefault(replace(spec, adapter=None), {})[name] = spec.adapter
        groups = [TeacherGroup(base, adapters) for base, adapters in over.items()]
        turns = [] if resident is None else [group for group in groups if group.spec.has_weights]
        shared = [([group], group.spec.replicas) for group in groups if group not in turns]
        if resident is not None and turns:
            shared.append((turns, min(resident, len(turns))))
        self._worker_pools: dict[str, WorkerPool | SharedBase] = {}
        for together, processes in shared:
            worker_pool = WorkerPool(together, processes, faults=faults, say=say)
            self._worker_pools |= {name: worker_pool for group in together for name in group.adapters}
        if on_student:
            assert student is not None, "who is scored by the student's ranks needs them"
            base = SharedBase(on_student, student, specs[next(iter(on_student))].conditions)
            self._worker_pools |= dict.fromkeys(on_student, base)
        self._seconds = dict.fromkeys(specs, 0.0)
        self._reads = dict(reads or {})
        self._retokenizers = dict(retokenizers or {})
        self._hints: dict[str, HintCount] = {}
        self._aligned: dict[str, ChunkCount] = {}

    def wait_until_ready(self) -> dict[str, int]:
        """Wait until every teacher has loaded; returns the size of each one's output vocabulary.

        Raises:
            GradingFailed: a teacher cannot load its checkpoint, or was lost more often than the fault policy bears.
        """
        sizes: dict[str, int] = {}
        for worker_pool in self._each_worker_pool():
            sizes |= worker_pool.wait_until_ready()
        return {name: sizes[name] for name in self._specs}

    def score(self, microbatches: Iterable[list[Rollout]], *, asking: PayloadName | None = None) -> list[ScoredRollout]:
        """Score rollouts as they come; the work of a microbatch is handed out before the next one is asked for.

        ``asking`` is the payload to ask for this once, where it is not what the loss needs.

        A request is one forward: its members and their padding follow from the rollouts alone, so that it may be asked
        again, and of any process, and is answered bit by bit the same (on a CPU).

        Raises:
            KeyError: a rollout's domain has no route.
            NonFinite: a teacher answered NaN or +-infinity at a trained token; names teacher, domain and rollout.
            GradingFailed: a teacher was lost more often than the fault policy bears, or answered something else than it
                was asked: see :func:`teachers.validate.check_score`.
        """
        rollouts: list[Rollout] = []
        pending: list[_Pending] = []
        with ExitStack() as until_all_is_asked:
            for worker_pool in self._each_worker_pool():
                until_all_is_asked.enter_context(worker_pool.asking())
            for microbatch in microbatches:
                first = len(rollouts)
                rollouts.extend(microbatch)
                places: dict[str, list[int]] = {}
                for place in range(first, len(rollouts)):
                    for teacher in self._routes[rollouts[place].domain]:
                        places.setdefault(teacher, []).append(place)
                for teacher, teachers_places in places.items():
                    pending += self._ask(teacher, teachers_places, rollouts, asked_payload(asking or self._payload))
        payloads: dict[tuple[int, str], Payload] = {}
        for request in pending:
            response = request.response.result()
            self._seconds[request.teacher] += response.seconds
            expected = self._expected(request.teacher, asked_payload(asking or self._payload))
            check_answer(request.teacher, request.rollouts, response.payloads, expected)
            answers = self._laid_back(request, response.payloads, asking or self._payload, learnt=asking is None)
            for place, payload in zip(request.places, answers, strict=True):
                payloads[place, request.teacher] = payload
            self._count_hints(request, rollouts, response.payloads)
        return [
            ScoredRollout(
                rollout,
                tuple((w, TeacherScore(t, payloads[i, t])) for t, w in self._routes[rollout.domain].items()),
            )
            for i, rollout in enumerate(rollouts)
        ]

    def dry_run(self, teacher: str, rollouts: Sequence[Rollout]) -> DryRun:
        """Ask every process of a teacher for the same rollouts, twice, before it is trusted with a step.

        Raises:
            NonFinite: as in :meth:`score`.
            GradingFailed: as in :meth:`score`.
        """
        worker_pool = self._worker_pools[teacher]
        wanted = dry_run_payload(self._payload)

        def ask(request: ScoreRequest) -> list[list[Payload]]:
            return [response.payloads for _ in range(2) for response in worker_pool.ask_all(teacher, request)]

        tokens = self._specs[teacher].conditions.microbatch_tokens
        expected = self._expected(teacher, wanted)
        return dry_run(
            teacher, ask, rollouts, expected, tokens=tokens, reference=partial(worker_pool.reference, teacher),
            reads=self._reads.get(teacher), retokenizer=self._retokenizers.get(teacher),
        )  # fmt: skip

    def metrics(self) -> Metrics:
        """By teacher, since the last call: microbatches that were lost and asked again, the seconds that its own
        processes worked, and, where not all are resident, how often it was loaded in the place of another; of one that
        sees a hint, what :class:`teachers.views.HintCount` counted; of one with tokens of its own, what
        :class:`teachers.retokenized.ChunkCount` did; and the number of all processes."""
        metrics: Metrics = {
            f"teacher_retries/{name}": worker_pool.take_retries(name)
            for name, worker_pool in self._worker_pools.items()
        }
        turns = {name: worker_pool for name, worker_pool in self._worker_pools.items() if worker_pool.swaps}
        metrics |= {f"teacher_swaps/{name}": worker_pool.take_swaps(name) for name, worker_pool in turns.items()}
        metrics |= {f"seconds/teacher/{name}": seconds for name, seconds in self._seconds.items()}
        metrics["teacher_processes"] = sum(worker_pool.processes for worker_pool in self._each_worker_pool())
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        for name, hint in self._hints.items():
            metrics |= hint.metrics(name)
        for name, aligned in self._aligned.items():
            metrics |= aligned.metrics(name)
        self._hints, self._aligned = {}, {}
        return metrics

    def close(self) -> None:
        """End the teachers' processes."""
        for worker_pool in self._each_worker_pool():
            worker_pool.close()

    def _each_worker_pool(self) -> list[WorkerPool | SharedBase]:
        return list(dict.fromkeys(self._worker_pools.values()))

    def _expected(self, teacher: str, payload: PayloadName) -> Expected:
        return Expected(
            payload, self._worker_pools[teacher].vocabulary(teacher), self._specs[teacher].conditions.support
        )

    def _ask(self, teacher: str, places: list[int], rollouts: list[Rollout], payload: PayloadName) -> list[_Pending]:
        """Hand rollouts out to a teacher, forward by forward."""
        pending = []
        conditions = self._specs[teacher].conditions
        support = conditions.support
        reads, retokenizer = self._reads.get(teacher), self._retokenizers.get(teacher)
        asked, own = [rollouts[place] for place in places], list[Retokenized]()
        if retokenizer is None:
            views = [view_of(rollout, None if reads is None else reads(rollout.prompt)) for rollout in asked]
        else:
            own = [retokenizer(rollout) for rollout in asked]
            asked, views = [read.rollout for read in own], [read.view for read in own]
        lengths = [length(rollout, view) for rollout, view in zip(asked, views, strict=True)]
        for members in microbatches(lengths, conditions.microbatch_tokens, packing=conditions.packing):
            taken = [asked[member] for member in members]
            token_ids = [rollout.token_ids for rollout in taken]
            given = likeliest_of(taken) if support and support.given else None
            taken_views = [views[member] for member in members]
            masks = [rollout.loss_mask for rollout in taken]
            request = ScoreRequest(token_ids, payload, given, taken_views, masks)
            response = self._worker_pools[teacher].ask(teacher, request)
            taken_places, taken_own = [places[member] for member in members], [own[m] for m in members] if own else []
            pending.append(_Pending(teacher, taken_places, taken, taken_views, taken_own, response))
        return pending

    def _laid_back(
        self, request: _Pending, payloads: Sequence[Payload], payload: PayloadName, *, learnt: bool
    ) -> list[Payload]:
        """Answers as the loss needs them: those of a teacher with tokens of its own on the student's tokens."""
        if not request.own:
            if payload != "chunked":
                return [*payloads]
            pairs = zip(request.rollouts, payloads, strict=True)
            return [as_chunks(trained(p, r), r.token_ids[r.loss_mask]) for r, p in pairs if isinstance(p, TopK)]
        retokenizer = self._retokenizers[request.teacher]
        if learnt:
            for read in request.own:
                self._aligned.setdefault(request.teacher, ChunkCount()).add(read)
        pairs = zip(request.own, payloads, strict=True)
        return [retokenizer.payload(read, answer, learnt=learnt) for read, answer in pairs]

    def _count_hints(self, request: _Pending, rollouts: list[Rollout], payloads: Sequence[Payload]) -> None:
        """Count where a teacher's gain is, of payloads that tell the log-probability of the tokens that it read."""
        retokenizer = self._retokenizers.get(request.teacher)
        for n, (place, payload) in enumerate(zip(request.places, payloads, strict=True)):
            view, read = request.views[n], request.rollouts[n]
            logprobs = None if view.hint is None else payload.sampled_logprobs(read.token_ids[read.loss_mask])
            if logprobs is not None and retokenizer is not None:
                logprobs = retokenizer.apportioned(request.own[n], logprobs)
                view = retokenizer.view(request.own[n])
            if logprobs is not None:
                self._hints.setdefault(request.teacher, HintCount()).add(rollouts[place], view, logprobs)
