"""What a teacher is: a checkpoint that is loaded here, a server that is asked, a class of a user's own.

A kind is a file and a row of :data:`KINDS`, a :class:`~teachers.kinds.base.TeacherKind`: it says which keys of its
stanza it reads, what its processes open (a ``TeacherSource``, which opens a ``Scorer``: teachers/scorer.py), which
payloads it gives, whether it holds weights and can write. Everyone else asks the row, never the stanza.
"""

from __future__ import annotations

from mopd.distill.recipe import TeacherRecipe
from mopd.teachers.kinds.base import TeacherKind, TeacherReach, TeacherSetup, TeacherUse
from mopd.teachers.kinds.checkpoint import CHECKPOINT
from mopd.teachers.kinds.custom import CUSTOM
from mopd.teachers.kinds.served import SERVED
from mopd.teachers.scorer import TeacherSource

__all__ = ["KINDS", "TeacherKind", "TeacherReach", "TeacherSetup", "TeacherUse", "kind_of", "make_source"]

KINDS: dict[str, TeacherKind] = {kind.name: kind for kind in (CHECKPOINT, SERVED, CUSTOM)}
"""Every shipped kind by its name."""


def kind_of(stanza: TeacherRecipe) -> TeacherKind:
    """The row of a teacher, told from the keys of its stanza."""
    if stanza.endpoint is not None:
        return SERVED
    return CHECKPOINT if stanza.scorer is None else CUSTOM


def make_source(setup: TeacherSetup) -> TeacherSource:
    """What a teacher's processes open."""
    return kind_of(setup.stanza).source(setup)
