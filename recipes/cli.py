"""The command line: ``mopd run | check | compare | audit | eval | schema ...``, and where exit codes are decided.

0: done, by the recipe's stop rule too. 1: the run broke, the last checkpoint resumes. 2: the user can fix it.
130: interrupted.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from mopd.recipes import SHIPPED

DONE, RUN_BROKE, USER_CAN_FIX, INTERRUPTED = 0, 1, 2, 130


class ExitCodes(TyperGroup):
    """Turns what a command raises into a message on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the module's docstring for the codes."""
        from mopd.distill.errors import Interrupted, RunError, UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            _say_problems(error.problems, "; nothing was run")
            raise typer.Exit(USER_CAN_FIX) from error
        except Interrupted as error:
            _say(f"interrupted: {error}", f"go on with: {_command()}")
            raise typer.Exit(INTERRUPTED) from error
        except RunError as error:
            _say(f"the run broke: {error}", f"the last checkpoint resumes it: {_command()}")
            raise typer.Exit(RUN_BROKE) from error
        except BrokenPipeError:
            raise  # whoever read our output has gone; click ends in silence
        except OSError as error:
            _say(f"the machine refused: {error}", f"once that is fixed, the last checkpoint resumes it: {_command()}")
            raise typer.Exit(RUN_BROKE) from error
        except KeyboardInterrupt as error:
            _say("interrupted", f"go on from the last checkpoint with: {_command()}")
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=ExitCodes,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Multi-teacher on-policy distillation: several specialists into one student, without the seesaw.",
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="a shipped recipe's name, or a path to a .yaml")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="changes, for example run.steps=50")
]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="write what is found as JSON; - is standard output")
]
OutOption = Annotated[Path | None, typer.Option(help="the run's folder; runs/NAME unless given")]


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: OutOption = None,
    restart: Annotated[bool, typer.Option("--restart", help="move the folder aside and start from scratch")] = False,
) -> None:
    """Run a recipe or a study, or go on with what is there: the same command resumes."""
    resolved, folder = _load(recipe, overrides, out)
    from mopd.distill.errors import UserError
    from mopd.distill.recipe.study import Study

    try:
        with _blamed_on(overrides):
            if isinstance(resolved, Study):
                from mopd.recipes.run.study import run_study

                run_study(resolved, folder, restart=restart)
            else:
                from mopd.recipes.run import launch

                launch.run(resolved, folder, restart=restart)
    except UserError as error:
        if not any(os.path.exists(folder / trained) for trained in ("metrics.jsonl", "stages", "study.json")):
            raise
        _say_problems(error.problems, "")  # something has been trained there, now or before
        raise typer.Exit(USER_CAN_FIX) from error


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: OutOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="load student and teachers, and ask whether they fit")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="ask nothing of the Hub: the plan of public models, and what stays open")
    ] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="the plan for another machine: this one needs neither memory nor disk")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Check a recipe or a study without running it, and print what it would take."""
    gc.set_threshold(100_000, 50, 100)  # torch and transformers make a million objects that stay: a quarter of the time
    resolved, folder = _load(recipe, overrides, out)
    from mopd.recipes.check_command import show

    with _blamed_on(overrides), _console_beside(json_file) as console:
        content = show(resolved, folder, console, deep=deep, offline=offline, plan_only=plan_only)
    _write_json(json_file, content)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs, finished or under way")],
    out: Annotated[Path, typer.Option(help="the folder that comparison.json and comparison.html go to")] = Path(
        "runs/comparison"
    ),
    pareto: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="two domains to set against each other; those that differ most unless given"),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="write the tables into a Markdown file as well"),
    ] = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="score validation prompts, by which settings are chosen")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Set the seesaw of several runs side by side: a table, a page, and JSON. Seeds of one recipe become one row.

    Runs are refused that were not asked the same questions. Recovery in all runs of one base is measured against the
    best teacher that any of them has for a domain.
    """
    from mopd.recipes.compare.comparison import compare as compare_runs
    from mopd.recipes.compare.console import console_tables
    from mopd.recipes.compare.page import chosen_pair, write_comparison

    comparison = compare_runs(runs, validation=validation)
    page = write_comparison(comparison, out, chosen_pair(comparison, pareto))
    if markdown is not None:
        from mopd.recipes.compare.markdown import write_markdown

        write_markdown(comparison, markdown)
    with _console_beside(json_file) as console:
        console.print(console_tables(comparison))
        console.print(Text(f"page: {page}"), soft_wrap=True)
    _write_json(json_file, comparison.record())


