"""The documentation site: it builds, what it says is what the registries say, it works."""

import html.parser
import importlib
import logging
import os
import re
import shutil
import subprocess
import sys
import urllib.parse

import mkdocs.commands.build
import mkdocs.config
import mkdocs.exceptions
import pytest
from browser import DESKTOP, PHONE
from conftest import ROOT

from mf_zoo import applications, weights

pytestmark = pytest.mark.once

# Other tests have registered networks of theirs (tiny_zoo.py).
NETWORKS = [
    name
    for name in applications.list_models()
    if applications.network(name).architecture.source != "the tests"
]
# Attributes by which a page loads something by itself.
_LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(html.parser.HTMLParser):
    """What a page has: `ids`, `links`, what it `loads`, the `rows` of its tables, its `text`."""

    def __init__(self, path):
        super().__init__()
        self.path, self.ids, self.links, self.loads, self.rows = path, set(), [], [], []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get(_LOADS.get(tag)):
            self.loads.append(given[_LOADS[tag]])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        self.in_cell = tag in ("td", "th") or (self.rows and tag in ("code", "a", "strong"))

    def handle_endtag(self, tag):
        if tag in ("td", "th", "tr", "table"):
            self.in_cell = False

    def handle_data(self, data):
        self.text += data
        if self.rows and self.rows[-1] and self.in_cell:
            self.rows[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built once."""
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "-q", "build", "-d", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    assert not build.stdout + build.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """The pages of the site by their path in it."""
    found = {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}
    assert {"index.html", "gallery.html", "docs/train.html", "CHANGELOG.html"} <= set(found)
    return found


def test_links_lead_somewhere(site, pages):
    by_path = {page.path: page for page in pages.values()}
    for name, page in pages.items():
        if name == "404.html":  # is served at any address
            continue
        for target in [*page.links, *page.loads]:
            address = urllib.parse.urlsplit(target)
            if address.scheme:
                continue
            path = page.path
            if address.path:
                path = (page.path.parent / urllib.parse.unquote(address.path)).resolve()
            path = path / "index.html" if path.is_dir() else path
            assert path.is_file(), f"{name}: {target}"
            if address.fragment and path in by_path:
                anchor = urllib.parse.unquote(address.fragment)
                assert anchor in by_path[path].ids, f"{name}: {target}"


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        assert not [target for target in page.loads if "//" in target], name
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text), path


def test_faults_of_pages_fail_the_build(tmp_path, caplog):
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    links = ("nowhere.md", "../results/nowhere.py", "train.md#nowhere")
    with open(docs / "load.md", "a", encoding="utf-8") as page:
        page.writelines(f"\n\n[nowhere]({link})" for link in links)
    (docs / "alone.md").write_text("# In no navigation")
    config = mkdocs.config.load_config(
        str(ROOT / "mkdocs.yml"), docs_dir=str(docs), site_dir=str(tmp_path / "site"), plugins=[]
    )
    with caplog.at_level(logging.WARNING), pytest.raises(mkdocs.exceptions.Abort):
        mkdocs.commands.build.build(config)
    found = "\n".join(record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 4, found
    for link in links:
        assert f"'docs/load.md' contains a link '{link}'" in found
    assert re.search(r'not included in the "nav"[^:]*:\s+- docs/alone.md', found)


def test_every_public_name_is_in_the_reference(pages):
    ids = {anchor: name for name, page in pages.items() for anchor in page.ids}
    mf_zoo = importlib.import_module("mf_zoo")
    packages = [mf_zoo, *(getattr(mf_zoo, name) for name in mf_zoo._SUBPACKAGES)]
    for package in packages:
        where = f"api/{package.__name__.rpartition('.')[2]}.html"
        assert where in pages
        for name in package.__all__:
            foreign = name in applications.list_models() and name not in NETWORKS
            if name.startswith("__") or name in mf_zoo._SUBPACKAGES or foreign:
                continue
            page = ids.get(f"{package.__name__}.{name}")
            assert page is not None, f"{package.__name__}.{name}"
            assert page == where or name in NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_page_with_the_figures_of_its_records(name, pages):
    network = applications.network(name)
    page = pages[f"models/{network.architecture.name}.html"]
    assert f"mf_zoo.applications.{name}" in page.ids
    records = weights.records(model=name)
    assert (f"There are no weights of {name} yet" in page.text) == (not records)
    rows = [row for row in page.rows if row[:1] == [name]]
    errors = [
        [name, repr(record.name), f"{record.test_error:.2f}", f"{record.test_top5_error:.2f}"]
        for record in records
    ]
    assert [[*row[:2], *row[3:5]] for row in rows] == errors
    for record in records:
        card = pages[f"models/{name}-{record.name}.html"]
        assert ["top-1", f"{record.test_error:.2f}"] in card.rows
        assert record.command in card.text
        assert record.sha256 in card.text
        assert f"models/{name}-{record.name}.html".rpartition("/")[2] in page.links


def test_the_gallery_has_all_pictures_and_commands_that_exist(pages):
    gallery = pages["gallery.html"]
    tracked = {
        path for top in ("docs", "benchmarks", "results") for path in ROOT.glob(f"{top}/**/*.png")
    }
    assert tracked == {
        ROOT / path for path in gallery.loads if path.endswith(".png") and "assets" not in path
    }
    sources = {f"{m.replace('.', '/')}" for m in re.findall(r"python -m (\S+)", gallery.text)}
    sources |= set(re.findall(r"python (\w+/\w+)\.py", gallery.text))
    assert {"mf_zoo/theory/figures", "benchmarks/depth", "docs/make_pictures"} <= sources
    for source in sources:
        assert (ROOT / f"{source}.py").is_file() or (ROOT / source / "__main__.py").is_file()


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_pages_work_in_a_browser(site, browser_pages, width):
    page = browser_pages(site, width, "index.html")
    for at in ("index.html", "models/ResNet20.html", "api/layers.html", "gallery.html"):
        page.goto(urllib.parse.urljoin(page.url, f"/{at}"))
        assert page.locator("h1").first.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, at
    if width == PHONE:
        page.locator("label[for=__search]").first.click()
    # Key by key: the theme reads what was typed when a key goes up.
    page.locator("[data-md-component=search-query]").press_sequentially("MeanFieldStage")
    found = page.locator(".md-search-result__item a", has_text="MeanFieldStage")
    found.first.wait_for()
    found.first.click()
    page.wait_for_url("**/api/layers.html*")
