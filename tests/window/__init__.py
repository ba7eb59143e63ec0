"""The window study: does a short window hold where a longer one collapses? `make window` goes on where it stopped.

questions.py draws what is asked, parts.py says which models are trained and measured, study.py runs what is
missing and shows what is there. A part is one model on one seed; its row goes to docs/data/window.jsonl, and no weights
are kept.
"""
