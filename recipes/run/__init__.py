"""Starts a run, or goes on with it: its stages, its measurements, its training, its results.

``launch`` is the order of things; ``job`` builds one training (a run's or a stage's) of ranks, sampler, teachers and
loop, and ``hooks`` is what the loop calls after its steps. ``preflight`` asks teachers before the first step, as
``check_deep`` does for ``mopd check --deep``; ``study`` runs many recipes. A part of a run is a file here that
``launch`` or ``job`` calls; a method that trains needs none, for it is a row of ``recipes/resolve/methods.py``.
"""