@app.command("compare-architectures")
def compare_architectures(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="shipped Hub ids, or paths to a config.json")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the numbers as JSON")] = False,
) -> None:
    """Show what architectures hold, cache and compute a token, from their configurations alone."""
    from mopd.recipes import architectures_command

    rows = architectures_command.rows_of(names or [])
    if as_json:
        print(json.dumps(architectures_command.as_json(rows), indent=2))
    else:
        architectures_command.show(rows, Console())


@app.command()
def throughput(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="shipped Hub ids, or paths to a config.json")
    ] = None,
    card: Annotated[str, typer.Option(help="H100, H200 or A100")] = "H200",
    cards: Annotated[int | None, typer.Option(min=1, help="that share the work; as many as hold the weights")] = None,
    context: Annotated[int, typer.Option(min=1, help="tokens of each sequence so far")] = 4096,
    hourly: Annotated[float, typer.Option(min=0, help="what a card costs an hour")] = 3.0,
    weight_bytes: Annotated[float, typer.Option(min=0.25, help="of a weight: 2 bfloat16, 1 float8")] = 2.0,
    guesses: Annotated[int, typer.Option(min=1, help="of draft heads, a forward")] = 3,
    tokens_per_round: Annotated[float, typer.Option(min=1, help="that such a forward brings: measure it")] = 3.0,
) -> None:
    """Show how fast architectures could write at most, with draft heads and without, and what a million tokens cost."""
    from mopd.recipes import throughput_command

    throughput_command.show(
        names or ["XiaomiMiMo/MiMo-V2-Flash"],
        Console(),
        card=card,
        cards=cards,
        context=context,
        hourly=hourly,
        weight_bytes=weight_bytes,
        guesses=guesses,
        tokens_per_round=tokens_per_round,
    )


