"""Code of a user's own ends in a message, whatever it does; a Ctrl-C stays one, and other people's alarms go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mopd.distill.errors import UserError
from mopd.distill.recipe import plugins
from mopd.distill.recipe.plugins import load_plugin, own_code


@pytest.mark.parametrize(
    "error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), ValueError("no"), MemoryError()]
)
def test_whatever_is_raised_is_a_refusal(error: BaseException) -> None:
    with pytest.raises(UserError, match=rf"^its draw: it .*{type(error).__name__}"), own_code("its draw", seconds=60):
        raise error


def test_a_refusal_passes_as_it_is() -> None:
    with pytest.raises(UserError, match=r"^as it is$"), own_code("its draw", seconds=60):
        raise UserError("as it is")


def test_a_ctrl_c_stays_one() -> None:
    def press() -> None:
        with own_code("its draw", seconds=60):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            press()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_never_ends_is_ended_also_where_it_catches_everything() -> None:
    caught = 0

    def hold_on() -> None:
        nonlocal caught
        with own_code("its draw", seconds=0.1, remedy="try less"):
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    caught += 1
                    if caught == 2:
                        raise

    with pytest.raises(UserError, match=r"longer than 0\.1 seconds; try less$"):
        hold_on()


def test_an_alarm_of_somebody_else_rings_when_it_would_have() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    left = signal.setitimer(signal.ITIMER_REAL, 0.2)[0]
    try:
        with own_code("its draw", seconds=60):
            pass
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2
        time.sleep(1)
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


def test_in_a_thread_errors_are_refusals_too() -> None:
    problems: list[str] = []

    def ask() -> None:
        try:
            with own_code("its draw", seconds=60):
                sys.exit(3)
        except UserError as error:
            problems.extend(error.problems)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert problems == ["its draw: it ends the process (SystemExit: 3); fix it"]


def test_the_first_of_what_is_printed_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with own_code("its draw", seconds=60):
        print("a" * plugins.PRINTED + "b")
        stream = sys.stdout
    printed = capsys.readouterr().out
    assert printed.startswith("a" * plugins.PRINTED + "\n(2 more letters")  # b, and the end of its line
    print("whole", file=stream)  # a logger that was made there keeps its stream
    assert capsys.readouterr().out == "whole\n"


def test_a_file_that_failed_is_read_again_once_it_is_fixed(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("raise SystemExit(0)")
    with pytest.raises(UserError, match=r"own\.py cannot be imported: it ends the process"):
        load_plugin(f"{file}:NAME", where="loss.estimator")
    file.write_text("NAME = 3")
    assert load_plugin(f"{file}:NAME", where="loss.estimator") == 3
