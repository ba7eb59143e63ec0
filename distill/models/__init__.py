"""Models of transformers, loaded whole: nothing here trains.

`load.py` loads, `adapters.py` holds LoRA adapters, `heads.py` reads output heads and runs in their place, `mtp.py` has
draft heads, `merging.py` adds models up, `attention.py` computes attention by blocks, `packing.py` lays rows one after
another, `flops.py` counts, `families.py` knows what differs between families. To add a family whose experts can be
spread or whose attributes have other names, add a row of `FAMILIES`; one whose draft heads are to be known, a row of
`DRAFT_FAMILIES`.
"""
