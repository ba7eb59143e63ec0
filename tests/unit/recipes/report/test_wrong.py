"""What a student gets wrong: lost questions first, beside base and teacher, by domain, and nothing of it is markup."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from answers_kit import keep_answers
from cli_kit import mopd, refused
from compare_kit import write_hand_run
from page_kit import CHROMIUM, Page, browse
from run_kit import write_run

from mopd.recipes.compare.comparison import compare
from mopd.recipes.compare.page import chosen_pair, write_comparison
from mopd.recipes.report.page import POLICY, write_report
from mopd.recipes.report.wrong import INLINE, LONGEST, asked_questions, counted, shown, wrong_answers

DOMAINS = ("math", "code", "chat")
TEACHERS = {"math": {"math": 1.0}, "code": {"code": 0.3, "math": 0.7}, "chat": {}}


def by_question(run: Path, model: str, split: str = "test") -> dict[str, float]:
    rows = map(json.loads, (run / "evaluations.jsonl").read_text().splitlines())
    return {row["prompt_id"]: row["correct"] for row in rows if (row["model"], row["split"]) == (model, split)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep_answers(write_hand_run(tmp_path_factory.mktemp("runs") / "run"))


def expected_kinds(run: Path) -> dict[str, str]:
    """Kind of each question, from the scores alone."""
    student, base = by_question(run, "student"), by_question(run, "base")
    teachers = {"math": by_question(run, "teachers/math"), "code": by_question(run, "teachers/math"), "chat": {}}
    kinds = {}
    for name, score in student.items():
        better = teachers[name.split("/")[0]].get(name, 0.0) > score
        kinds[name] = "right" if score == 1 else "lost" if base[name] > score else "missed" if better else "neither"
    return kinds


def test_every_question_has_its_kind_and_lost_ones_come_first(run: Path) -> None:
    questions = asked_questions(run, TEACHERS, split="test", step=20)
    expected = expected_kinds(run)
    assert {question.prompt_id: question.kind for question in questions} == expected
    assert len(set(expected.values())) >= 3
    order = ["lost", "missed", "neither", "right"]
    ranks = [order.index(question.kind) for question in questions]
    assert ranks == sorted(ranks)
    for kind in order:  # of each kind, the domains take turns
        domains = [question.domain for question in questions if question.kind == kind]
        turns = [domains.index(domain) for domain in dict.fromkeys(domains)]
        assert turns == list(range(len(turns)))
    counts = {count.domain: count for count in counted(questions)}
    for domain in DOMAINS:
        kinds = Counter(kind for name, kind in expected.items() if name.startswith(f"{domain}/"))
        count = counts[domain]
        assert (count.asked, count.lost, count.missed, count.neither) == (
            100, kinds["lost"], kinds["missed"], kinds["neither"],
        )  # fmt: skip
        assert count.wrong == 100 - kinds["right"]


def test_an_answer_stands_beside_those_of_the_base_and_the_heaviest_teacher(run: Path) -> None:
    questions = asked_questions(run, TEACHERS, split="test", step=20)
    for question in questions:
        whos = [answer.who for answer in question.answers]
        assert whos == (["base", "student"] if question.domain == "chat" else ["base", "teacher math", "student"])
        for answer in question.answers:
            model = answer.who.replace("teacher ", "teachers/")
            assert answer.text == f"{model} says {'right' if answer.right else 'wrong'}"
            assert answer.verdict == by_question(run, model)[question.prompt_id]


def test_partial_scores_are_wrong_and_lost_where_the_base_scores_more(tmp_path: Path) -> None:
    run = write_hand_run(
        tmp_path / "run", base={d: [0.75, 0.25, 1.0] for d in DOMAINS}, student={d: [0.5, 0.5, 1.0] for d in DOMAINS},
        teachers={"math": {d: [0.5, 0.75, 0.0] for d in DOMAINS}, "code": {d: [0.0] * 3 for d in DOMAINS}},
    )  # fmt: skip
    kinds = [q.kind for q in asked_questions(keep_answers(run), TEACHERS, split="test", step=20) if q.domain == "math"]
    assert kinds == ["lost", "missed", "right"]


def test_a_run_of_an_earlier_version_has_no_section(tmp_path: Path) -> None:
    run = write_hand_run(tmp_path / "run")
    assert wrong_answers(run, TEACHERS, split="test", domains=DOMAINS) is None


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep_answers(write_run(tmp_path_factory.mktemp("runs") / "big", n_test=200, n_validation=40))


def test_the_page_shows_thirty_and_says_where_the_rest_is(big: Path) -> None:
    text = write_report(big).read_text()
    page = Page(text)
    student = by_question(big, "student")
    wrong = sum(score < 1 for score in student.values())
    assert wrong > INLINE == text.count('<article class="question"')
    section = " ".join(page.sections["wrong"].split())
    assert f"30 of {wrong}, lost ones first" in section
    assert f"mopd answers {big}" in section
    kinds = re.findall(r'<article class="question" data-domain="(\w+)" data-kind="(\w+)"', text)
    assert kinds[0][1] == "lost"
    assert {domain for domain, kind in kinds if kind == "lost"} == {"math", "code", "reasoning"}
    assert page.tags.count("script") == 1
    assert f'content="{POLICY}"' in text


def test_what_models_write_is_text_and_long_texts_say_what_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", n_test=20, n_validation=20)
    keep_answers(run, text="<script>alert(1)</script></script>" + "x" * 5000, reason="<b>os</b>", prompt="<img src=x>")
    text = write_report(run).read_text()
    page = Page(text)
    assert page.tags.count("script") == 1
    assert not {"img", "b>"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.sections["wrong"]
    assert f"[…] {5034 - LONGEST:,} more letters" in page.sections["wrong"]
    assert shown("short") == "short"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to open the page with")
def test_a_browser_filters_by_text_domain_and_kind(big: Path, tmp_path: Path) -> None:
    """As it is, its policy lets the one script run; without the policy, a script of the test's own uses the search."""
    text = write_report(big).read_text()
    dom, complaints = browse(big / "report.html", tmp_path / "first")
    assert complaints == ""
    assert "<output>30 of 30</output>" in dom
    use = """
    const box = document.querySelector(".find"), [text, domain, kind] = box.querySelectorAll("input, select")
    const shown = []
    const look = (words, of, sort) => {
      [text.value, domain.value, kind.value] = [words, of, sort]
      box.dispatchEvent(new Event("input", {bubbles: true}))
      const seen = [...document.querySelectorAll(".question")].filter(e => e.offsetParent)
      shown.push(seen.map(e => e.dataset.domain + e.dataset.kind))
    }
    look("QUESTION Math", "", ""); look("", "code", "lost"); look("nobody wrote this", "", ""); look("", "", "")
    document.title = JSON.stringify(shown)
    """
    (tmp_path / "used.html").write_text(text.replace(POLICY, "").replace("</body>", f"<script>{use}</script></body>"))
    dom, _ = browse(tmp_path / "used.html", tmp_path / "second")
    math, code, none, every = json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", dom)[0]))
    kinds = re.findall(r'<article class="question" data-domain="(\w+)" data-kind="(\w+)"', text)
    assert math == [f"{domain}{kind}" for domain, kind in kinds if domain == "math"]
    assert code == ["codelost"] * sum(pair == ("code", "lost") for pair in kinds) != []
    assert (none, len(every)) == ([], 30)


