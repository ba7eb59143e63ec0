"""What a teacher is: a checkpoint that is loaded here, a server that is asked, a class of a user's own.

A kind is a file and a row of :data:`KINDS`, a :class:`~teachers.kinds.base.TeacherKind`: it says which keys of its
stanza it reads, what its processes open (a ``TeacherSource``, which opens a ``Scorer``: teachers/scorer.py), which
payloads it gives, whether it holds weights and can write. Everyone else asks the row, never the stanza.
A row in a file of a user's own is named in the stanza: ``kind: ./file.py:NAME``, with ``settings`` that it reads.
"""

from __future__ import annotations

from mopd.distill.recipe import TeacherRecipe
from mopd.distill.recipe.plugins import is_plugin
from mopd.teachers.kinds.base import TeacherKind, TeacherReach, TeacherSetup, TeacherUse
from mopd.teachers.kinds.checkpoint import CHECKPOINT
from mopd.teachers.kinds.custom import CUSTOM
from mopd.teachers.kinds.plugin import PluginSource, plugin_kind
from mopd.teachers.kinds.served import SERVED
from mopd.teachers.scorer import TeacherSource

__all__ = ["KINDS", "TeacherKind", "TeacherReach", "TeacherSetup", "TeacherUse", "kind_of", "make_source"]

KINDS: dict[str, TeacherKind] = {kind.name: kind for kind in (CHECKPOINT, SERVED, CUSTOM)}
"""Every shipped kind by its name."""


def kind_of(stanza: TeacherRecipe, *, teacher: str = "NAME") -> TeacherKind:
    """The row of a teacher: the one that its stanza names, or that its keys tell.

    Args:
        teacher: its name, for the message.

    Raises:
        UserError: the row is one of a user's own file, and is not there.
    """
    if is_plugin(stanza.kind_name):
        return plugin_kind(stanza.kind_name, where=f"teachers.{teacher}.kind")
    return KINDS[stanza.kind_name]


def make_source(setup: TeacherSetup) -> TeacherSource:
    """What a teacher's processes open."""
    if is_plugin(setup.stanza.kind_name):
        return PluginSource.of(setup.stanza.kind_name, setup)
    return KINDS[setup.stanza.kind_name].source(setup)
