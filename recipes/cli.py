"""The command line: ``mopd run | check | compare | audit | eval | schema ...``, and where exit codes are decided.

0: done, by the recipe's stop rule too. 1: the run broke, the last checkpoint resumes. 2: the user can fix it.
130: interrupted. One file, though long: a command is its options and a call, and what it does is elsewhere.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
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
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Multi-teacher on-policy distillation: several specialists into one student, without the seesaw.",
)


def _recipe_names(incomplete: str) -> list[str]:
    """For the shell: shipped recipes that begin so."""
    return sorted(path.stem for path in SHIPPED.glob(f"{incomplete}*.yaml"))


def _run_folders(incomplete: str) -> list[str]:
    """For the shell: folders of runs and studies that begin so, here and in runs/."""
    written = (
        path
        for file in ("recipe.yaml", "study.json")
        for where in ("", "runs/")
        for path in Path().glob(f"{where}*/{file}")
    )
    return sorted({str(path.parent) for path in written if str(path).startswith(incomplete)})


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mopd {version('mopd')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    """Multi-teacher on-policy distillation: several specialists into one student, without the seesaw."""


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="a shipped recipe's name, or a path to a .yaml", autocompletion=_recipe_names
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="the folder of a run or a study", autocompletion=_run_folders)
]
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
    gc.disable()  # the million objects that torch and transformers make as they are imported stay
    resolved, folder = _load(recipe, overrides, out)
    from mopd.recipes.check_command import show

    gc.enable()
    gc.set_threshold(100_000, 50, 100)

    with _blamed_on(overrides), _console_beside(json_file) as console:
        content = show(resolved, folder, console, deep=deep, offline=offline, plan_only=plan_only)
    _write_json(json_file, content)


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="folders of runs, finished or under way, or kept runs")
    ],
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
    wandb_report: Annotated[
        bool, typer.Option("--wandb-report", help="save it as a report on the W&B server that is logged in to")
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
    if wandb_report:
        from mopd.recipes.compare.wandb_report import save_wandb_report

        typer.echo(f"report: {save_wandb_report(comparison)}", err=True)
    with _console_beside(json_file) as console:
        console.print(console_tables(comparison))
        console.print(Text(f"page: {page}"), soft_wrap=True)
    _write_json(json_file, comparison.record())


@app.command()
def keep(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of finished runs, or of studies")],
    out: Annotated[Path, typer.Option(help="the folder that a file for each run goes to")],
) -> None:
    """Write what a comparison reads of finished runs, a file each; `compare` takes these in the place of folders."""
    from mopd.recipes.report.kept import keep as keep_runs

    for path in keep_runs(runs, out):
        typer.echo(f"{path}: {path.stat().st_size / 1e3:,.0f} kB")


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
def audit(run: RunArgument) -> None:
    """Say which weights of a run are as they were written: checkpoints, students, adapters. Exit status 2: not all."""
    from mopd.recipes.audit_command import show

    if not show(run, Console()):
        raise typer.Exit(USER_CAN_FIX)


@app.command("eval")
def eval_(
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
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="keep what the model writes, with the verdicts")
    ] = None,
    json_file: JsonOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run Python code that lies in the folder; read it first")
    ] = False,
) -> None:
    """Measure a model on tasks: greedy and sampled answers to test prompts, with 95% intervals."""
    from mopd.recipes.eval_command import AskedModel, evaluate

    sampled = {"samples_per_prompt": samples, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    asked = AskedModel(
        model, tasks, recipe, domains, prompts, sampled, stop or [], harness, runs_code, answers, trust_remote_code
    )
    with _console_beside(json_file) as console:
        content = evaluate(asked, console)
    _write_json(json_file, content)


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


@app.command()
def report(run: RunArgument, json_file: JsonOption = None) -> None:
    """Write the report of a run, finished, under way or broken off, and print its scores; of a study, of every run."""
    from mopd.recipes.runs_command import show_report

    with _console_beside(json_file) as console:
        content = show_report(run, console)
    _write_json(json_file, content)


@app.command()
def answers(
    run: RunArgument,
    domain: Annotated[list[str] | None, typer.Option(help="of this domain; may be repeated")] = None,
    kind: Annotated[
        str | None, typer.Option(help="lost (the base scores more), missed (its teacher does), neither, or right")
    ] = None,
    search: Annotated[str, typer.Option(metavar="TEXT", help="in the question or an answer")] = "",
    everything: Annotated[bool, typer.Option("--all", help="right answers, too")] = False,
    split: Annotated[str | None, typer.Option(help="test or validation; test where there is one")] = None,
    step: Annotated[int | None, typer.Option(min=0, help="of the student's exam; the last unless given")] = None,
    limit: Annotated[int, typer.Option(min=0, help="questions to print")] = 30,
    out: Annotated[Path | None, typer.Option(metavar="FILE.parquet", help="write all of them there")] = None,
    json_file: JsonOption = None,
) -> None:
    """Show what a run's student gets wrong, beside its base and teachers; what it lost to the base comes first."""
    from mopd.recipes.answers_command import AnswerFilter, show_answers

    wanted = AnswerFilter(domain or (), kind, search, everything)
    with _console_beside(json_file) as console:
        content = show_answers(run, wanted, console, split=split, step=step, limit=limit, out=out)
    _write_json(json_file, content)


