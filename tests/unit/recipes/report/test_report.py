"""The report of finished, unfinished and odd runs, made from real files and read back."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from page_kit import Page
from rich.console import Console
from run_kit import domain_settings, recipe, write_run
from svg_kit import at, marks, x_scale

from mopd.distill.metrics.episodes import measured_episodes
from mopd.distill.storage import claim
from mopd.distill.tracking.jsonl import append_jsonl, truncate_jsonl
from mopd.distill.types import RunError, UserError
from mopd.distill.verdicts import EpisodeRecord
from mopd.recipes.report.data import load_run, run_ledger
from mopd.recipes.report.page import summary_table, verdict, write_report
from mopd.recipes.report.records import DomainScore
from mopd.recipes.report.run import cost
from mopd.recipes.report.scores import changes, recovery_rows
from mopd.recipes.report.wording import duration, si


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, small; its files must not be changed."""
    return write_run(tmp_path_factory.mktemp("runs") / "finished", n_test=300, n_validation=50)


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return shutil.copytree(run, tmp_path / "run")


def page_of(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text())


def test_the_report_is_self_contained_and_whole(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text())
    assert [a for a in page.addresses if not a.startswith("#")] == ["data:,"]
    assert "url(" not in path.read_text()
    assert "@import" not in path.read_text()
    assert not {"script", "iframe", "img", "object"} & set(page.tags)
    assert page.tags.count("svg") == 4 + 3 + 6
    assert page.tags.count("details") == 4 + 3 + 6 + 3  # each chart's numbers; two steps' rollouts, the recipe
    assert "What is missing" not in page.sections[""]
    assert path.stat().st_size < 300_000


def test_the_numbers_of_the_page_are_those_of_seesaw_json(run: Path) -> None:
    seesaw = json.loads((run / "seesaw.json").read_text())
    page = page_of(run)
    for domain, recovered in seesaw["metrics"]["recovery"].items():
        low, high = seesaw["metrics_ci"]["recovery"][domain]
        shown = rf"{domain}.*?{100 * recovered:.0f}% {100 * low:.0f}–{100 * high:.0f}%"
        assert re.search(shown, " ".join(page.sections["recovery"].split()))
    for model, scored in seesaw["models"].items():
        row = " ".join(page.sections["recovery"].split()).partition("Every model")[2]
        assert model.removeprefix("teachers/") in row
        for score in scored.values():
            assert f"{100 * score['score']:.1f}" in row
    assert verdict(load_run(run)).headline in " ".join(page.sections[""].split())


def test_bars_share_one_scale_and_carry_the_change_with_its_interval(run: Path) -> None:
    data = load_run(run)
    panels = changes(data)
    assert [panel.title for panel in panels] == ["math", "code", "reasoning", "student"]
    seesaw = json.loads((run / "seesaw.json").read_text())
    score = {model: {d: s["score"] for d, s in scored.items()} for model, scored in seesaw["models"].items()}
    assert len({tuple(x_scale(panel.picture.svg).items()) for panel in panels}) == 1
    for panel in panels:
        model = "student" if panel.student else f"teachers/{panel.title}"
        intervals = seesaw["metrics_ci"]
        ends = intervals["points"] if panel.student else intervals["teacher_points"][panel.title]
        bars = [each for each in marks(panel.picture.svg, "rect") if "stroke" in each.given]
        whiskers = [each for each in marks(panel.picture.svg, "rule role-mark") if each.given["stroke"] == "var(--ink)"]
        scale = {float(label.replace("−", "-")): x for label, x in x_scale(panel.picture.svg).items()}
        for domain, bar, whisker, row in zip(data.domains, bars, whiskers, panel.picture.rows, strict=True):
            change = 100 * (score[model][domain] - score["base"][domain])
            (left, _), (right, _) = bar.path()
            assert sorted((left, right)) == pytest.approx(sorted((at(0, scale), at(change, scale))), abs=0.01)
            low, high = (100 * end for end in ends[domain])
            assert low < change < high
            drawn = whisker.x, whisker.x + float(whisker.given["x2"])
            assert drawn == pytest.approx((at(low, scale), at(high, scale)), abs=0.01)
            assert row == [domain, f"{change:+.1f}".replace("-", "−"), f"{low:+.1f} to {high:+.1f}".replace("-", "−")]
            assert (bar.given["fill-opacity"] == "1") == (panel.student or panel.title == domain)


