"""The algorithm, the student and the measures; imports nothing else of this project.

`loop.py` is the training loop on one screen; it meets samplers and graders through the Protocols of `types.py`.
`recipe/` says what may be written in YAML, `loss/` what a token costs, `models/` loads models, `student/` trains one,
`metrics/` says what scores mean, `tracking/` records. The import contracts in pyproject.toml hold the directions.
"""
