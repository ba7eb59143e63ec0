"""A checkpoint's shards: each rank writes what it owns of every trained parameter, any number of ranks reads it.

Where a rank's piece of a parameter lies is told in the whole model's own terms, by Hugging Face names, so whoever reads
needs to know neither how many ranks wrote nor how they had shared the model among them. A shard is a safetensors file:
it holds numbers alone, and nothing of it can be run. DeepSpeed's own universal checkpoint was not taken: it is made of
files that are pickles, and from ZeRO-3 it loses the count of steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mopd.distill.storage import Digest, HashingFile
from mopd.distill.types import RunError

WEIGHT = "weight"
"""The name of a parameter's own float32 values among its states; the optimizer names the others."""
BUFFER = "buffer"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As safetensors names them."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Elements that follow each other in a rank's tensor and in the whole parameter, both flattened.

    Attributes:
        here: number of the first in the rank's.
        there: number of the first in the whole one.
    """

    here: int
    there: int
    count: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank's parameter lies in the whole model.

    Attributes:
        name: of the whole parameter, as transformers has it.
        stretches: of all the rank's elements, ascending in ``here``.
    """

    name: str
    stretches: tuple[Stretch, ...]

    def part(self, start: int, count: int) -> Iterator[Stretch]:
        """The stretches of ``count`` elements of the rank's parameter; ``here`` is counted from ``start``."""
        for stretch in self.stretches:
            first, end = max(stretch.here, start), min(stretch.here + stretch.count, start + count)
            if first < end:
                yield Stretch(first - start, stretch.there + first - stretch.here, end - first)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a rank owns of a parameter: consecutive elements of it, flattened.

    Attributes:
        own_name: of the parameter, on this rank.
        start: number of the first element in the rank's parameter.
        states: by name, :data:`WEIGHT` among them, the elements' values; all of one length.
        counts: of the optimizer, for the whole parameter: how many steps it took.
    """

    own_name: str
    place: Place
    start: int
    states: Mapping[str, Tensor]
    counts: Mapping[str, float]


def shard_name(rank: int, ranks: int) -> str:
    """A rank's file."""
    return f"shard-{rank:05d}-of-{ranks:05d}.safetensors"


def write_shard(path: Path, pieces: Sequence[Piece], buffers: Mapping[str, Tensor]) -> Digest:
    """Write a rank's pieces and, by name, buffers that are the same on all ranks; returns the file's digest.

    Tensors go to the file one after the other, so no second copy of all of them is made.
    """
    tensors: dict[str, Tensor] = {f"{BUFFER}/{name}": tensor for name, tensor in buffers.items()}
    index = []
    for piece in pieces:
        keys = {state: f"{state}/{piece.own_name}" for state in piece.states}
        tensors |= {keys[state]: tensor for state, tensor in piece.states.items()}
        stretches = [(s.here, s.there, s.count) for s in piece.place.part(piece.start, len(piece.states[WEIGHT]))]
        index.append({"name": piece.place.name, "keys": keys, "stretches": stretches, "counts": dict(piece.counts)})
    header: dict[str, Any] = {"__metadata__": {"format": "1", "pieces": json.dumps(index)}}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the data begins at a multiple of 8 bytes
    with open(path, "wb") as file:
        hashing = HashingFile(file)
        hashing.write(len(encoded).to_bytes(8, "little"))
        hashing.write(encoded)
        for tensor in tensors.values():
            hashing.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashing.digest()


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stretch of a piece in a file; ``here`` counts from the piece's first element."""

    stretch: Stretch
    file: Any
    keys: Mapping[str, str]


class Shards:
    """The shards of a checkpoint, to read from; see :func:`open_shards`.

    Attributes:
        states: names of what there is of a parameter besides its weight, for example ``exp_avg``.
        buffers: the model's, by name.
    """

    def __init__(self, files: Mapping[Path, Any]) -> None:
        self.states: set[str] = set()
        self.buffers: dict[str, Tensor] = {}
        self._counts: dict[str, dict[str, float]] = {}
        self._stored: dict[str, list[_Stored]] = {}
        for path, file in files.items():
            with _as_written(path):
                self._add(file)

    def _add(self, file: Any) -> None:
        for key in file.keys():  # noqa: SIM118  (it is no mapping)
            if key.startswith(f"{BUFFER}/"):
                self.buffers[key.partition("/")[2]] = file.get_tensor(key)
        for piece in json.loads(file.metadata()["pieces"]):
            self.states |= piece["keys"].keys() - {WEIGHT}
            counts = self._counts.setdefault(piece["name"], {})
            counts |= {name: max(value, counts.get(name, 0)) for name, value in piece["counts"].items()}
            stored = (_Stored(Stretch(*numbers), file, piece["keys"]) for numbers in piece["stretches"])
            self._stored.setdefault(piece["name"], []).extend(stored)

    def names(self) -> set[str]:
        """Of the whole parameters."""
        return {*self._stored}

    def counts(self, name: str) -> dict[str, float]:
        """How many steps the optimizer took of a parameter; nothing before its first."""
        return self._counts[name]

    def fill(self, piece: Piece) -> None:
        """Copy a piece's values into its states; what the optimizer had none of yet is set to 0.

        Raises:
            RunError: the shards do not hold all of its elements.
        """
        wanted = filled = 0
        for state in piece.states.keys() - {WEIGHT}:
            piece.states[state].zero_()
        for stretch in piece.place.part(piece.start, len(piece.states[WEIGHT])):
            wanted += stretch.count
            for stored in self._stored.get(piece.place.name, ()):
                first = max(stretch.there, stored.stretch.there)
                end = min(stretch.there + stretch.count, stored.stretch.there + stored.stretch.count)
                if first >= end:
                    continue
                filled += end - first
                begin = stored.stretch.here + first - stored.stretch.there
                into = slice(stretch.here + first - stretch.there, stretch.here + end - stretch.there)
                for state in piece.states.keys() & stored.keys.keys():
                    values = stored.file.get_slice(stored.keys[state])[begin : begin + end - first]
                    piece.states[state][into] = values.to(piece.states[state].device)
        if filled != wanted:
            raise RunError(
                f"the checkpoint's weights are not those of the student: it holds {filled:,} of the {wanted:,} "
                f"elements of {piece.place.name} that are asked for"
            )


@contextmanager
def open_shards(folder: Path) -> Iterator[Shards]:
    """The shards in a checkpoint's folder.

    Raises:
        RunError: one is no safetensors file, or lacks what :func:`write_shard` writes.
    """
    with ExitStack() as stack:
        files = {}
        for path in sorted(folder.glob("shard-*.safetensors")):
            with _as_written(path):
                files[path] = stack.enter_context(safe_open(path, framework="pt"))
        yield Shards(files)


@contextmanager
def _as_written(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is not what mopd wrote: it cannot be read ({type(error).__name__}: {error!s:.200}); nothing in it "
            "was run"
        ) from None


def written_earlier(folder: Path) -> bool:
    """Whether a checkpoint was written by a version of mopd that left its files to DeepSpeed."""
    return any(folder.glob("*model_states.pt")) and not any(folder.glob("shard-*"))


def same_names(written: Iterable[str], here: Iterable[str]) -> None:
    """Refuse a checkpoint of other parameters.

    Raises:
        RunError: naming one of those that differ.
    """
    if wrong := sorted({*written} ^ {*here}):
        raise RunError(
            f"the checkpoint's weights are not those of the student ({len(wrong)} differ, such as {wrong[0]})"
        )
