"""The model that learns: the only room that knows DeepSpeed.

`driver.py` runs in the driver's process: it plans each step (`plan.py`) and tells the ranks what to do (`spec.py`).
`rank.py` is one rank's process, with its `engine.py`, its `forward.py` and `update_metrics.py`; `drafts.py` trains
draft heads; `moe.py` keeps mixtures of experts in balance; `work.py` counts how long a rank computes; `checkpoint.py`
writes checkpoints and exports. A new ability of a rank is a method of `StudentRank` that the driver calls on all ranks.
"""
