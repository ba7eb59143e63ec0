"""`mopd check` believes nothing: every leaf of the schema with wrong values, wrong files, nonsense that looks sound.

Each command ends with exit code 2 and names the culprit, or accepts the recipe: no traceback, no hang. That what is
accepted runs is tests/chaos/test_accepted.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fork_kit import Ended, ForkServer
from mutation_kit import CONFIG, MADE, OWN, Mutation, mutations, sound, write_folder, write_yaml

SEED, OF_EACH = 0, 6
MEMORY_BYTES = 3 * 2**30
ALWAYS_WRONG = (
    "nan",
    "infinity",
    "minus infinity",
    "10^30",
    "400 digits",
    "5000 digits",
    "64 bits",
    "largest",
    "zero byte",
    "surrogate",
    "900 levels",
    "60 levels",
    "nan inside",
    "infinity inside",
    "absurd inside",
    "many layers",
    "dropout",
    "tag",
    "timestamp",
    "bytes",
    "bytes key",
    "list key",
    "null key",
    "set",
)
"""Values that no leaf takes."""
SHORT_DEADLINES = {
    "mopd.distill.recipe.plugins.IMPORT_SECONDS": 2.0,
    "mopd.recipes.check.tasks.CALLS_SECONDS": 3.0,
    "mopd.rollouts.tasks.tables.MOST_FILES": 50,
}


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer(SHORT_DEADLINES)
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "work")
    return tmp_path / "work"


def check(server: ForkServer, folder: Path, tree: dict[str, Any], *arguments: str) -> Ended:
    """`mopd check` of a recipe, written to a file."""
    (folder / "recipe.yaml").write_text(write_yaml(tree))
    return server.mopd(folder, "check", "./recipe.yaml", *arguments)


def broken(ended: Ended) -> str | None:
    """What is wrong with how a command ended, whatever it was asked."""
    if ended.hung:
        return f"hangs, after {ended.cpu_seconds:.1f} s of CPU time"
    if ended.code not in (0, 2) or "Traceback" in ended.output:
        return f"ends with code {ended.code}: ...{ended.output[-1500:]}"
    if ended.memory_bytes > MEMORY_BYTES:
        return f"takes {ended.memory_bytes / 2**30:.1f} GiB"
    return None


def names(output: str, path: str) -> bool:
    """Whether a message names a leaf: its path, that of its section with its key, or the place in the file."""
    section, _, key = path.rpartition(".")
    whole = f"`{path}" in output or (f"`{section}`" in output and re.search(rf"\b{re.escape(key)}\b", output))
    return bool(whole) or re.search(r"recipe\.yaml, line \d+, column \d+: not readable as YAML", output) is not None


OFF_UNLESS_SET = ("plateau", "prompt", "compute", "stale")


def wrong(mutation: Mutation, ended: Ended) -> str | None:
    """What is wrong with how the check of a mutated recipe ended."""
    if (problem := broken(ended)) is not None:
        return problem
    if ended.code == 0 and mutation.value in ALWAYS_WRONG:
        return "is accepted"
    # Without a leaf that others stand on, it is they that are named.
    section = f"`{mutation.path.rpartition('.')[0]}."
    follows = mutation.value == "null" and section in ended.output
    # What is set where there was nothing brings its section, which is named.
    section = mutation.path.rpartition(".")[0]
    follows |= section.rpartition(".")[2] in OFF_UNLESS_SET and f"`{section}" in ended.output
    follows |= f"`{section}.path` is missing" in ended.output
    follows |= mutation.path.endswith(".model") and "`stages.math`: neither the student nor a teacher" in ended.output
    if ended.code == 2 and not follows and not names(ended.output, mutation.path):
        return f"is refused, and not named: {ended.output[-1500:]}"
    return None


def test_every_leaf_is_mutated() -> None:
    drawn = list(mutations(SEED, of_each=OF_EACH))
    assert len(drawn) >= 1000
    assert len({mutation.path for mutation in drawn}) >= 120


@pytest.mark.parametrize("section", sorted({m.path.partition(".")[0] for m in mutations(SEED, of_each=1)}))
def test_a_wrong_leaf_is_refused_by_name_or_accepted(server: ForkServer, folder: Path, section: str) -> None:
    problems = []
    for mutation in mutations(SEED, of_each=OF_EACH):
        if mutation.path.partition(".")[0] == section:
            problem = wrong(mutation, check(server, folder, mutation.tree))
            problems += [] if problem is None else [f"{mutation} {problem}"]
    assert not problems, "\n\n".join(problems)


# ---- files


def laughs(levels: int) -> str:
    """Aliases that multiply: each level holds ten times the one before."""
    lines = [f"a0: &a0 [{', '.join(['x'] * 10)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


def extended(folder: Path, files: int) -> str:
    for number in range(files):
        above = f"extends: ./chain{number + 1}.yaml\n" if number + 1 < files else write_yaml(sound())
        (folder / f"chain{number}.yaml").write_text(above)
    return "./chain0.yaml"


def written(name: str, content: str | bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return f"./{name}"

    return write


def named(name: str) -> Callable[[Path], str]:
    return lambda folder: name


def linked_to_each_other(folder: Path) -> str:
    (folder / "one.yaml").symlink_to("two.yaml")
    (folder / "two.yaml").symlink_to("one.yaml")
    return "./one.yaml"


RECIPES: dict[str, tuple[Callable[[Path], str], str]] = {
    "aliases that multiply": (written("laughs.yaml", laughs(9)), r"laughs.yaml, line \d+, .* more than 100,000 values"),
    "an anchor in itself": (written("self.yaml", "a: &a [*a]"), "self.yaml, line 1, .* contains itself"),
    "a mapping in itself": (written("self.yaml", "&a {b: *a}"), "self.yaml, line 1, .* contains itself"),
    "a long chain of anchors": (
        written("long.yaml", "a0: &a0 1\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 1500))),
        "long.yaml, line .* more than 100,000 values",
    ),
    "900 levels": (written("deep.yaml", "a: " + "[" * 900 + "]" * 900), "deep.yaml, line 1, .*deeper than 50 levels"),
    "900 mappings": (written("deep.yaml", "{a: " * 900 + "1" + "}" * 900), "deep.yaml, line 1, .*deeper than 50"),
    "1,500 files that extend": (lambda folder: extended(folder, 1500), "chain0.yaml extends .* more than 50 files"),
    "itself extended": (written("me.yaml", "extends: ./me.yaml"), "me.yaml extends itself"),
    "links to each other": (linked_to_each_other, "no recipe file at ./one.yaml"),
    "a link to itself": (named("./loop.yaml"), "no recipe file at ./loop.yaml"),
    "a folder": (named("./"), "no recipe file at ./"),
    "a device": (named("/dev/zero"), "no recipe file at /dev/zero"),
    "300 letters": (named("./" + "x" * 300), "no recipe file at ./xxx"),
    "300 letters, shipped": (named("x" * 300), "no shipped recipe is called 'xxx"),
    "no name": (named(""), "no shipped recipe is called ''"),
    "latin-1": (written("latin.yaml", "name: caf\xe9".encode("latin-1")), "latin.yaml cannot be read"),
    "bytes": (written("bytes.yaml", bytes(range(256))), "bytes.yaml"),
    "zero bytes": (written("zero.yaml", b"name: a\0b"), "zero.yaml"),
    "nothing": (written("empty.yaml", ""), "empty.yaml is empty"),
    "two megabytes": (written("large.yaml", "# " + "x" * 2_000_000), "large.yaml has 2,000,002 bytes"),
    "two documents": (written("two.yaml", "a: 1\n---\na: 2\n"), "two.yaml, line 2"),
    "a list": (written("list.yaml", "[1, 2]"), "list.yaml holds list"),
    "5,000 digits": (written("digits.yaml", f"seed: {'9' * 5000}"), "digits.yaml, line 1, .*a number of 5,000 digits"),
    "a key of bytes": (written("key.yaml", "!!binary gICA: 1"), "key.yaml has the key b"),
    "a key of 300 letters": (written("key.yaml", "x" * 300 + ": 1"), "key.yaml has the key .* 300 letters"),
    "a study of nothing": (written("study.yaml", "methods: 3\nseeds: no"), "study.yaml: `methods`"),
    "a study without end": (written("study.yaml", "name: a\nmethods: {a: {}}\nseeds: [.nan]"), "study.yaml: `seeds"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_wrong_recipe_file_is_named(server: ForkServer, folder: Path, case: str) -> None:
    write, culprit = RECIPES[case]
    ended = server.mopd(folder, "check", write(folder))
    assert broken(ended) is None, broken(ended)
    assert ended.code == 2
    assert re.search(culprit, ended.output), ended.output[-1500:]


EXITS = {
    "sys.exit": "import sys\nsys.exit(0)",
    "a thread that exits": "import sys, threading\nthreading.Thread(target=sys.exit).start()\nraise SystemExit('done')",
    "SystemExit": "raise SystemExit",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "an error": "1 / 0",
    "an error without words": "raise Exception",
    "recursion": "def f(): f()\nf()",
    "sleep": "import time\ntime.sleep(10_000)",
    "a loop": "while True: pass",
    "a loop that catches": (
        "import time\nwhile True:\n    try:\n        time.sleep(100)\n    except BaseException:\n"
        "        seen = globals().get('seen', 0) + 1\n        if seen > 1: raise"
    ),
    "no Python": "def f(:",
    "zero bytes": "a = 1\0",
    "latin-1": "a = 'caf\xe9'",
    "nothing": "",
}
OWN_LEAVES = {
    "loss": {"loss": {"estimator": "./bad.py:NAME"}},
    "method": {"method": "./bad.py:NAME"},
    "task": {"domains": {"math": {"task": "./bad.py:NAME", "teacher": "math", "prompts": 4}}},
    "scorer": {"teachers": {"math": {"model": "stage:math", "scorer": "./bad.py:NAME"}}},
    "kind": {"teachers": {"math": {"model": "stage:math", "kind": "./bad.py:NAME"}}},
    "engine": {"rollout": {"max_new_tokens": 48, "engine": "./bad.py:NAME"}},
    "sink": {"track": {"sinks": ["./bad.py:NAME"]}},
}


@pytest.mark.parametrize("case", EXITS)
def test_an_own_file_that_does_not_import_is_named(server: ForkServer, folder: Path, case: str) -> None:
    """One leaf a case, each leaf several times."""
    leaf = list(OWN_LEAVES)[list(EXITS).index(case) % len(OWN_LEAVES)]
    encoding = "latin-1" if case == "latin-1" else "utf-8"
    (folder / "bad.py").write_text(EXITS[case], encoding=encoding)
    ended = check(server, folder, sound() | OWN_LEAVES[leaf])
    assert broken(ended) is None, broken(ended)
    assert ended.code == 2
    assert re.search(rf"`[a-z.]*{leaf if leaf != 'loss' else 'estimator'}\w*`.*bad\.py", ended.output), ended.output


@pytest.mark.parametrize("leaf", OWN_LEAVES)
def test_every_own_file_may_not_end_the_check(server: ForkServer, folder: Path, leaf: str) -> None:
    (folder / "bad.py").write_text("import sys\nsys.exit(0)")
    ended = check(server, folder, sound() | OWN_LEAVES[leaf])
    assert broken(ended) is None, broken(ended)
    assert ended.code == 2
    assert "bad.py cannot be imported: it ends the process (SystemExit: 0)" in ended.output, ended.output


OWN_TASK = """
from mopd import Generated
class NAME(Generated):
    def draw(self, rng, easy):
        a = rng.randint(0, 10 ** 6)
        {draw}
        return f"what is {{a}}", str(a), str(a)
    def verify(self, prompt, text):
        {verify}
        return float(prompt.answer == text)
