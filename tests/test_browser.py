"""What the fixture `browser_pages` calls wrong is wrong, and nothing else is."""

import re

import browser
import pytest

pytestmark = pytest.mark.once


_WRONG = """
<script>console.error("so wrong")</script>
<script>thrown()</script>
<script>Promise.reject(new Error("late"))</script>
<img src="absent.png" alt="">
<img src="http://example.org/a.png" alt="">
<script>fetch("http://127.0.0.2/").catch(() => {})</script>"""
_RIGHT = """
<script type="module">import {a} from "./a.mjs"; document.title = a; console.warn(a)</script>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=" alt="">"""


def _write(folder, body):
    (folder / "index.html").write_text(f"<!doctype html><title>t</title>{body}")
    (folder / "a.mjs").write_text("export const a = 'imported';")


def test_errors_in_the_browser_fail_a_test(chromium, tmp_path):
    _write(tmp_path, _WRONG)
    with pytest.raises(pytest.fail.Exception) as failure, browser.pages(chromium) as open_page:
        open_page(tmp_path).wait_for_load_state("networkidle")
    for expected in (
        "console: so wrong",
        "exception: .*thrown is not defined",
        "exception: .*late",
        r"status 404: .*/absent\.png",
        r"another host: http://example\.org/a\.png",
        r"another host: http://127\.0\.0\.2/",
    ):
        assert re.search(expected, str(failure.value)), (expected, failure.value)


def test_a_page_without_errors_is_opened_at_the_width(browser_pages, tmp_path):
    (tmp_path / "below").mkdir()
    _write(tmp_path / "below", _RIGHT)
    for width in (browser.PHONE, browser.DESKTOP):
        page = browser_pages(tmp_path, width, at="below/", color_scheme="dark")
        dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert (page.title(), page.evaluate("innerWidth"), dark) == ("imported", width, True)


def test_a_file_is_opened_beside_its_neighbours(browser_pages, tmp_path):
    (tmp_path / "a page.html").write_text("<!doctype html><link rel=stylesheet href=style.css>")
    (tmp_path / "style.css").write_text("body { width: 123px }")
    page = browser_pages(tmp_path / "a page.html", browser.PHONE)
    assert page.evaluate("document.body.clientWidth") == 123


def test_without_a_browser_tests_are_skipped(request, monkeypatch):
    monkeypatch.setattr(browser.shutil, "which", lambda _: None)
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser: install Debian's chromium"):
        next(browser.chromium.__wrapped__())