# ---- several runs


def test_a_comparison_shows_rows_beside_each_other(tmp_path: Path) -> None:
    other = {d: [1.0] * 40 + [0.0] * 60 for d in DOMAINS}
    first = keep_answers(write_hand_run(tmp_path / "first"))
    worse = keep_answers(write_hand_run(tmp_path / "worse", {"run.steps": 21}, student=other))
    without = write_hand_run(tmp_path / "without", {"run.steps": 22})
    comparison = compare([first, worse, without])
    text = write_comparison(comparison, tmp_path / "out", chosen_pair(comparison, None)).read_text()
    page = Page(text)
    section = " ".join(page.sections["wrong"].split())
    assert "No answers were kept by without." in section
    for run in (first, worse):
        student, base = by_question(run, "student"), by_question(run, "base")
        for domain in DOMAINS:
            mine = {name: score for name, score in student.items() if name.startswith(f"{domain}/")}
            lost = sum(score < base[name] for name, score in mine.items())
            assert f"{sum(s < 1 for s in mine.values())} ({lost} lost) of 100" in section
    assert text.count('<article class="question"') == INLINE
    (article, *_) = re.findall(r"<article.*?</article>", text, re.DOTALL)
    assert 'data-kind="lost"' in article
    whos = [re.sub("<.*?>", "", who)[1:] for who in re.findall(r'<p class="who">(.*?)</p>', article)]
    assert whos in (
        ["base", "teacher math", "first", "worse"],
        ["base", "teacher code", "first", "worse"],
        ["base", "first", "worse"],
    )


