"""A kind of a user's own, ``kind: ./file.py:NAME``: a row like those that are shipped, read in every process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mopd.distill.recipe.plugins import load_plugin, located_plugin, plugin_digest, plugin_file
from mopd.distill.types import GradingFailed, UserError
from mopd.teachers.kinds.base import TeacherKind, TeacherSetup
from mopd.teachers.scorer import Conditions, Scorer


def plugin_kind(reference: str, *, where: str) -> TeacherKind:
    """The row that ``./file.py:NAME`` means; ``where`` is the leaf of the recipe that names it, for the message.

    Raises:
        UserError: the file or the name is not there, or is no row.
    """
    row = load_plugin(reference, where=where)
    if not isinstance(row, TeacherKind):
        raise UserError(f"`{where}` is {reference!r}, which is {row!r:.60}, and must be a mopd.TeacherKind")
    return row


def refuse_changed_file(reference: str, digest: str) -> None:
    """Refuse a file of the user's own that is not as it was when the run was started, with a hash of ``digest``.

    Raises:
        GradingFailed: it is another.
    """
    file = plugin_file(reference)
    if file.is_file() and (now := plugin_digest(reference)) != digest:
        raise GradingFailed(
            f"{file} was changed during the run (a hash of it is {now}, it was {digest}); put the old one back and "
            "resume"
        )


@dataclass(frozen=True, slots=True)
class PluginSource:
    """What a kind of a user's own opens. Its row is read where it is opened: classes of such a file cannot be sent.

    Attributes:
        reference: ``/path/file.py:NAME`` of the row.
        digest: of the file; see :func:`distill.recipe.plugins.plugin_digest`.
    """

    reference: str
    digest: str
    setup: TeacherSetup

    @classmethod
    def of(cls, reference: str, setup: TeacherSetup) -> PluginSource:
        """The one of the row that ``reference`` names, as its file is now."""
        return cls(located_plugin(reference), plugin_digest(reference), setup)

    def open(self, conditions: Conditions, adapters: Sequence[str]) -> Scorer:
        """Open what the row makes, in the process that calls this.

        Raises:
            UserError: the file or the name is not there.
            GradingFailed: the file is another than when the run was started.
        """
        refuse_changed_file(self.reference, self.digest)
        row = plugin_kind(self.reference, where=f"teachers.{self.setup.name}.kind")
        return row.source(self.setup).open(conditions, adapters)

    def __str__(self) -> str:
        return f"the kind {self.reference}"