def test_a_run_of_an_older_version_gets_its_teachers_intervals_from_the_answers(run: Path, tmp_path: Path) -> None:
    older = shutil.copytree(run, tmp_path / "older")
    record = json.loads((older / "seesaw.json").read_text())
    known = record["metrics_ci"].pop("teacher_points")
    record["metrics_ci"]["worst_recovery"] = [0.125, 0.25]  # what is there stays
    (older / "seesaw.json").write_text(json.dumps(record))
    intervals = load_run(older).seesaw.intervals
    assert intervals.worst_recovery == (0.125, 0.25)
    assert intervals.teacher_points == {t: {d: tuple(ends) for d, ends in of.items()} for t, of in known.items()}


def test_a_seesaw_is_called_one(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", seesaw=True))
    assert "The seesaw remains: code is" in page.sections[""]
    assert "It falls below the base on code." in page.sections[""]


def test_a_run_under_way_says_what_is_missing(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", steps=120, finished=False, n_test=100, n_validation=50)
    (run_dir / "environment.json").unlink()
    truncate_jsonl(run_dir / "stages" / "code" / "metrics.jsonl", lambda row: row["step"] <= 50)
    with claim(run_dir):
        text = page_of(run_dir).sections[""]
    assert "Under way: step 120 of 200" in text
    assert "The run is under way, at step 120 of 200." in text
    assert "Stage code is at step 50 of 200." in text
    assert "scores are on the fewer validation questions" in text
    assert "environment.json (versions, commit, machine) has nothing yet." in text
    assert "rollouts.jsonl" not in text
    assert "on validation questions" in page_of(run_dir).sections["recovery"]


def test_a_run_that_has_only_its_recipe_is_reported(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(domain_settings())))
    page = page_of(tmp_path)
    assert "Under way: step 0 of 200" in page.sections[""]
    assert "No model has been measured yet." in page.sections[""]
    assert "Stage base is at step 0 of 850." in page.sections[""]
    for section in ("seesaw", "curves", "learning", "samples", "cost"):
        assert " yet." in page.sections[section]
    Console(quiet=True).print(summary_table(tmp_path))


def test_an_evaluation_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", steps=120, finished=False, n_test=100, n_validation=50)
    before = load_run(run_dir)
    rows = [row for row in (run_dir / "evaluations.jsonl").read_text().splitlines() if '"student"' in row]
    begun = [json.loads(row) | {"step": 140} for row in rows[:70]]
    append_jsonl(run_dir / "evaluations.jsonl", begun)
    with (run_dir / "evaluations.jsonl").open("a") as file:
        file.write('{"model": "student", "st')
    assert load_run(run_dir).seesaw == before.seesaw


def test_what_the_model_writes_is_text_and_never_markup(own_run: Path) -> None:
    row = {"step": 300, "domain": "math", "prompt": "<script>alert(1)</script>", "text": "", "verdict": 0.0}
    row |= {"tokens": ["<img src=x onerror=alert(1)>", "&amp;"], "advantages": [-4.0, 0.5]}
    append_jsonl(own_run / "rollouts.jsonl", [row])
    html = write_report(own_run).read_text()
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.sections["samples"]
    assert re.search(r'class="tok down" style="--a:0\.85" title="-4\.00 nat">&lt;img', html)
    assert re.search(r'class="tok up" style="--a:0\.21" title="\+0\.50 nat">&amp;amp;', html)


def test_a_domain_without_a_teacher_is_measured_and_has_no_recovery(own_run: Path) -> None:
    settings = domain_settings()
    settings["code"] |= {"teacher": None, "evaluate_only": True}
    settings["reasoning"] |= {"teacher": None, "teachers": {"reasoning": 0.5, "math": 0.5}}
    (own_run / "recipe.yaml").write_text(yaml.safe_dump(recipe(settings)))
    (own_run / "seesaw.json").unlink()
    rows = {row.domain: row for row in recovery_rows(load_run(own_run))}
    scores = load_run(own_run).seesaw.models
    assert (rows["code"].recovery, rows["code"].recovery_text, rows["code"].teachers) == (None, "–", "none")
    mean = (scores["teachers/reasoning"]["reasoning"].score + scores["teachers/math"]["reasoning"].score) / 2
    assert rows["reasoning"].teacher == DomainScore(pytest.approx(mean), None, None, 300)
    page = page_of(own_run)
    assert "measured only" in page.sections["settings"]


def test_a_run_without_teachers_is_reported(own_run: Path) -> None:
    settings = {name: leaf | {"teacher": None} for name, leaf in domain_settings().items()}
    (own_run / "recipe.yaml").write_text(yaml.safe_dump(recipe(settings, teachers={}, method="supervised")))
    (own_run / "seesaw.json").unlink()
    truncate_jsonl(own_run / "evaluations.jsonl", lambda row: not row["model"].startswith("teachers/"))
    assert "–" in page_of(own_run).sections["recovery"]


def test_cost_is_the_sum_over_the_run_and_its_stages(run: Path) -> None:
    spent = run_ledger(run).spent
    assert spent["update"].seconds == pytest.approx(200 * 0.38)
    assert spent["stage/base/update"].tokens == 850 * 1900
    assert spent["evaluation"].seconds == pytest.approx(11 * 1.4)
    rows = {row.role: row for row in cost(load_run(run))}
    assert (rows["stage base"].seconds, rows["stage base"].tokens) == ("1 min 59 s", "1.61 M")
    assert rows["teacher math"].note.strip() == "a teacher scores rollouts in its own processes"
    assert rows["stage base"].width == 100.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.26, "0.26 s"), (59.5, "59.5 s"), (60, "1 min 0 s"), (125, "2 min 5 s"), (3540, "59 min"), (3725, "1 h 2 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(7, "7"), (999, "999"), (3968000, "3.97 M"), (6.2e11, "620 G")])
def test_numbers_with_prefixes(number: float, text: str) -> None:
    assert si(number) == text


def test_the_console_table_has_every_model_and_the_recovery(run: Path) -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(summary_table(run))
    text = captured.get()
    seesaw = json.loads((run / "seesaw.json").read_text())
    assert [word for word in text.splitlines()[2].split() if word.isalpha()] == [
        "domain", "base", "math", "code", "reasoning", "student", "recovery"
    ]  # fmt: skip
    line = next(line for line in text.splitlines() if line.startswith("│ code"))
    for scored in seesaw["models"].values():
        assert f"{100 * scored['code']['score']:.1f}" in line
    assert f"{100 * seesaw['metrics']['recovery']['code']:.0f}%" in line
    assert verdict(load_run(run)).headline in " ".join(text.split())


def test_a_run_of_an_older_version_gets_the_intervals_of_this_one(own_run: Path) -> None:
    """Its answers are there: the resampled extremes that its seesaw.json holds are not shown."""
    written = load_run(own_run).seesaw
    old = json.loads((own_run / "seesaw.json").read_text())
    del old["statistics"], old["verdict"], old["metrics"]["worst_recovery_estimate"]
    old["metrics_ci"] |= {"worst_recovery": [0.1, 0.2], "imbalance": [0.3, 0.4]}
    del old["metrics_ci"]["points_at_once"]
    (own_run / "seesaw.json").write_text(json.dumps(old))
    anew = load_run(own_run).seesaw
    assert (anew.metrics, anew.intervals, anew.verdict) == (written.metrics, written.intervals, written.verdict)
    truncate_jsonl(own_run / "evaluations.jsonl", lambda row: row["split"] == "validation")
    assert load_run(own_run).seesaw.intervals.worst_recovery == (0.1, 0.2)
    assert verdict(load_run(own_run)).headline.startswith("The seesaw remains: the worst domain keeps at most 20%")


def test_a_folder_that_is_no_run_and_a_damaged_one_are_refused(tmp_path: Path, own_run: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run: it has no recipe\.yaml"):
        write_report(tmp_path)
    (own_run / "metrics.jsonl").write_text("[]\n")
    with pytest.raises(RunError, match="line 1 is not a JSON object"):
        write_report(own_run)


def test_a_notebook_gets_plain_rows(run: Path) -> None:
    data = load_run(str(run))
    assert (data.name, data.method, data.seed, data.finished) == ("quickstart", "mopd", 0, True)
    seesaw = json.loads((run / "seesaw.json").read_text())
    scores = {(row["model"], row["domain"]): row for row in data.scores()}
    assert len(scores) == 5 * 3
    for (model, domain), row in scores.items():
        assert row == {"model": model, "domain": domain, "split": "test"} | seesaw["models"][model][domain]
    recovery = {row["domain"]: row for row in data.recovery()}
    for domain, row in recovery.items():
        low, high = seesaw["metrics_ci"]["recovery"][domain]
        assert (row["recovery"], row["low"], row["high"]) == (seesaw["metrics"]["recovery"][domain], low, high)
        gain = (row["student"] - row["base"]) / (row["teacher"] - row["base"])
        assert gain == pytest.approx(row["recovery"])
        assert row["points"] == pytest.approx(row["student"] - row["base"])
        assert row["teachers"] == domain
    assert len(data.metrics) == len(data.train) + len(data.evals) == 200 + 11
    assert data.ledger.spent["update"].seconds == pytest.approx(200 * 0.38)


def test_a_notebook_gets_what_there_is_of_a_run_that_has_only_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(domain_settings())))
    data = load_run(tmp_path)
    assert data.scores() == []
    assert [(row["domain"], row["recovery"], row["low"]) for row in data.recovery()] == [
        ("code", None, None), ("math", None, None), ("reasoning", None, None)
    ]  # fmt: skip


