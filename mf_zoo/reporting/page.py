"""Parts of a self-contained HTML page, by Plotly's HTML and `string.Template`."""

import base64
import html
import io
import itertools
import json
import os
import string
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo import files

if TYPE_CHECKING:
    import numpy as np
    from plotly.graph_objects import Figure

# A page that asks no host for anything, whatever stands in it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
_CONFIG = {
    "displaylogo": False,
    "showSendToCloud": False,  # a button that would upload the figure
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}

_PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light; --line: #d5dae0; --soft: #f5f7f9; --ink: #1b1f24; --mark: #fff3cd; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 76rem; background: #fff;
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1.1rem; margin: 1.5rem 0 .25rem; overflow-wrap: anywhere; }
h4 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p, summary, dd, figcaption { overflow-wrap: anywhere; max-width: 48rem; }
a { color: #0b5394; }
:focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; }
dt { color: #555c66; }
dd { margin: 0; }
code { font-size: .9em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
tr.changed > * { background: var(--mark); }
td { overflow-wrap: break-word; max-width: 24rem; }
figure { margin: 1rem 0; min-width: 0; }
figcaption { font-weight: 600; font-size: .95rem; }
.wide { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.player { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: .5rem 0; }
.player button { font: inherit; padding: .4rem 1rem; min-width: 6rem; cursor: pointer;
  border: 1px solid #0b5394; border-radius: .4rem; background: #0b5394; color: #fff; }
.player input { flex: 1 1 12rem; min-width: 0; accent-color: #0b5394; height: 2rem; }
.player output { flex: 1 1 100%; font-variant-numeric: tabular-nums; min-height: 3em;
  overflow-wrap: anywhere; }
.images { display: grid; gap: .75rem; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); }
.images img { width: 100%; max-width: 8rem; aspect-ratio: 1; object-fit: contain;
  image-rendering: pixelated; background: var(--soft); display: block; }
.images li { font-size: .85rem; line-height: 1.3; overflow-wrap: anywhere; }
footer { margin-top: 3rem; color: #555c66; font-size: .9rem; }
@media (max-width: 36rem) { dl { display: block; } dd { margin: 0 0 .5rem; } }
@media print { nav, .player button, .player input, .modebar-container { display: none !important; }
  figure, tr, .images li { break-inside: avoid; } h2, h3 { break-after: avoid; } }
</style>
</head>
<body>
<header>
<h1>$title</h1>
$header
<nav aria-label="Sections"><ul>$navigation</ul></nav>
</header>
<main>
$sections
</main>
<footer>$footer</footer>
<script>
for (const player of document.querySelectorAll(".player")) {
  const plot = document.getElementById(player.dataset.plot);
  const frames = JSON.parse(player.dataset.frames), said = JSON.parse(player.dataset.said);
  const [button, slider, output] = ["button", "input", "output"].map(t => player.querySelector(t));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let playing = 0;  // the number of the playback; 0 for none
  let count = 0;
  function show(k) {
    slider.value = k;
    slider.setAttribute("aria-valuetext", said[k]);
    output.textContent = said[k];
  }
  function pause() {
    playing = 0;
    button.textContent = "Play";
  }
  const go = (k, ms) => Plotly.animate(plot, [frames[k]], {mode: "immediate",
    frame: {duration: ms, redraw: false}, transition: {duration: still ? 0 : ms * 0.6}});
  async function play() {
    const mine = playing = ++count;
    button.textContent = "Pause";
    let k = Number(slider.value);
    k = k === frames.length - 1 ? 0 : k + 1;
    for (; k < frames.length && playing === mine; k++) {
      show(k);
      await go(k, Math.max(120, Math.min(700, 20000 / frames.length)));
    }
    if (playing === mine) pause();
  }
  button.addEventListener("click", () => playing ? pause() : play());
  slider.addEventListener("input", () => {
    pause();
    show(Number(slider.value));
    go(Number(slider.value), 0);
  });
}
</script>
</body>
</html>
""")


class Page:
    """A page that grows by sections; whatever is given as text is escaped.

    Args:
        title: Its heading.
        header: HTML below the heading.
        footer: HTML at the end.
    """

    def __init__(self, title: str, header: str, footer: str):
        self._title, self._header, self._footer = html.escape(title), header, footer
        self._sections: list[tuple[str, str]] = []
        self._numbers = itertools.count(1)

    def add(self, heading: str, *parts: str) -> None:
        """Adds a section of HTML under a heading, a text."""
        self._sections.append((html.escape(heading), "\n".join(parts)))

    def figure(self, figure: "Figure", caption: str, said: Sequence[str] = ()) -> str:
        """HTML of a figure; the first one brings Plotly along.

        Args:
            figure: The figure. Its frames get a button that plays them and a slider.
            caption: A text.
            said: For each frame what the page says of it.
        """
        number = next(self._numbers)
        plot = figure.to_html(
            config=_CONFIG,
            full_html=False,
            include_plotlyjs=number == 1,
            auto_play=False,
            div_id=f"plot-{number}",
            default_height=figure.layout.height,
        )
        text = html.escape(caption)
        player = ""
        if said:
            last = len(said) - 1
            player = (
                f'<div class="player" data-plot="plot-{number}" '
                f"data-frames={_attribute([frame.name for frame in figure.frames])} "
                f"data-said={_attribute(list(said))}>"
                '<button type="button">Play</button>'
                f'<input type="range" min="0" max="{last}" value="{last}" aria-label="Epoch">'
                f'<output aria-live="off">{html.escape(said[-1])}</output></div>\n'
            )
        return f"<figure>\n<figcaption>{text}</figcaption>\n{player}{plot}\n</figure>"

    def write(self, path: Path) -> None:
        """Writes the page, atomically."""
        links = (
            f'<li><a href="#part-{k}">{heading}</a></li>'
            for k, (heading, _) in enumerate(self._sections)
        )
        sections = (
            f'<section aria-labelledby="part-{k}">\n<h2 id="part-{k}">{heading}</h2>\n'
            f"{content}\n</section>"
            for k, (heading, content) in enumerate(self._sections)
        )
        text = _PAGE.substitute(
            policy=_POLICY,
            title=self._title,
            header=self._header,
            navigation="".join(links),
            sections="\n".join(sections),
            footer=self._footer,
        )
        files.write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def _attribute(values: Any) -> str:
    return f'"{html.escape(json.dumps(values))}"'


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{html.escape(text)}</p>"


def code(text: str) -> str:
    """A command or name."""
    return f"<code>{html.escape(text)}</code>"


def link(target: Path, page: Path, text: str) -> str:
    """A link, relative to the folder of the page; a text alone where there is no such way."""
    try:
        way = os.path.relpath(target.resolve(), page.resolve().parent)
    except ValueError:  # another drive of Windows
        return html.escape(text)
    # A colon is quoted too, so no name of a folder is a scheme.
    href = urllib.parse.quote(os.fsencode(Path(way).as_posix()))
    return f'<a href="{html.escape(href)}">{html.escape(text)}</a>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A list of names, which are texts, with values, which are HTML."""
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{value}</dd>" for name, value in rows)
    return f"<dl>{items}</dl>"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    marked: Iterable[bool] = (),
    numbers: int = 0,
) -> str:
    """A table of texts, whose first column heads its rows.

    Args:
        header: Names of the columns.
        rows: For each row its cells.
        marked: For each row whether it has another ground.
        numbers: How many columns, the last ones, are numbers.
    """
    kinds = [""] * (len(header) - numbers) + [' class="number"'] * numbers
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(name)}</th>'
        for name, kind in zip(header, kinds, strict=True)
    )
    body = []
    for row, mark in itertools.zip_longest(rows, marked, fillvalue=False):
        first, *rest = (html.escape(cell) for cell in row)
        cells = "".join(
            f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, kinds[1:], strict=True)
        )
        changed = ' class="changed"' if mark else ""
        body.append(f'<tr{changed}><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def heading(level: int, text: str) -> str:
    """A heading within a section."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def fold(summary: str, content: str) -> str:
    """HTML that is shown on demand, under a text."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{content}\n</details>"


def image(pixels: "np.ndarray", alternative: str) -> str:
    """An image in the page.

    Args:
        pixels: uint8 `(rows, cols, channels)`, one channel or three.
        alternative: What it is, a text.
    """
    from PIL import Image

    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{content}" alt="{html.escape(alternative)}">'
