"""Progress for people: live on a terminal, a readable log elsewhere."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console
from screen_kit import on_terminal

from mopd.distill.tracking.console import Progress, live_lines


class Clock:
    """A clock that is told the time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def plain(clock: Clock) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(Console(file=out, width=200), interval_seconds=10.0, now=clock), out


def test_without_a_terminal_a_line_every_ten_seconds() -> None:
    clock = Clock()
    progress, out = plain(clock)
    task = progress.task("base", 100)
    for step in range(1, 31):
        clock.seconds = float(step)
        task.advance(step, {"loss": 1 / step})
    assert out.getvalue().splitlines() == [
        "base  1/100  loss 1  1m 39s left",
        "base  11/100  loss 0.0909  1m 29s left",
        "base  21/100  loss 0.0476  1m 19s left",
    ]


def test_an_evaluation_is_a_line_at_once_and_scores_stay() -> None:
    clock = Clock()
    progress, out = plain(clock)
    task = progress.task("mopd", 10)
    clock.seconds = 2.0
    task.advance(1, {"loss": 0.5, "kl/math": 0.1, "kl/code": 0.3, "token_share/math": 0.4})
    task.advance(1, {"score/math": 0.855, "score/code": 0.79, "length/math": 12.0})
    clock.seconds = 20.0
    task.advance(2, {"loss": 0.25, "kl/math": 0.1, "kl/code": 0.1})
    task.note("measuring the student on test prompts")
    task.advance(10, {})
    task.close()
    assert out.getvalue().splitlines() == [
        "mopd  1/10  loss 0.5  kl 0.2  0m 18s left",
        "mopd  1/10  loss 0.5  kl 0.2  math 85.5  code 79.0  0m 18s left",
        "mopd  2/10  loss 0.25  kl 0.1  math 85.5  code 79.0  1m 20s left",
        "mopd  2/10  loss 0.25  kl 0.1  math 85.5  code 79.0  measuring the student on test prompts",
        "mopd  10/10  loss 0.25  kl 0.1  math 85.5  code 79.0  done",
    ]


def test_time_left_of_a_resumed_run_counts_from_where_it_goes_on() -> None:
    clock = Clock()
    progress, _ = plain(clock)
    task = progress.task("mopd", 200)
    clock.seconds = 100.0  # loading; no step was taken in this time
    task.start_at(100)
    clock.seconds = 160.0
    task.advance(101, {})
    assert task.status == "1h 39m left"


def test_time_left_follows_the_pace_of_the_last_steps() -> None:
    clock = Clock()
    progress, _ = plain(clock)
    task = progress.task("mopd", 1000)
    for step in range(1, 501):
        clock.seconds += 10.0 if step <= 400 else 1.0
        task.advance(step, {})
    assert task.status == "8m 20s left"


def test_a_stopped_task_says_so() -> None:
    progress, out = plain(Clock())
    progress.task("base", 10).close()
    assert out.getvalue() == "base  0/10  stopped\n"


def test_two_stages_in_two_threads_do_not_mix_their_lines() -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, width=200), interval_seconds=0.0)

    def run(name: str) -> None:
        task = progress.task(name, 200)
        for step in range(1, 201):
            task.advance(step, {"loss": 0.5, "score/math": 0.5})
        task.close()

    threads = [threading.Thread(target=run, args=(name,)) for name in ("math", "code")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = out.getvalue().splitlines()
    for name in ("math", "code"):
        own_lines = [line.split()[1] for line in lines if line.startswith(f"{name}  ")]
        assert own_lines == [f"{step}/200" for step in range(1, 201)] + ["200/200"]
    assert len(lines) == 402


def test_a_terminal_shows_both_tasks_and_what_is_printed_above() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, color_system=None)
    with Progress(console, title="quickstart") as progress:
        math, code = progress.task("math", 10), progress.task("code", 20)
        math.advance(4, {"loss": 0.125, "score/math": 0.5})
        code.advance(7, {"loss": 0.25})
        progress.print("a line with [brackets] stays as it is")
    shown = out.getvalue()
    assert shown.startswith("quickstart\n")
    assert "a line with [brackets] stays as it is" in shown
    for part in ("4/10", "loss 0.125  math 50.0", "7/20", "loss 0.25"):
        assert part in shown.rsplit("brackets", 1)[1], part


def test_printing_without_a_terminal_keeps_long_lines_whole() -> None:
    progress, out = plain(Clock())
    progress.print("word " * 100)
    assert out.getvalue().count("\n") == 1


# ---- on a terminal of 80 columns

LIVE = """
import sys, time
from mopd.distill.tracking.console import Progress, live_lines
clock = [0.0]
scores = {f"score/{name}": 0.9 for name in DOMAINS} | {"score/code": 0.4}
recovery = {f"recovery/{name}": 0.97 for name in DOMAINS} | {"recovery/code": 0.41}
with Progress(title="quickstart", now=lambda: clock[0]) as progress:
    stage = progress.task("instruction-following-specialist", 12000)
    stage.advance(12000, {"loss": 0.021, "score/code": 0.95})
    stage.close()
    task = progress.task("quickstart", 300)
    for step in range(1, 138):
        clock[0] += 2.0
        task.advance(step, {"loss": 0.431, **{f"kl/{name}": 0.12 for name in DOMAINS}})
        if step % 20 == 0:
            task.advance(step, scores | recovery)
            progress.print(f"step {step} was measured")
            time.sleep(0.3)  # the display looks four times a second
    print("the result")
"""


@pytest.mark.parametrize("domains", [("math", "code", "reasoning"), tuple(f"domain_{n}" for n in range(23))])
def test_the_line_of_an_80_column_terminal_has_step_bar_time_left_and_worst_domain(domains: tuple[str, ...]) -> None:
    screen, output = on_terminal(LIVE.replace("DOMAINS", repr([*domains, "code"])))
    assert screen.wrapped == 0
    assert screen.lines[0] == "quickstart"
    assert [line for line in screen.lines if "was measured" in line] == [
        f"step {step} was measured" for step in range(20, 137, 20)
    ]
    stage, run = [line for line in screen.lines if "─" in line or "━" in line]
    assert stage == "instruction-following-s…  ━━━━━━━━━━  12000/12000  done         lowest code 95.0"
    assert run == "quickstart                ━━━━━─────      137/300  5m 26s left  worst code 41%"
    assert "the result" in "\n".join(screen.lines) + output


def test_a_line_is_never_wider_than_its_terminal() -> None:
    clock = Clock()
    progress, _ = plain(clock)
    tasks = [progress.task("a-name-that-is-longer-than-any-name", 1000), progress.task("b", 4)]
    for step in (1, 3):
        clock.seconds = 40.0 * step
        for task in tasks:
            task.advance(step, {"score/math": 0.5, "recovery/a-domain-with-a-long-name": 0.25, "loss": 1.0})
    tasks[1].note("measuring the student on test prompts")
    for width in range(30, 200):
        lines = live_lines(tasks, width).plain.split("\n")
        assert max(map(len, lines)) <= width
        assert all(f"{task.step}/{task.total}" in line for task, line in zip(tasks, lines, strict=True))
        if width >= 80:
            assert all("─" in line for line in lines), width
            assert "left" in lines[0]
            assert "worst a-domain-with-a… 25%" in lines[0]
            assert "measuring the student on test prompts" in lines[1]
    assert "loss 1  math 50.0" in lines[0]
