"""The report, looked at by a real browser."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

import pytest
from page_kit import CHROMIUM, WIDTHS, browse
from run_kit import write_run

from mopd.recipes.report.page import POLICY, write_report


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to open the report with")
def test_a_browser_opens_it_without_complaint_and_it_fits_phone_and_desk(tmp_path: Path) -> None:
    """Three frames as wide as a phone, a tablet and a desk; a script of the test's own measures each.

    It also complains once a frame, which proves that a complaint would be seen.
    """
    html = write_report(write_run(tmp_path / "run", n_test=300, n_validation=50)).read_text()
    report = html.replace(POLICY, "").replace("</body>", "<script>console.error('seen'); tell()</script></body>")
    tell = "function tell() { parent.told.push(document.documentElement.scrollWidth + '/' + innerWidth) }"
    report = report.replace("<head>", f"<head><script>{tell}</script>")
    frames = "".join(f'<iframe style="width:{w}px;border:0" srcdoc="{escape(report)}"></iframe>' for w in WIDTHS)
    done = "<script>onload = () => { document.title = told.sort().join(' ') }</script>"
    (tmp_path / "frames.html").write_text(f"<title></title><script>told = []</script>{frames}{done}")
    dom, complaints = browse(tmp_path / "frames.html", tmp_path / "profile")
    assert len(complaints.splitlines()) == len(WIDTHS)
    assert all("seen" in complaint for complaint in complaints.splitlines())
    measured = re.findall(r"(\d+)/(\d+)", re.findall(r"<title>(.*?)</title>", dom)[0])
    assert {int(window) for _, window in measured} == set(WIDTHS)
    assert [f"{content} in {window}" for content, window in measured if int(content) > int(window)] == []
