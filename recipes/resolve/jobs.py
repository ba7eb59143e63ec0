"""Jobs that wait for each other, a few at a time: the stages of a run, the stages and runs of a study."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait


def run_jobs(
    needs: Mapping[str, Collection[str]],
    run_one: Callable[[str], None],
    *,
    parallel: int,
    goes_on: Callable[[str, BaseException], bool],
) -> dict[str, BaseException]:
    """Run every job once those that it needs are done, up to ``parallel`` at a time, each in a thread.

    Args:
        needs: by job, in the order in which they are to begin; without cycles. What is no job itself counts as done.
        run_one: runs a job to its end.
        goes_on: told of every failure at once; whether further jobs may begin.

    Returns:
        What the failed jobs raised, in the order in which they failed. A job that needs a failed one is not begun.
    """
    waiting = dict(needs)
    running: dict[Future[None], str] = {}
    failures: dict[str, BaseException] = {}
    may_begin = True
    with ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="job") as pool:
        while True:
            unfinished = {*waiting, *running.values(), *failures}
            ready = [job for job, others in waiting.items() if unfinished.isdisjoint(others)]
            for job in ready[: parallel - len(running)] if may_begin else []:
                del waiting[job]
                running[pool.submit(run_one, job)] = job
            if not running:
                return failures
            # With a time limit, so that the main thread can take a Ctrl-C.
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                if (error := future.exception()) is not None:
                    failures[job] = error
                    may_begin = goes_on(job, error) and may_begin
