"""The report, looked at by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest
from run_kit import write_run

from mopd.recipes.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


WIDTHS = (360, 768, 1280)


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """Open a file in a browser; its document afterwards, and what it complained of."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
    ]
    command += ["--enable-logging=stderr", f"--user-data-dir={profile}", "--window-size=1400,900", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to open the report with")
def test_a_browser_opens_it_without_complaint_and_it_fits_phone_and_desk(tmp_path: Path) -> None:
    """Three frames as wide as a phone, a tablet and a desk; a script of the test's own measures each.

    It also complains once a frame, which proves that a complaint would be seen.
    """
    html = write_report(write_run(tmp_path / "run", n_test=300, n_validation=50)).read_text()
    report = html.replace("</body>", "<script>console.error('seen'); tell()</script></body>")
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
