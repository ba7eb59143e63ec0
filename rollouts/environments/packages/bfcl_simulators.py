"""A program that runs the simulators and the checker of ``bfcl-eval``: a process of its own for every question.

It is run as a script and imports nothing of mopd, so it is small; it reads the package once, and forks. A fork answers
one question and ends, so nothing is left of one case in the next, and what a model's call costs, a power of a hundred
digits say, is paid there: the fork is ended by limits of time and memory, and its neighbours answer on.

A question is a JSON object on a Unix socket: the ``case`` of the package's file, ``turns`` (the calls that were made,
as texts, by turn and message), ``answers`` (the package's own calls by turn, where the verdict is wanted) and
``seconds``. The reply is ``{"results": [...]}``, the texts that the last message's calls gave, or ``{"error": {...}}``,
``{}`` where the checker finds it right; or ``{"broken": "..."}``.

Source: ``execute_multi_turn_func_call`` and ``multi_turn_checker`` of bfcl-eval 2026.3.23.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import socketserver
import sys
import threading
from typing import Any

MEMORY_BYTES = 2 << 30
WAITING = 4096
"""Questions that may wait to be taken."""
CHECKER = "bfcl_eval.eval_checker.multi_turn_eval"
MODULES = (
    f"{CHECKER}.multi_turn_checker",
    *(
        f"{CHECKER}.func_source_code.{name}"
        for name in (
            "gorilla_file_system", "math_api", "message_api", "posting_api", "ticket_api", "trading_bot",
            "travel_booking", "vehicle_control",
        )
    ),
)  # fmt: skip
"""Of the package, what is read before the first fork."""
NAME = "student"
"""By which the package tells the instances of one model from another's; a fork has one."""


def results_of(case: dict[str, Any], turns: list[list[list[str]]]) -> list[str]:
    """What the calls of the last message give, after all calls before them."""
    execute = importlib.import_module(f"{CHECKER}.multi_turn_utils").execute_multi_turn_func_call
    results: list[str] = []
    for calls in [calls for turn in turns for calls in turn]:
        results, _ = execute(
            func_call_list=calls,
            initial_config=case["initial_config"],
            involved_classes=case["involved_classes"],
            model_name=NAME,
            test_entry_id=case["id"],
            long_context="long_context" in case["id"],
        )
    return results


def error_of(case: dict[str, Any], turns: list[list[list[str]]], answers: list[list[str]]) -> dict[str, str]:
    """Why the checker finds the calls wrong; empty where they are right."""
    check = importlib.import_module(f"{CHECKER}.multi_turn_checker").multi_turn_checker
    verdict = check(turns, answers, case, case["id"].rsplit("_", 1)[0], NAME)
    return {} if verdict["valid"] else {"type": str(verdict["error_type"]), "message": str(verdict["error_message"])}


def reply_to(question: dict[str, Any]) -> dict[str, Any]:
    """The reply to a question; what the package raises is ``broken``."""
    try:
        if question.get("answers") is None:
            return {"results": results_of(question["case"], question["turns"])}
        return {"error": error_of(question["case"], question["turns"], question["answers"])}
    except Exception as error:
        return {"broken": f"{type(error).__name__}: {error!s:.300}"}


class Question(socketserver.StreamRequestHandler):
    """Answers one question, in the fork."""

    def handle(self) -> None:
        """Read it, set the limits that it names, and reply."""
        question = json.loads(self.rfile.readline())
        seconds = max(1, int(question["seconds"]))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        signal.alarm(2 * seconds)  # of what waits and uses no processor; its default action ends the fork
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        self.wfile.write(json.dumps(reply_to(question)).encode())


class Forks(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """A server that forks for every question."""

    request_queue_size = WAITING
    max_children = 16


def main(path: str) -> None:
    """Serve on a Unix socket until standard input ends, which it does with whoever started this."""
    for name in MODULES:
        importlib.import_module(name)

    def ends_with_its_starter() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    with Forks(path, Question) as server:
        threading.Thread(target=ends_with_its_starter, daemon=True).start()
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
