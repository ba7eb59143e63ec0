"""Where an array's numbers lie: in the memory of Ray's object store, or in a copy of this process' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def stored(array: np.ndarray) -> bool:
    """Whether an array is a view of the memory that this process shares with Ray's object store."""
    first = array.__array_interface__["data"][0]
    shared = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "plasma" in line]
    spans = [tuple(int(end, 16) for end in span.split("-")) for span in shared]
    return any(start <= first and first + array.nbytes <= end for start, end in spans)
