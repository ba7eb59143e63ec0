"""Environments that other packages bring, played by those packages themselves: a file each.

verifiers_hub.py has the tasksets of ``verifiers``, bfcl.py the cases of several turns of ``bfcl-eval``, whose
simulators run in the processes of bfcl_simulators.py. Each is imported by name and only where a recipe asks for it. To
add one: a file with its class, a kind in ``KINDS_ELSEWHERE`` of :mod:`distill.recipe.source`, and a row of ``PACKAGES``
in :mod:`rollouts.environments`.
"""
