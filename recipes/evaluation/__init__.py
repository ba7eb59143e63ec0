"""Measuring models on held-out prompts.

evaluator.py asks every model each question once and keeps the answers, teacher_distance.py has the teachers grade what
the student writes on held-out prompts, costs.py counts what steps and evaluations spend, cache.py shares answers among
the runs of a study, command.py is `mopd eval`, and harness.py that of
lm-evaluation-harness' tasks. To measure something more of each answer: a field of
:class:`distill.metrics.evaluate.Evaluation`; of each evaluation: a metric that :meth:`Evaluator.evaluate` returns.
"""
