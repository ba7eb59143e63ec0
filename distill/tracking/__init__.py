"""The records of a run: what is written into its folder, and who else is shown it.

``tracker`` writes metrics.jsonl and its neighbours (``jsonl``) and passes every row on to the sinks; ``ledger`` adds up
what a run cost; ``console`` is the progress that people watch. A sink is a class with the methods of ``sink.Sink``: a
file, and a row of ``sinks.SINKS``, or ``./file.py:NAME`` in ``track.sinks`` of a recipe. W&B is one (``wandb_sink``,
and ``wandb_workspace``, which saves its panels), the trackers of accelerate the others (``accelerate_sink``, and
``tracker_process``, in which each runs).
"""
