"""One rank of the student: a process' DeepSpeed engine, and what the driver may ask of it.

Every method is collective: the driver calls it on all ranks at the same time (see ``distill.student.driver.Ranks``).

Shape legend: B sequences, T tokens of a sequence, V vocabulary, D trained domains, L mixture layers, E experts.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mopd.distill import storage
from mopd.distill.loss.microbatch import collate
from mopd.distill.loss.registry import bind
from mopd.distill.loss.stale import without_stale
from mopd.distill.models.adapters import adapter_state, merged_state, save_adapter
from mopd.distill.models.heads import without_adapters
from mopd.distill.models.packing import rows_of
from mopd.distill.student import checkpoint, engine, moe
from mopd.distill.student.drafts import DraftTrainer
from mopd.distill.student.forward import Objective, forward, read_heads
from mopd.distill.student.shards import written_earlier
from mopd.distill.student.spec import RankUpdate, StudentSpec
from mopd.distill.student.update_metrics import UpdateTotals
from mopd.distill.student.work import WorkClock
from mopd.distill.student.zero_state import load_shards, save_shard
from mopd.distill.types import Metrics, NonFinite, RunError, UserError

ADAPTER = "adapter"
"""The folder of an exported adapter, beside that of the student that it was added into."""
LAYOUT = "layout.json"
"""Says in a checkpoint what kind of ranks wrote it, after which step."""
MOVABLE = {"ranks", "zero_stage", "expert_parallel", "step"}
"""What of a layout may be another when a checkpoint is read."""


def import_libraries(device: str) -> None:
    """What a process will need as a rank, or to sample; it takes seconds of a core."""
    engine.import_deepspeed(device)
    import transformers.generation.utils
    import transformers.models.auto.modeling_auto  # noqa: F401


class StudentRank:
    """A model, its optimizer's part and its place among the ranks."""

    def __init__(self, spec: StudentSpec, listener: socket.socket | None = None) -> None:
        """``listener``: where rank 0 waits for the others; see :func:`distill.student.engine.meet`."""
        self.spec = spec
        self._clock = WorkClock()
        self._loss = bind(spec.loss)
        self.engine, self.load_balance = engine.build(spec, listener)
        self.module: torch.nn.Module = self.engine.module
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.device = self.engine.device
        heads = read_heads(spec.heads, self.device, vocabulary=spec.vocabulary)
        self._objective = Objective(self._loss, spec.temperature, heads, spec.vocabulary)
        self._drafts = self._draft_trainer() if spec.mtp.heads else None
        self._checkpoints = Path(spec.run_dir) / "checkpoints"
        self._pad_id: int = getattr(self.module.config, "pad_token_id", None) or 0
        self.progressed: Callable[[], None] = lambda: None
        """Called after every microbatch that was learnt from, so that whoever waits knows that the rank works."""

    def update(self, updates: Sequence[RankUpdate]) -> Metrics:
        """Take the optimizer steps of one step of the loop; returns their metrics, averaged over them.

        Raises:
            NonFinite: on every rank, before the weights of that optimizer step move.
        """
        self.module.train()
        with self._clock():
            metrics = [self._optimizer_step(update) for update in updates]
        having = {name: [m[name] for m in metrics if name in m] for name in metrics[-1]}
        return {name: sum(values) / len(values) for name, values in having.items()}

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """``fn(module, *args)`` with the live module, whose parameters are whole."""
        with self._clock(), self._whole():
            return fn(self.module, *args)

    def worked(self) -> float:
        """Seconds that it updated, sampled or gave out weights since the last call, without waits for other ranks."""
        return self._clock.take()

    def save(self, step: int, keep_steps: Collection[int], beside: Mapping[str, bytes] | None = None) -> None:
        """Write the checkpoint after ``step`` finished steps under a temporary name, then publish it.

        Older ones go, but for the newest few and those of the steps ``keep_steps``.

        Args:
            beside: files that go with it, by name.

        Raises:
            RunError: a newer attempt owns the run.
        """
        name = checkpoint.checkpoint_name(step)
        temporary = f"{name}.tmp-{self.spec.attempt}"

        def prepare() -> None:
            storage.check_current(self.spec.run_dir, self.spec.attempt, name)
            storage.remove(self._checkpoints / temporary)
            (self._checkpoints / temporary).mkdir(parents=True)

        self._on_first(prepare)
        own = save_shard(self.engine, self._checkpoints / temporary)
        written: list[tuple[str, storage.Digest]] = [own] * self.world
        if self.world > 1:
            dist.all_gather_object(written, own)

        def publish() -> None:
            folder = self._checkpoints / temporary
            storage.write_atomic(folder / LAYOUT, json.dumps({**self._layout(), "step": step}))
            if self._drafts is not None:
                self._drafts.save(folder)
            for file, content in (beside or {}).items():
                (folder / file).write_bytes(content)
            storage.publish(self.spec.run_dir, self.spec.attempt, folder, self._checkpoints / name, dict(written))
            checkpoint.prune(
                self.spec.run_dir,
                self._checkpoints,
                keep=self.spec.keep_checkpoints,
                keep_steps=keep_steps,
                attempt=self.spec.attempt,
            )

        self._on_first(publish)

    def damage(self, step: int) -> tuple[str, ...]:
        """What is wrong with the checkpoint after ``step`` finished steps; each rank reads its part of the files."""
        folder = self._checkpoints / checkpoint.checkpoint_name(step)
        problems = storage.damage(folder, part=self.rank, parts=self.world)
        if problems or self.rank:
            return problems
        try:
            written = json.loads((folder / LAYOUT).read_text()).get("step", step)
        except (OSError, ValueError, AttributeError) as error:
            return (f"{LAYOUT} cannot be read ({error})",)
        return () if written == step else (f"it is the checkpoint of step {written} under another name",)

    def load(self, step: int) -> None:
        """Restore the checkpoint after ``step`` finished steps, which is there.

        It may have been written by another number of ranks, under another ZeRO stage or expert parallelism; by as many
        under the same, it is restored bitwise.

        Raises:
            RunError: a file is not as a rank writes it; nothing in it was run.
            UserError: it is of another optimizer, device, dtype or adapter, or was written by an earlier version.
        """
        folder = self._checkpoints / checkpoint.checkpoint_name(step)
        if written_earlier(folder):
            raise UserError(
                f"checkpoint {folder}: written by an earlier version of mopd, in files of DeepSpeed's that this one "
                "does not read; finish the run with that version, or start from scratch with --restart"
            )
        written, here = json.loads((folder / LAYOUT).read_text()), self._layout()
        if different := [name for name in sorted({*written, *here} - MOVABLE) if written.get(name) != here.get(name)]:
            were, are = ({name: layout.get(name) for name in different} for layout in (written, here))
            raise UserError(
                f"checkpoint {folder}: written with {were}, the recipe now has {are}; "
                "resume with the old settings, or start from scratch with --restart"
            )
        load_shards(self.engine, folder)
        if self._drafts is not None:
            self._drafts.load(folder)

    def state_dict(self) -> dict[str, torch.Tensor] | None:
        """The consolidated weights under Hugging Face names, on the CPU; None on all ranks but the first.

        An adapter is added in.
        """
        with self._clock(), self._whole():
            if self.spec.lora is not None:
                return merged_state(self.module) if self.rank == 0 else None
            state = moe.gather_state_dict(self.module, keep=self.rank == 0)
        if self.rank > 0:
            return None
        return state if self._drafts is None else self._drafts.heads.with_copies(state)

    def adapter_state(self) -> dict[str, torch.Tensor] | None:
        """The weights of the adapter alone, by peft's names, on the CPU; None on all ranks but the first."""
        with self._whole():
            return adapter_state(self.module) if self.rank == 0 else None

    def export(self, path: str, beside: Mapping[str, bytes] | None = None) -> None:
        """Write a Hugging Face checkpoint with its tokenizer into ``path``, replacing what is there.

        An adapter is added in, and written by itself into the folder ``adapter`` beside it, as peft does.

        Args:
            beside: files that go with it, by name: its model card and what that shows.
        """
        if self.spec.lora is not None:
            self._export_adapter(Path(path).with_name(ADAPTER))
        state = self.state_dict()
        source, trusted = self.spec.model, self.spec.trust_remote_code
        temporary = Path(f"{path}.tmp-{self.spec.attempt}")

        def publish() -> None:
            storage.remove(temporary)
            checkpoint.export_hf(
                temporary,
                state_dict=state or {},
                model=without_adapters(self.module),
                source=source,
                own_code=trusted,
                end_token_ids=self.spec.end_token_ids,
                published={} if self._drafts is None else self._drafts.heads.published(),
            )
            for name, content in (beside or {}).items():
                (temporary / name).write_bytes(content)
            storage.publish(self.spec.run_dir, self.spec.attempt, temporary, path)

        self._on_first(publish)

    def _export_adapter(self, path: Path) -> None:
        temporary = path.with_name(f"{path.name}.tmp-{self.spec.attempt}")

        def publish() -> None:
            storage.remove(temporary)
            save_adapter(self.module, temporary)
            storage.publish(self.spec.run_dir, self.spec.attempt, temporary, path)

        with self._whole():
            self._on_first(publish)

    def close(self) -> None:
        """Leave the process group; the rank is of no use afterwards."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _optimizer_step(self, update: RankUpdate) -> Metrics:
        # Keyed, not streamed: a resumed run draws the same dropout, should the model have any.
        torch.manual_seed(hash((self.spec.seed, update.number, self.rank)))
        totals = UpdateTotals(self.spec.domains, self.device)
        for i in range(len(update.microbatches)):
            self.engine.set_gradient_accumulation_boundary(i == len(update.microbatches) - 1)
            self._forward_backward(update, i, totals)
        counts_LE = totals.all_reduce(self.load_balance.counts_LE)
        where = f"in step {update.step + 1} (optimizer step {update.number + 1}); the weights were not moved"
        bad = totals.non_finite_domains()
        if bad:
            raise NonFinite(f"loss of domain {', '.join(bad)} is NaN or infinite {where}")
        lr = engine.learning_rate(self.spec.optimizer, update.number, update.total)
        if self._drafts is not None and not self._drafts.gather():
            self._drafts.drop()
            raise NonFinite(f"gradient of the draft heads is NaN or infinite {where}")
        norm = 0.0 if self.spec.heads_alone else engine.step(self.engine, lr)
        if norm is None:
            domains = ", ".join(self.spec.domains)
            raise NonFinite(f"gradient is NaN or infinite, though the loss of every domain ({domains}) is not, {where}")
        moved = {**totals.metrics(), "grad_norm": norm, "lr": lr, **self.load_balance.apply(counts_LE)}
        if self._drafts is None:
            return moved
        return moved | self._drafts.step(lr / self.spec.optimizer.lr * self.spec.mtp.lr)

    def _forward_backward(self, update: RankUpdate, i: int, totals: UpdateTotals) -> None:
        microbatch = collate(
            update.microbatches[i],
            token_weight=update.token_weight,
            domains=self.spec.domains,
            pad_id=self._pad_id,
            payload=self._loss.payload,
            reward_advantages=None if update.reward_advantages is None else update.reward_advantages[i],
            device=self.device,
            needs_each_teacher=self._loss.spec.needs_each_teacher,
            reference=self._loss.reference,
        )
        packing = self.spec.engine.packing
        rows = rows_of(microbatch.token_ids_BT, microbatch.attention_mask_BT, packing=packing)
        if update.microbatches[i] and not self.spec.heads_alone:
            self.load_balance.count(rows.inputs["attention_mask"])
        drafts = self._drafts
        with nullcontext() if drafts is None else drafts.watching(), torch.set_grad_enabled(not self.spec.heads_alone):
            token_loss = forward(self.engine, microbatch, rows, self._objective, totals)
        self.load_balance.pause()
        learnt, token_loss = without_stale(microbatch, token_loss, self.spec.stale)
        totals.add(learnt, token_loss)
        # DeepSpeed averages gradients over ranks; the weights g_d / N_d already hold the whole batch's denominator.
        loss = (token_loss.loss_BT * learnt.weights_BT).sum() * self.world
        if not self.spec.heads_alone:
            self.engine.backward(loss)
        if drafts is not None:
            drafts.learn(microbatch, rows, tuple(s.rollout.index for s in update.microbatches[i]), step=update.step)
        self.progressed()

    def _draft_trainer(self) -> DraftTrainer:
        """The student's draft heads, with their optimizer.

        Raises:
            UserError: it cannot have them, or its ranks hold no layer whole.
        """
        spec = self.spec
        if spec.engine.zero_stage == 3:
            raise UserError(
                "`mtp.heads` needs the student's embedding and output head whole on every rank, and zero_stage 3 "
                "keeps a part of each; use zero_stage 2, or set `mtp.heads: 0`"
            )
        if spec.lora is not None:
            raise UserError(
                "`mtp.heads` and `lora` are both set, and draft heads are not exported with an adapter; remove one"
            )
        return DraftTrainer(
            self.module,
            spec.model,
            spec.mtp,
            domains=spec.domains,
            temperature=spec.temperature,
            vocabulary=spec.vocabulary,
            seed=spec.seed,
            device=self.device,
        )

    def _layout(self) -> dict[str, int | str]:
        settings = self.spec.engine
        heads = {"draft_heads": self.spec.mtp.heads} if self.spec.mtp.heads else {}
        return {
            **heads,
            "ranks": self.world,
            "zero_stage": settings.zero_stage,
            "expert_parallel": settings.expert_parallel,
            "optimizer": self.spec.optimizer.name,
            "device": self.spec.device,
            "dtype": str(engine.model_dtype(settings, self.spec.device)).removeprefix("torch."),
            **({} if self.spec.lora is None else {"lora": self.spec.lora.model_dump_json()}),
        }

    def _whole(self) -> AbstractContextManager[Any]:
        return engine.gathered(self.engine) if self.spec.engine.zero_stage == 3 else nullcontext()

    def _on_first(self, fn: Callable[[], None]) -> None:
        """Run ``fn`` on rank 0 while the others wait; its failure is everybody's."""
        failure: list[BaseException | None] = [None]
        if self.rank == 0:
            try:
                fn()
            except (OSError, RunError) as error:
                failure[0] = RunError(f"{fn.__qualname__} failed: {error}") if isinstance(error, OSError) else error
        if self.world > 1:
            dist.broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            raise failure[0]
