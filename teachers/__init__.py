"""Who grades: teachers score the student's exact token ids, in processes of their own.

scorer.py has the two Protocols that every kind of teacher is behind; kinds/ has the kinds, and says how to add one.
views.py has what a teacher reads of a rollout: the student's tokens after a prompt of its own, with a hint.
retokenized.py writes rollouts in the tokens of a teacher that has its own tokenizer, token_bytes.py and alignment.py
find where both cut at the same byte.
pool.py routes rollouts to teachers by domain, worker_pool.py hands microbatches to processes and restarts lost ones,
actor.py is what runs in a process; shared_base.py lets the student's ranks score as the base that its adapter lies on.
validate.py refuses what must not be learnt from, dry_run.py tries a teacher out
before the first step, compatibility.py compares its tokenizer and output head with the student's.
"""