def test_sampled_scores_and_refused_programs_have_tables_of_their_own(own_run: Path) -> None:
    assert "no verifier looked at" not in write_report(own_run).read_text()
    seesaw = json.loads((own_run / "seesaw.json").read_text())
    seesaw["sampled"] = {"student": {"math": {"score": 0.897, "low": 0.85, "high": 0.93, "n": 200}}}
    refused = {"no_answer": 2, "refused": 17, "first_reason": "import of module 'os' <b>"}
    seesaw["unjudged"] = {"teachers/math": {"math": refused}}
    (own_run / "seesaw.json").write_text(json.dumps(seesaw))
    page = write_report(own_run).read_text()
    assert "<td>89.7%</td>" in page
    assert "<td>2</td><td>17</td><td>import of module &#39;os&#39; &lt;b&gt;</td>" in page


def test_episodes_have_tables_of_their_own(own_run: Path) -> None:
    assert "turns a minute" not in write_report(own_run).read_text()
    seesaw = json.loads((own_run / "seesaw.json").read_text())
    records = [
        EpisodeRecord(1.0, "done", turns=3, tool_calls=2, tool_errors=1, failed_first=True),
        EpisodeRecord(0.0, "turns", turns=6, tool_calls=6),
    ]
    seesaw["episodes"] = {"teachers/math": {"math": asdict(measured_episodes(records))}}
    (own_run / "seesaw.json").write_text(json.dumps(seesaw))
    pace = {"turns_per_minute": 1234.4, "tool_calls_per_minute": 60.0, "solved_per_minute": 30.0}
    exam = {"model": "teachers/math", "step": 0, "split": "test", "tokens": 1, "flops": 1.0, "seconds": 1.0}
    append_jsonl(own_run / "exams.jsonl", [exam | pace])
    page = write_report(own_run).read_text()
    for cell in ("4.50", "4.00", "0.50", "100.0%", "1 by the environment, 1 by the limit of turns"):
        assert f"<td>{cell}" in page
    assert "<th>math</th><td>1,234</td><td>60</td><td>30</td>" in page
