"""The command line, called as a person calls it."""

from __future__ import annotations

import typer
from click.testing import Result
from typer.testing import CliRunner

from mopd.recipes import SHIPPED
from mopd.recipes.cli import ExitCodes, app

SMOKE = (SHIPPED / "smoke.yaml").read_text()


def mopd(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    """What a command says that must end with exit code 2; on one line, as consoles wrap."""
    result = mopd(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert "nothing was run" in result.output
    return result.output


def broken(error: BaseException) -> typer.Typer:
    """An app of our kind whose one command raises."""
    failing = typer.Typer(cls=ExitCodes)

    @failing.callback()
    def callback() -> None:
        """So that there are commands."""

    @failing.command()
    def fail() -> None:
        raise error

    return failing
