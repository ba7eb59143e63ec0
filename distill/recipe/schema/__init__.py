"""The recipe's schema: every leaf with its default, its unit and, where there is one, its source.

recipe.py has a whole recipe. Its sections: student.py (with models.py, optimizers.py and lora.py), domains.py,
teachers.py (with faults), loss.py, rollout.py (with vllm.py), drafts.py, run.py (with evaluate and stop), track.py and
stages.py (with merge).
"""
