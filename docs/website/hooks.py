"""Hooks of MkDocs: pages have the paths of their files in the repository, others are generated.

What a page links to comes along, wherever it is in the repository: other pages, pictures and tables
as they are, source files and folders as pages that show them.
"""

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.website import exports, gallery, models, notebooks  # noqa: E402

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)[^)#\s]+")
_AS_THEY_ARE = (".md", ".png", ".csv", ".json", ".html")
_BROWSER = ROOT / "build" / "browser"  # what `make docs-browser` made


def generated() -> dict[str, str | bytes]:
    """The generated pages: for each path its Markdown; and pictures on them."""
    found = {**_api(), **models.pages(), **notebooks.pages(), "gallery.md": gallery.page()}
    if (_BROWSER / "index.html").is_file():
        text = (ROOT / "docs" / "browser.md").read_text(encoding="utf-8")
        title, _, rest = text.partition("\n")
        link = "[Open the page](../browser/index.html){ .md-button .md-button--primary }"
        found["docs/browser.md"] = f"{title}\n\n{link}\n{rest}"
    return found


def on_config(config: MkDocsConfig) -> None:
    """Puts generated pages in the place of their folder in the navigation."""
    config.nav = _expanded(config.nav, [*generated(), *_reports()])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Gives pages their paths in the repository, and adds what is generated or linked to."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
            path = f"docs/{file.src_uri}"
            files.append(File.generated(config, path, abs_src_path=file.abs_src_path))
    for path, content in generated().items():
        if (file := files.get_file_from_path(path)) is not None:
            files.remove(file)
        files.append(File.generated(config, path, content=content))
    for path in sorted(_BROWSER.rglob("*")):
        if path.is_file():
            uri = path.relative_to(_BROWSER.parent).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    for path in ("README.md", *_reports(), *_paths(config.nav)):
        if files.get_file_from_path(path) is None and (ROOT / path).is_file():
            files.append(_file(path, config))
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        page = waiting.pop()
        for path in _linked(page.src_uri, page.content_string):
            uri = _page_of(path)
            if files.get_file_from_path(uri) is None and (ROOT / path).exists():
                new = (
                    _file(path, config)
                    if uri == path
                    else File.generated(config, uri, content=_shown(path))
                )
                files.append(new)
                waiting += [new] if new.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """Points links to source files and folders at the pages that show them."""
    uri = page.file.src_uri
    if page.parent is None:
        page.meta.setdefault("hide", ["navigation"])  # it has no neighbours: room for the text

    def link(match: re.Match[str]) -> str:
        path = _resolved(uri, match[0])
        return (
            match[0]
            if _page_of(path) == path
            else posixpath.relpath(_page_of(path), posixpath.dirname(uri) or ".")
        )

    return _LINK.sub(link, markdown)


def _file(path: str, config: MkDocsConfig) -> File:
    return File(path, str(ROOT), config.site_dir, config.use_directory_urls)


def _linked(uri: str, text: str) -> list[str]:
    return [_resolved(uri, target) for target in _LINK.findall(text)]


def _resolved(uri: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(uri), target))


def _page_of(path: str) -> str:
    """The path of the page that stands for a file or folder of the repository."""
    if (ROOT / path).is_dir():
        return f"{path}/index.md"
    if path.endswith(".ipynb"):
        return f"{path.removesuffix('.ipynb')}.md"
    return path if path.endswith(_AS_THEY_ARE) or not (ROOT / path).is_file() else f"{path}.md"


def _shown(path: str) -> str:
    """A page with what is in a source file or a folder."""
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
    if (ROOT / path).is_dir():
        names = sorted(p.name for p in (ROOT / path).iterdir() if p.suffix in (".toml", ".py"))
        return head + "\n".join(f"- [{name}]({name})" for name in names) + "\n"
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"{head}`````{Path(path).suffix[1:]}\n{text}`````\n"


def _reports() -> list[str]:
    found = sorted((ROOT / "results").glob("*/report.md"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def _paths(nav: list | dict | str) -> Iterator[str]:
    """All paths of a navigation."""
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _paths(entry)


def _expanded(nav: list | dict | str, pages: list[str]) -> list | dict | str:
    if isinstance(nav, str):
        return nav
    if isinstance(nav, dict):
        return {title: _expanded(entry, pages) for title, entry in nav.items()}
    found = []
    for entry in nav:
        if isinstance(entry, str) and entry.endswith("/"):
            inside = [path for path in pages if path.startswith(entry) and path.endswith(".md")]
            found += [path for path in inside if not path.endswith("index.md")]
        else:
            found.append(_expanded(entry, pages))
    return found


def _api() -> dict[str, str]:
    """A page for each public package, and one that lists them."""
    pages, rows = {}, ["# Reference", "What each package offers, from its docstrings.", ""]
    for name, folder in exports.packages().items():
        path = f"{name.rpartition('.')[2]}.md"
        pages[f"api/{path}"] = f"# {name}\n\n::: {name}\n"
        if name == "mf_zoo.applications":
            pages[f"api/{path}"] += f"\n{models.reference()}"
        rows.append(f"- [`{name}`]({path}): {exports.summary(folder)}")
    return {"api/index.md": "\n".join(rows) + "\n", **pages}
