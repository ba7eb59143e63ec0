"""What can go wrong, by who can fix it. Imports nothing, so that whoever reads a recipe loads no model."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can fix, found before anything was spent. Exit code 2.

    The message names the thing, what it has, what was needed and what to do; several problems are listed together.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class NoHeadroom(UserError):
    """Teachers gain less over the base than the recipe asks, so nothing is trained; found once both are measured."""


class RunError(Exception):
    """The world broke during a run (a process died, a disk filled). Exit code 1; the last checkpoint resumes."""


class NonFinite(RunError):
    """NaN or infinity in a loss, a score or a gradient; raised before the weights move."""


class GradingFailed(RunError):
    """A grader broke, and the student did not: the loop saves the finished steps before it ends."""


class Interrupted(Exception):
    """Somebody asked the run to stop; the step was finished and saved. Exit code 130."""
