"""Several runs side by side: comparison.json, comparison.html, tables for the console and for Markdown.

``runs`` reads the folders and refuses what cannot be compared, ``groups`` makes one row of the seeds of one recipe,
``reference`` says whose teachers recovery is measured by, ``cost`` and ``parity`` what was spent; ``comparison``
composes these into a :class:`~mopd.recipes.compare.comparison.Comparison`, which ``console``, ``page`` with ``charts``,
and ``markdown`` show in the words of ``wording``. A new number of a row is a field of ``ComparedRow`` (or of its
metrics), which is a key of comparison.json with it; keys are added, never renamed.
"""