@app.command("ls")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="a folder of runs, a run, or a study")] = Path(
        "runs"
    ),
    json_file: JsonOption = None,
) -> None:
    """List runs: how each stands, its step, the worst domain's recovery W, and when it was last written."""
    from mopd.recipes.runs_command import show_runs

    with _console_beside(json_file) as console:
        content = show_runs(folder, console)
    _write_json(json_file, {"format": 1, "runs": content})


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="print this one", autocompletion=_recipe_names)
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """List the shipped recipes, or print one."""
    from mopd.recipes.recipes_command import recipe_text, show_recipes

    if name is not None:
        typer.echo(recipe_text(name), nl=False)
        return
    with _console_beside(json_file) as console:
        content = show_recipes(console)
    _write_json(json_file, {"format": 1, "recipes": content})


@app.command()
def push(
    run: RunArgument,
    repo: Annotated[str, typer.Option(metavar="NAMESPACE/NAME", help="of the Hub; made where there is none")],
    adapter: Annotated[bool, typer.Option("--adapter", help="the adapter alone that was trained")] = False,
    public: Annotated[bool, typer.Option("--public", help="a repository that is made is open to all")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="made where there is none; main")] = None,
    json_file: JsonOption = None,
) -> None:
    """Send a run's student to the Hub, with its card, recipe and seesaw, and compare what arrived."""
    from mopd.recipes.push_command import push as send

    pushed = send(run, repo, adapter=adapter, private=not public, revision=revision)
    with _console_beside(json_file) as console:
        console.print(
            f"{pushed.files} files, {pushed.bytes:,} bytes, as they lie in {run}: {pushed.url}", soft_wrap=True
        )
    _write_json(json_file, {"format": 1, **asdict(pushed)})


@app.command()
def write(
    recipe: RecipeArgument,
    domain: Annotated[str, typer.Option(help="of the recipe, whose training prompts are asked")],
    endpoint: Annotated[str, typer.Option(metavar="URL", help="of a chat API, up to and including /v1")],
    model: Annotated[str, typer.Option(help="its name there")],
    prompts: Annotated[int, typer.Option(min=1, help="how many training prompts are asked")],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="for the conversations that are kept")],
    samples: Annotated[int, typer.Option(min=1, max=1000, help="conversations of each prompt")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=2.0, help="of the answers; the server's own unless given")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="of a message; the domain's limit unless given", show_default=False)
    ] = None,
    keep: Annotated[str, typer.Option(help="right: what the verifier finds right; all: every answer")] = "right",
    together: Annotated[int, typer.Option(min=1, max=256, help="requests at a time")] = 8,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="the environment variable that holds the key")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Have a model behind a chat API answer a domain's prompts, as text to learn from; right answers are kept."""
    from mopd.recipes.evaluation.write import Order
    from mopd.recipes.evaluation.write import write as have_written

    order = Order(
        recipe, domain, endpoint, model, api_key_env, prompts, samples, temperature, max_tokens, keep, together, out
    )
    with _console_beside(json_file) as console:
        content = have_written(order, console)
    _write_json(json_file, content)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="the recipe to write")] = Path("recipe.yaml"),
    model: Annotated[str | None, typer.Option(help="the model that learns: a checkpoint's folder, or a Hub id")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="rows of a domain: .jsonl, .csv, .parquet, a Hub id; may be repeated"),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]MODEL", help="who knows a domain; none: one is trained on its answers"),
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="COLUMN", help="column of the question")] = None,
    answer: Annotated[str | None, typer.Option(metavar="COLUMN", help="column of the answer")] = None,
    verifier: Annotated[str | None, typer.Option(help="exact, number, choice, math, or ./file.py:f")] = None,
    force: Annotated[bool, typer.Option("--force", help="write over a file that is there")] = False,
) -> None:
    """Write a recipe of your own, from a model and rows of data; without options it asks."""
    from mopd.recipes.recipes_command import asked_domains, new_domains, write_recipe

    if model is None and not data:
        model, domains = asked_domains(_asked)
    else:
        domains = new_domains(data or (), teacher or (), prompt=prompt, answer=answer, verifier=verifier)
    path = write_recipe(file, model or "", domains, force=force)
    shown = shlex.quote(str(path) if "/" in str(path) else f"./{path}")
    typer.echo(f"{path} is written; next:\n    mopd check {shown}\n    mopd run {shown}")


def _asked(question: str, usual: str) -> str:
    """A person's answer, on the console; ``usual`` for an empty line."""
    return typer.prompt(question, default=usual, show_default=bool(usual), err=True)


@app.command()
def workspace(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Save a W&B workspace of the recipe's project, in which recipes line up."""
    from mopd.distill.tracking.wandb_workspace import save_workspace
    from mopd.recipes.report.charts import seesaw_preset

    loaded = _load(recipe, overrides, None)[0]
    track = loaded.track.wandb
    where = {"project": track.project, "entity": track.entity}
    typer.echo(
        save_workspace(list(loaded.domains), seesaw_preset(), **where, say=lambda line: typer.echo(line, err=True))
    )


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
    return resolved, out if out is not None else Path("runs") / _folder_name(resolved.name)


def _folder_name(recipe: str) -> str:
    """The recipe's name; of a trial of a sweep, whose recipes differ, one for each."""
    sweep, trial = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return f"{recipe}-{sweep}/{trial}" if sweep and trial else recipe


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
