"""What a token costs: pure functions of logits and a microbatch, in nats, one value per token.

`registry.py` has the rows (`LOSSES`) and binds a recipe's loss to its row; `base.py` what all estimators share;
`sampled.py`, `divergences.py`, `topk.py`, `chunked.py` and `hidden.py` the estimators; `shares.py` the rules of the
domains' shares; `drafts.py` what a guess of draft heads costs; `microbatch.py` and `teacher_tensors.py` make tensors of
rollouts. To add an estimator, write a function in a file here, a row of `LOSSES` and a class of settings in
distill/recipe/schema/loss.py.
"""