@app.command()
def audit(run: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run or a study")]) -> None:
    """Say which weights of a run are as they were written: checkpoints, students, adapters. Exit status 2: not all."""
    from mopd.recipes.audit_command import show

    if not show(run, Console()):
        raise typer.Exit(USER_CAN_FIX)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a checkpoint's folder, or a Hub id")],
    tasks: Annotated[
        str | None, typer.Option(help="names of tasks, or ./file.py:NAME, separated by commas", show_default=False)
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="ask the questions of a recipe's domains instead")
    ] = None,
    domains: Annotated[
        str | None, typer.Option(help="with --recipe: these of its domains, separated by commas", show_default=False)
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="test prompts of each task; 200, or as many as the recipe says")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="sampled answers to each prompt beside the greedy one"),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="of sampled answers")] = None,
    top_p: Annotated[float | None, typer.Option(help="sampled from the likeliest tokens of this probability")] = None,
    top_k: Annotated[int | None, typer.Option(help="sampled from so many of the likeliest tokens; 0: from all")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="a text that ends an answer; may be given again")] = None,
    harness: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="tasks of lm-evaluation-harness instead, or ./file.yaml of your own"),
    ] = None,
    runs_code: Annotated[
        bool, typer.Option("--runs-code", help="with --harness: let tasks run the model's programs, in no sandbox")
    ] = False,
    json_file: JsonOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run Python code that lies in the folder; read it first")
    ] = False,
) -> None:
    """Measure a model on tasks: greedy and sampled answers to test prompts, with 95% intervals."""
    from mopd.distill.errors import UserError
    from mopd.recipes.evaluation.command import evaluate_model, measured_record, measured_table

    if [tasks, recipe, harness].count(None) != 2:
        raise UserError("give --tasks, or --recipe, or --harness: which questions the model is asked")
    if domains is not None and recipe is None:
        raise UserError("--domains picks from the domains of a recipe; give --recipe, or name tasks with --tasks")
    sampled = {"samples_per_prompt": samples, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    if harness is not None:
        _refuse_with_harness(sampled | {"stop": stop})
        folder, tokenizer = _checkpoint(model, trust_remote_code)
        _show_harness(folder, harness, prompts, bool(tokenizer.chat_template), trust_remote_code, runs_code, json_file)
        return
    questions = _of_tasks(tasks, prompts) if recipe is None else _of_recipe(recipe, domains, prompts)
    questions = _asked_so(questions, sampled | {"stop_strings": stop or None})
    folder, _ = _checkpoint(model, trust_remote_code)
    measured = evaluate_model(folder, questions, trust_remote_code=trust_remote_code)
    with _console_beside(json_file) as console:
        console.print(measured_table(folder, measured, samples=questions.evaluate.samples_per_prompt))
    _write_json(json_file, measured_record(folder, measured, questions))


def _checkpoint(model: str, trust_remote_code: bool) -> tuple[str, Any]:
    """The folder of a checkpoint that can be loaded, and its tokenizer."""
    from mopd.recipes.resolve.checkpoints import downloaded, local_folder, read_checkpoint
    from mopd.recipes.resolve.damage import refuse_damaged

    # Here, unlike in a recipe, a folder needs no ./ in front: nothing else of that name is meant.
    is_folder = os.path.isdir(model) and not Path(model).is_absolute()
    folder = downloaded(local_folder(f"./{model}" if is_folder else model))
    refuse_damaged(folder, "put it back as it was")
    read = read_checkpoint(folder, permit="give --trust-remote-code", trust_remote_code=trust_remote_code)
    return folder, read.tokenizer


def _refuse_with_harness(options: Mapping[str, Any]) -> None:
    from mopd.distill.errors import UserError

    given = [f"--{name.partition('_per')[0].replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise UserError(f"{given[0]} is set by the tasks of --harness themselves; leave it out")


def _show_harness(
    folder: str,
    harness: str,
    prompts: int | None,
    chat: bool,
    trust_remote_code: bool,
    runs_code: bool,
    json_file: str | None,
) -> None:
    from mopd.recipes.evaluation.harness import harness_table, run_harness

    names = list(dict.fromkeys(name.strip() for name in harness.split(",")))
    scores = run_harness(
        folder, names, prompts=prompts, chat=chat, trust_remote_code=trust_remote_code, runs_code=runs_code
    )
    with _console_beside(json_file) as console:
        console.print(harness_table(folder, scores))
    _write_json(json_file, {"format": 1, "model": folder, "prompts": prompts, "scores": [asdict(s) for s in scores]})


@contextmanager
def _console_beside(json_file: str | None) -> Iterator[Console]:
    """The console; one that shows nothing where standard output is for JSON."""
    with open(os.devnull, "w") as nowhere:
        yield Console(file=nowhere) if json_file == "-" else Console()


def _write_json(json_file: str | None, content: Any) -> None:
    """What a command found as JSON, in a file or, of ``-``, on standard output; nothing of None."""
    from mopd.distill.errors import UserError

    if json_file is None:
        return
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if json_file == "-":
        typer.echo(text, nl=False)
        return
    try:
        Path(json_file).write_text(text)
    except OSError as error:
        raise UserError(f"--json: {json_file} cannot be written: {error.strerror}; name another file") from error


def _asked_so(questions: Any, given: Mapping[str, Any]) -> Any:
    """Questions with what the command line says of how answers are written, checked as a recipe's `evaluate` is."""
    from pydantic import ValidationError

    from mopd.distill.errors import UserError

    settings = {**questions.evaluate.model_dump(), **{key: value for key, value in given.items() if value is not None}}
    try:
        return replace(questions, evaluate=type(questions.evaluate).model_validate(settings))
    except ValidationError as error:
        raise UserError(*(f"--{'-'.join(str(p['loc'][0]).split('_'))}: {p['msg']}" for p in error.errors())) from error


def _of_tasks(tasks: str | None, prompts: int | None) -> Any:
    """The questions of named tasks."""
    from mopd.distill.errors import UserError
    from mopd.distill.recipe import DomainRecipe
    from mopd.distill.recipe.messages import guess
    from mopd.distill.recipe.plugins import is_plugin
    from mopd.recipes.evaluation.command import EvalQuestions
    from mopd.rollouts.tasks import TASKS

    names = list(dict.fromkeys(name.strip() for name in (tasks or "").split(",")))
    shipped = [name for name in names if not is_plugin(name)]
    unknown = [f"--tasks: no task is called {name!r}; {guess(name, TASKS)}" for name in shipped if name not in TASKS]
    shown = [name.rpartition(":")[2] for name in names]
    unknown += [f"--tasks: two are called {name!r}; ask them one by one" for name in {*shown} if shown.count(name) > 1]
    if unknown:
        raise UserError(*unknown)
    domains = {name.rpartition(":")[2]: DomainRecipe(task=name) for name in names}
    return EvalQuestions(domains, prompts or 200)


def _of_recipe(recipe: str, domains: str | None, prompts: int | None) -> Any:
    """The questions of a recipe's domains: those that its own runs are measured on."""
    from mopd.distill.errors import UserError
    from mopd.distill.recipe import Recipe
    from mopd.distill.recipe.messages import guess
    from mopd.recipes.evaluation.command import EvalQuestions

    resolved = _load(recipe, None, None)[0]
    if not isinstance(resolved, Recipe):
        raise UserError(f"--recipe: {recipe} is a study; name the recipe.yaml of one of its runs")
    names = list(resolved.domains) if domains is None else [name.strip() for name in domains.split(",")]
    unknown = [name for name in names if name not in resolved.domains]
    if unknown:
        raise UserError(*(f"--domains: no domain is called {n!r}; {guess(n, resolved.domains)}" for n in unknown))
    chosen = {name: resolved.domains[name] for name in names}
    many = resolved.evaluate.test_prompts if prompts is None else prompts
    return EvalQuestions(
        chosen, many, seed=resolved.evaluate.seed, rollout=resolved.rollout, evaluate=resolved.evaluate
    )


@app.command()
def workspace(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Save a W&B workspace of the recipe's project, in which recipes line up."""
    from mopd.distill.tracking.wandb_workspace import save_workspace

    loaded = _load(recipe, overrides, None)[0]
    track = loaded.track.wandb
    typer.echo(save_workspace(list(loaded.domains), project=track.project, entity=track.entity))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for the editor."""
    from mopd.distill.recipe.json_schema import editor_schema

    typer.echo(json.dumps(editor_schema(), indent=2))


def main() -> None:
    """The console script."""
    try:
        app(prog_name="mopd")
    finally:
        gc.freeze()  # what was imported is not looked through once more as the process ends: a fifth of a check's time


def _load(recipe: str, overrides: list[str] | None, out: Path | None) -> Any:
    from mopd.distill.recipe.study import load

    resolved = load(recipe, overrides or (), shipped=SHIPPED)
    return resolved, out if out is not None else Path("runs") / resolved.name


@contextmanager
def _blamed_on(overrides: list[str] | None) -> Iterator[None]:
    """Adds to a problem the overrides that it comes from: whose leaf it names, or a section around that leaf."""
    from mopd.distill.errors import UserError

    try:
        yield
    except UserError as error:
        blamed = [f"{problem}{_from_overrides(problem, overrides or ())}" for problem in error.problems]
        raise UserError(*blamed) from error


def _from_overrides(problem: str, overrides: Sequence[str]) -> str:
    from mopd.distill.recipe.messages import shortened

    def is_named(override: str) -> bool:
        keys = override.partition("=")[0].strip().split(".")
        above = (".".join(keys[:depth]) for depth in range(2, len(keys) + 1))
        return f"`{keys[0]}`" in problem or any(f"`{path}`" in problem or f"`{path}." in problem for path in above)

    named = [shortened(override, 200) for override in overrides if is_named(override)]
    return f" (from the command line: {' '.join(named)})" if named else ""


def _say_problems(problems: tuple[str, ...], and_so: str) -> None:
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    _say(f"{count} to fix{and_so}", *(f"- {problem}" for problem in problems))


def _say(first: str, *more: str) -> None:
    """To stderr; whole lines, so that what is named can be found and copied."""
    console = Console(stderr=True)
    console.print(Text(first), style="bold red", soft_wrap=True)
    for line in more:
        console.print(Text(line), soft_wrap=True)


def _command() -> str:
    """The command that goes on with this one's run: the same, but that --restart would start from scratch."""
    return shlex.join(["mopd", *(word for word in sys.argv[1:] if word != "--restart")])  # not per token