# ---- on the command line


def test_answers_are_searched_and_exported(big: Path, tmp_path: Path) -> None:
    found = json.loads(mopd("answers", str(big), "--json", "-").stdout)
    student = by_question(big, "student")
    wrong = {name for name, score in student.items() if score < 1}
    assert {question["prompt_id"] for question in found["questions"]} == wrong
    assert (found["split"], found["step"]) == ("test", 200)
    code = json.loads(mopd("answers", str(big), "--domain", "code", "--kind", "lost", "--json", "-").stdout)
    base = by_question(big, "base")
    lost = {name for name in wrong if name.startswith("code/") and base[name] > student[name]}
    assert {question["prompt_id"] for question in code["questions"]} == lost != set()
    searched = json.loads(mopd("answers", str(big), "--search", "MATH/test/1", "--all", "--json", "-").stdout)
    assert {q["prompt_id"] for q in searched["questions"]} == {n for n in student if n.startswith("math/test/1")}
    out = tmp_path / "deep" / "wrong.parquet"
    result = mopd("answers", str(big), "--limit", "2", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert f"2 of {len(wrong)} shown; test questions, student after step 200" in result.stdout
    assert result.stdout.count("✗ student: student says wrong") == 2
    rows: Any = datasets.load_dataset("parquet", data_files=str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert [row["prompt_id"] for row in rows] == [question["prompt_id"] for question in found["questions"]]
    for row, question in zip(rows, found["questions"], strict=True):
        assert row["student_text"] == question["answers"][-1]["text"]
        assert (row["kind"], row["teacher"]) == (question["kind"], question["domain"])


def test_validation_answers_of_an_earlier_step_are_there_too(big: Path) -> None:
    found = json.loads(mopd("answers", str(big), "--split", "validation", "--step", "20", "--json", "-").stdout)
    assert (found["split"], found["step"], sum(count["asked"] for count in found["counts"])) == ("validation", 20, 120)


def test_answers_that_are_not_there_are_refused(big: Path, tmp_path: Path) -> None:
    assert "has no such answers; what it kept: test after step 200" in refused("answers", str(big), "--step", "7")
    assert "no domain is called 'maths'; did you mean `math`" in refused("answers", str(big), "--domain", "maths")
    assert "'lots' is unknown; did you mean `lost`" in refused("answers", str(big), "--kind", "lots")
    assert "holds no run" in refused("answers", str(tmp_path))
    assert "has no answers of its student" in refused("answers", str(write_hand_run(tmp_path / "old")))


def test_domains_whose_questions_share_their_ids_are_kept_apart(run: Path, tmp_path: Path) -> None:
    """Two domains of one task ask the same questions; only the domain tells their answers apart."""
    alike = write_hand_run(tmp_path / "run")
    path = alike / "evaluations.jsonl"
    path.write_text(re.sub(r'"prompt_id": "\w+/', '"prompt_id": "one/', path.read_text()))
    keep_answers(alike)
    counts = [counted(asked_questions(folder, TEACHERS, split="test", step=20)) for folder in (run, alike)]
    assert sorted(counts[1], key=lambda count: count.domain) == sorted(counts[0], key=lambda count: count.domain)