"""
CALLS = {
    "a draw that exits": ("draw", "import sys; sys.exit(0)"),
    "a draw that interrupts": ("draw", "raise KeyboardInterrupt"),
    "a draw that sleeps": ("draw", "import time; time.sleep(10_000)"),
    "a draw that is slow": ("draw", "import time; time.sleep(0.05)"),
    "a late draw that fails": ("draw", "1 / (a % 500)"),
    "a verifier that exits": ("verify", "exit()"),
    "a verifier that loops": ("verify", "while True: pass"),
}


@pytest.mark.parametrize("case", CALLS)
def test_an_own_task_that_misbehaves_is_named(server: ForkServer, folder: Path, case: str) -> None:
    where, code = CALLS[case]
    (folder / "bad.py").write_text(OWN_TASK.format(**{"draw": "pass", "verify": "pass", where: code}))
    ended = check(server, folder, sound() | OWN_LEAVES["task"])
    assert broken(ended) is None, broken(ended)
    assert ended.code == 2
    assert "`domains.math.task`: ./bad.py:NAME" in ended.output, ended.output


def test_a_gigabyte_that_an_own_file_prints_is_cut(server: ForkServer, folder: Path) -> None:
    (folder / "own.py").write_text(f"for _ in range(1000): print('x' * 1_000_000)\n{OWN}")
    ended = check(server, folder, sound() | {"loss": {"estimator": "./own.py:LOSS"}})
    assert broken(ended) is None, broken(ended)
    assert ended.code == 0, ended.output[-1500:]
    assert len(ended.output) < 1_000_000
    assert "more letters that own code prints are left out" in ended.output


def rows(count: int, **changes: Any) -> str:
    sums = [{"prompt": f"what is {i}+{i}?", "answer": str(2 * i)} | changes for i in range(count)]
    return "".join(json.dumps(row) + "\n" for row in sums)


def many_files(folder: Path) -> str:
    (folder / "many").mkdir()
    for number in range(60):
        (folder / "many" / f"{number}.txt").touch()
    return "./many"


def rounded(folder: Path) -> str:
    columns = {"prompt": [f"q{i}" for i in range(40)], "answer": [1e25 + i for i in range(40)]}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return "./a.parquet"


DATA: dict[str, tuple[Callable[[Path], str], dict[str, Any], str]] = {
    "latin-1": (
        written("a.jsonl", rows(40).replace("what", "caf\xe9").encode("latin-1")),
        {},
        "a.jsonl'.*can't be read",
    ),
    "a row of 20 MB": (
        written("a.jsonl", rows(40) + json.dumps({"prompt": "x" * 20_000_000, "answer": "1"}) + "\n"),
        {},
        "row 40: `prompt` has 20,000,000 letters",
    ),
    "a folder of many files": (many_files, {}, "'./many' is a folder of more than"),
    "a folder of many files, as on the Hub": (
        lambda folder: many_files(folder).removeprefix("./"),
        {},
        "'many' is read as a Hub id, and a file or folder of that name is here; write ./many",
    ),
    "an empty folder": (lambda folder: str((folder / "none").mkdir() or "./none"), {}, "'./none'.*can't be read"),
    "a link to itself": (named("./loop.jsonl"), {}, "loop.jsonl' does not exist"),
    "a device": (named("/dev/zero"), {}, "'/dev/zero'"),
    "300 letters": (named("./" + "x" * 300), {}, "cannot be looked at"),
    "no name": (named(""), {}, "`path` is empty"),
    "zero bytes": (written("a.jsonl", b"\0" * 1000), {}, "a.jsonl'.*can't be read"),
    "not closed": (written("a.jsonl", '{"prompt": "a'), {}, "a.jsonl'.*can't be read"),
    "nothing": (written("a.jsonl", ""), {}, "a.jsonl'"),
    "deep rows": (written("a.jsonl", rows(40) + '{"prompt": ' + "[" * 900 + "]" * 900 + "}\n"), {}, "a.jsonl'"),
    "no parquet": (written("a.parquet", "PAR1"), {}, "a.parquet'.*can't be read"),
    "numbers that were rounded": (
        rounded,
        {"verifier": "number"},
        "`answer` is 1e.25, a number that was rounded",
    ),
    "two golds": (
        written("a.jsonl", rows(40) + rows(40, answer="7")),
        {},
        "row 0: `answer` is '0', and row 40.*has '7'",
    ),
    "no options": (
        written("a.jsonl", rows(40, answer="A")),
        {"verifier": "choice"},
        "options do not stand in `prompt`",
    ),
    "an answer that is a question": (
        written("a.jsonl", rows(40, prompt=[{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}])),
        {"answer": "prompt.-1.content"},
        "`prompt` does not end with a message of the assistant",
    ),
    "messages for a student without a template": (
        written("a.jsonl", rows(40, prompt=[{"role": "user", "content": "q"}], answer="1")),
        {},
        "none is left for",
    ),
    "a template of a column that is not there": (named("./rows.jsonl"), {"prompt": "{prompt} {more}"}, "column 'more'"),
    "prompt and answer in one column": (
        named("./rows.jsonl"),
        {"answer": "prompt"},
        "`prompt` and `answer` in one col",
    ),
    "a split of a file": (named("./rows.jsonl"), {"test_split": "test"}, "one split, 'train'; `test_split` is 'test'"),
}


@pytest.mark.parametrize("case", DATA)
def test_wrong_data_is_named(server: ForkServer, folder: Path, case: str) -> None:
    write, settings, culprit = DATA[case]
    tree = sound()
    tree["domains"]["math"]["task"] = {"path": write(folder), **settings}
    ended = check(server, folder, tree)
    assert broken(ended) is None, broken(ended)
    assert ended.code == 2, ended.output[-1500:]
    assert "`domains.math.task`" in ended.output
    assert re.search(culprit, ended.output), ended.output[-1500:]


# ---- nonsense, and what only looks like it


NONSENSE = {
    "a gate without 1": (["loss={estimator: k2, gate: [1.1, 5]}"], "`loss.gate` is [1.1, 5], without 1"),
    "a gate below 1": (["loss={estimator: policy_gradient, gate: [0.2, 0.9]}"], "`loss.gate` is [0.2, 0.9], without 1"),
    "a rate that moves nothing": (["student.optimizer.lr=1e-12"], "`student.optimizer.lr` must be from 1e-09"),
    "a rate that overflows": (["student.optimizer.lr=1e20"], "`student.optimizer.lr` must be from 1e-09"),
    "a rate for AdamW": (["student.optimizer.lr=50"], "`student.optimizer` has `lr` 50"),
    "a decay of everything": (["student.optimizer.weight_decay=1e5"], "`student.optimizer` has `weight_decay` 100000"),
    "an epsilon that is none": (["student.optimizer.eps=1e-60"], "`student.optimizer.eps` must be from"),
    "a clip that leaves nothing": (["student.optimizer.clip=1e-30"], "`student.optimizer.clip` must be 0, or from"),
    "a temperature of nothing": (["rollout.temperature=1e-20"], "`rollout.temperature` must be from 0.01 to 100"),
    "a temperature of noise": (["rollout.temperature=1e20"], "`rollout.temperature` must be from 0.01 to 100"),
    "a share of nothing": (["domains.math.share=1e-40"], "`domains.math.share` must be from 1e-06"),
    "an advantage of nothing": (["loss={estimator: k2, advantage_clip: 1e-40}"], "`loss.advantage_clip` must be from"),
    "a mixture of nothing": (["loss={estimator: jsd, beta: 1e-200}"], "`loss.beta` must be 0, or 1, or from 0.0001"),
    "NaN in a config": (["stages.base.from.config.rms_norm_eps=.nan"], "`stages.base.from.config` has `rms_norm_eps`"),
    "infinity in a config": (
        ["stages.base.from.config.rms_norm_eps=.inf"],
        "`stages.base.from.config` has `rms_norm_e",
    ),
    "a huge config": (
        ["stages.base.from.config.hidden_size=1" + 30 * "0"],
        "`stages.base.from.config` has `hidden_size`",
    ),
    "noise in a config": (
        ["stages.base.from.config.initializer_range=1e12"],
        "`stages.base.from`: LlamaConfig refuses",
    ),
    "a root of -1": (
        ["stages.base.from.config.rms_norm_eps=-1.0"],
        "`stages.base.from`: a llama of this",
    ),
    "all dropped": (["stages.base.from.config.attention_dropout=1.0"], "`config.attention_dropout` is 1 or more"),
    "a config of another type": (["stages.base.from.config.hidden_size=sixteen"], "`stages.base.from`"),
    "negative layers": (["stages.base.from.config.num_hidden_layers=-1"], "`stages.base.from`"),
    "endless layers": (["stages.base.from.config.num_hidden_layers=1000000000"], "1e+09 layers"),
    "a model beyond memory": (
        ["stages.base.from.config.hidden_size=1000000"],
        "parameters of stage:base (`stages.base.from`); take a smaller model",
    ),
    "ranks beyond memory": (["student.engine.ranks=100000"], "`student.engine.ranks` asks for the most of it"),
    "a billion ranks": (["student.engine.ranks=1000000000"], "`student.engine.ranks` asks for the most of it"),
    "replicas beyond memory": (["teachers.math.replicas=1000000"], "`teachers.math.replicas` asks for the most"),
    "samplers beyond memory": (["rollout.workers=1000000000"], "`rollout.workers` asks for the most of it"),
    "prompts beyond memory": (["domains.math.prompts=1000000000"], "`domains.math.prompts` asks for the most of it"),
    "samples beyond memory": (
        ["rollout.samples_per_prompt=1000000000"],
        "`rollout.samples_per_prompt` asks for the most",
    ),
    "a stage beyond memory": (["stages.math.prompts=1000000000"], "`stages.math.prompts` asks for the most of it"),
    "checkpoints beyond the disk": (["run.keep_checkpoints=1000000000"], "`run.keep_checkpoints` asks for the most"),
    "steps beyond the disk": (["run.steps=1000000000"], "`run.steps` asks for the most of it"),
    "prompts beyond the disk": (
        ["evaluate.test_prompts=1000000000"],
        "`evaluate.test_prompts` asks for the most of it",
    ),
    "10^30": (["run.steps=1" + 30 * "0"], "`run.steps` must be at most 1,000,000,000"),
    "300 letters": (["name=" + "x" * 300], "`name` must be at most 100 letters long"),
    "a path in a name": (["name=../../etc"], "`name` is not a usable name"),
    "1,500 keys": ([".".join(["a"] * 1500) + "=1"], "names 1500 levels"),
    "deep": (["description=" + "[" * 900 + "]" * 900], "deeper than 50 levels"),
    "weights without end": (["domains.math.teachers={math: .inf}"], "`domains.math.teachers.math`"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_refused_and_blamed_on_the_command_line(server: ForkServer, folder: Path, case: str) -> None:
    overrides, culprit = NONSENSE[case]
    ended = check(server, folder, sound(), *overrides)
    assert broken(ended) is None, broken(ended)
    assert ended.code == 2, f"{case} is accepted: {ended.output[-800:]}"
    assert culprit in ended.output, ended.output[-1500:]
    assert "recipe.yaml:" not in ended.output  # which is sound
    assert overrides[0][:30] in ended.output, "the command line is not blamed"


def test_what_the_file_says_is_blamed_on_the_file(server: ForkServer, folder: Path) -> None:
    tree = sound()
    tree["run"]["steps"] = 0
    ended = check(server, folder, tree, "seed=-1", "student.optimizer.betas=[0.9, 2]")
    assert "recipe.yaml: `run.steps` must be at least 1; it is 0" in ended.output
    assert "command line, seed=-1: `seed` must be at least 0" in ended.output
    assert "command line, student.optimizer.betas=[0.9, 2]: `student.optimizer.betas[1]`" in ended.output


ROWS = "domains.math.task={path: ./rows.jsonl, verifier: number}"
SOUND: dict[str, list[str]] = {
    "as it is": [],
    "no bound on microbatches": ["student.engine.microbatch_tokens=1000000000"],
    "no bound on batches": ["rollout.batch_size=1000000000"],
    "never saved before the end": ["run.save_every=1000000", "run.evaluate_every=1000000"],
    "one prompt": ["domains.math.prompts=1"],
    "one step": ["run.steps=1", "student.optimizer.warmup_steps=0"],
    "on-policy to the letter": ["loss={estimator: k2, gate: [0.999, 1.001]}"],
    "a gate that ends at 1": ["loss={estimator: policy_gradient, gate: [0.5, 1.0]}"],
    "a small rate": ["student.optimizer.lr=1e-7"],
    "plain descent": ["student.optimizer={name: sgd, lr: 10, warmup_steps: 0}"],
    "no clip": ["student.optimizer.clip=0"],
    "no bounds in words of numbers": ["student.optimizer.clip=1e9", "loss={estimator: k2, advantage_clip: 1e9}"],
    "a low temperature": ["rollout.temperature=0.1"],
    "a sharp mixture": ["loss={estimator: jsd, beta: 0.01}"],
    "one token at a time": ["student.engine.microbatch_tokens=1"],
    "a large seed": ["seed=9223372036854775807", "evaluate.seed=9223372036854775807"],
    "any text": ["description='%s [bold] \\N{SNOWMAN} {} $(rm) \\\\'"],
    "a name of numbers": ["name='2026.11'"],
    "a dropout": ["stages.base.from.config.attention_dropout=0.5"],
    "a base of 10 million": ["stages.base.from.config.rope_parameters={rope_type: default, rope_theta: 10000000}"],
    "a large vocabulary": ["stages.base.from.vocabulary=1000000"],
    "rows": [ROWS],
    "rows with one gold each": [ROWS, "domains.math.task.several_golds=any"],
    "several golds": ["domains.math.task={path: ./golds.jsonl, verifier: number, several_golds: any}"],
    "golds that are one": ["domains.math.task={path: ./same.jsonl, verifier: number}"],
    "several teachers": ["domains.math.teacher=null", "domains.math.teachers={math: 1.0}"],
    "reward alone": [
        "domains.math.teacher=null",
        "domains.math.reward=true",
        "method=mix_rl",
        "teachers=null",
        "stages.math=null",
        "rollout.samples_per_prompt=2",
        "loss={estimator: policy_gradient, reward_weight: 1}",
    ],
    "an own loss": ["loss={estimator: ./own.py:LOSS}"],
    "waiting for days": ["faults.microbatch_seconds=864000", "faults.retries=100"],
    "bounds that stop at once": ["stop={kl: 1e-9, evaluations: 1}"],
}


@pytest.mark.parametrize("case", SOUND)
def test_an_odd_but_sound_recipe_is_accepted(server: ForkServer, folder: Path, case: str) -> None:
    (folder / "golds.jsonl").write_text(rows(200) + rows(200, answer="7"))
    (folder / "same.jsonl").write_text(rows(200) + rows(200).replace('"answer": "', '"answer": "it is '))
    ended = check(server, folder, sound(), *SOUND[case])
    assert broken(ended) is None, broken(ended)
    assert ended.code == 0, ended.output[-1500:]


def test_a_plan_for_another_machine_needs_no_memory_here(server: ForkServer, folder: Path) -> None:
    ended = check(server, folder, sound(), "student.engine.ranks=100000", "--plan-only")
    assert ended.code == 0, ended.output[-1500:]
    assert "memory of the host: about" in ended.output


def test_a_model_in_the_student_itself_is_probed(server: ForkServer, folder: Path) -> None:
    tree = sound()
    tree["student"]["model"] = {**MADE, "config": {**CONFIG, "rms_norm_eps": -1.0}}
    ended = check(server, folder, tree)
    assert ended.code == 2
    assert "`student.model`: a llama of this `config`, as it is initialised, gives logits" in ended.output
