"""What answers and scores mean: from one row a question to the seesaw, its intervals, and decisions made by them.

``evaluate`` turns rollouts into answers; ``results`` groups these and makes seesaw.json; ``seesaw`` holds the measures,
pure functions of tables of scores. ``quotients`` has intervals of means and their quotients, ``extremes`` those of what
depends on the worst domain, ``against_teachers`` names them, ``differences`` compares methods, ``power`` says what is
known and what would tell. ``compute_to_parity`` compares compute; ``selection`` and ``stop_rule`` choose a step and
end a run; ``teacher_distance`` measures them on held-out prompts, ``drafts`` says how well draft heads guess. A new
measure is a function in ``seesaw`` with its source, and a name in ``against_teachers`` or a field of
``results.OverTime``, which is a key of seesaw.json with it.
"""
