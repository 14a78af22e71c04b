"""Pages in a real browser: the fixture `browser_pages`, which conftest.py offers to all tests."""

import contextlib
import functools
import http.server
import importlib.util
import os
import pathlib
import shutil
import threading
import urllib.parse

import pytest

PHONE, DESKTOP = 390, 1280  # widths in pixels
NO_BROWSER = "no browser: install Debian's chromium, or set CHROMIUM to one"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Nothing but the page's own server is to be had, whatever network the machine has.
_ARGUMENTS = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


class _Handler(http.server.SimpleHTTPRequestHandler):
    # What the system says of these differs, and modules of another type do not run.
    extensions_map = {  # noqa: RUF012
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder):
    """Serves the files of a folder to this machine; yields the address, which ends in `/`."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@contextlib.contextmanager
def pages(chromium):
    """Yields `open(folder_or_file, width, at="", **options)`, see `browser_pages`."""
    problems, opened = [], []
    with contextlib.ExitStack() as stack:

        def open_page(path, width=DESKTOP, at="", **options):
            path = pathlib.Path(path)
            folder, name = (path, at) if path.is_dir() else (path.parent, path.name)
            own = stack.enter_context(serving(folder))
            viewport = {"width": width, "height": 844 if width < 600 else 800}
            context = chromium.new_context(viewport=viewport, **options)
            stack.callback(context.close)
            context.set_default_timeout(90_000)  # milliseconds; other tests run beside this one
            context.on("request", functools.partial(_request, own, problems))
            context.on("requestfailed", functools.partial(_failed, problems))
            context.on("response", functools.partial(_response, problems))
            context.on("console", functools.partial(_console, problems))
            context.on("weberror", lambda error: problems.append(f"exception: {error.error}"))
            page = context.new_page()
            opened.append(page)
            page.goto(own + urllib.parse.quote(name))
            return page

        yield open_page
        for page in opened:
            if not page.is_closed():
                page.evaluate("0")  # what happened until now is reported until this is answered
        found = list(problems)  # not what closing breaks off
    if found:
        pytest.fail("The browser reported:\n" + "\n".join(found), pytrace=False)


def _request(own, problems, request):
    if not request.url.startswith((own, "data:", "blob:")):
        problems.append(f"request to another host: {request.url}")


def _failed(problems, request):
    # The page itself breaks off requests, as when it goes elsewhere.
    if "ERR_ABORTED" not in (request.failure or ""):
        problems.append(f"failed: {request.url}: {request.failure}")


def _response(problems, response):
    if response.status >= 400:
        problems.append(f"status {response.status}: {response.url}")


def _console(problems, message):
    where = message.location["url"]
    # The browser asks for that icon by itself.
    if message.type == "error" and not where.endswith("/favicon.ico"):
        problems.append(f"console: {message.text} ({where})")


# Not for the whole session: while it lives, no other test of this thread could run an event loop.
@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium, started once a module."""
    named = os.environ.get("CHROMIUM")
    found = named or next(filter(None, map(shutil.which, _NAMES)), None)
    if not found or not importlib.util.find_spec("playwright"):
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def browser_pages(chromium):
    """A function `open(folder_or_file, width=1280, at="", **options)` that returns a page.

    It serves the folder, or that of the file, at a port of its own, opens what lies `at` there, or
    the file, in a window of that width (`PHONE` or `DESKTOP`), and returns playwright's `Page`.
    Options are those of playwright's `new_context`, as `color_scheme="dark"`. The test fails
    if the browser saw an error in the console, a failed request, or one to another host.
    """
    with pages(chromium) as open_page:
        yield open_page
