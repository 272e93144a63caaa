"""One page that holds everything: no other file, no network, no code but its own."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.arguments import checked, instance_of
from workbench.files import no_folder, write_bytes
from workbench.inputs import count
from workbench.progress import Bar
from workbench.viewer.behind import as_urls, drawings_of, picture_of, place_of, without_drawings
from workbench.viewer.sources import Held, Results, sources_of
from workbench.viewer.studies import studies_of
from workbench.viewer.views import Study, View, key

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.steering.direction import Direction
    from workbench.viewer.drawing import Drawing

SCRIPT = files("workbench.viewer").joinpath("viewer.js").read_text("utf-8")
STYLE = files("workbench.viewer").joinpath("viewer.css").read_text("utf-8")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 1320px; padding: 16px; background: #fff; }}
{style}
</style>
</head>
<body>
<div id="viewer"><p>This page needs JavaScript, which it holds itself; nothing is loaded from anywhere.</p></div>
<script type="application/json" id="studies">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""
DRAW = "With model= wb.gallery draws them into the page, with --pictures `workbench gallery`."
START = """
const held = document.getElementById("studies");
if (held) mount(document.getElementById("viewer"), JSON.parse(held.textContent));
"""


@checked(direction=instance_of("workbench.steering.direction:Direction"), pictures=partial(count, least=0))
def gallery(
    results: Results | Mapping[str, Results],
    path: str | Path,
    *,
    model: "Model | None" = None,
    direction: "Direction | None" = None,
    pictures: int = 1,
) -> Path:
    """Write results as one self-contained HTML page: heat-maps to click through, with the intervals, prompts and pictures behind.

    results: what `explore` takes, a folder of results or of several such folders, or several of these by their titles. A run's
    pictures are in the page. Results hold scores and no pictures: those of a causal trace, LocoGen or a sweep are drawn again where
    a model is given, at every cell for the first so many prompts (pictures=), with the first seed and draw. direction: a sweep's,
    whose results hold no more than a digest of it. A run that recorded "latents" gets its pictures after each step.

    The page works from a file, with the keyboard too, and loads nothing. It is written whole or not at all; returns its path.

    >>> wb.gallery(run, "zebra.html").name
    'zebra.html'
    >>> page = wb.gallery({"What brings the zebra back?": trace, "Layers": windows}, "found.html")

    Raises ValueError for what is no run and no results, for a model that is not theirs, and FileNotFoundError for a folder without
    results; RuntimeError where a picture that is drawn again is not the one that was measured.
    """
    no_folder(Path(path))
    held = sources_of(results)
    studies = studies_of(held)
    if model is not None and pictures:
        draw_all(studies, list(held.values()), model, direction, pictures)
    else:
        without_drawings(studies, list(held.values()), DRAW)
    for study in studies:  # nothing else can be had in a page
        study.choices = [
            axis if axis.name == "prompt" else replace(axis, values=axis.values[:1]) for axis in study.choices
        ]
    return write_bytes(Path(path), page(studies).encode())


def page(studies: Sequence[Study]) -> str:
    """The page as a text."""
    data = json.dumps([study.plain() for study in studies], allow_nan=False)
    script = SCRIPT + START
    return PAGE.format(
        title=escape(", ".join(study.title for study in studies)),
        style=STYLE,
        # no text can end the element that holds it
        data=data.replace("<", "\\u003c"),
        script=script,
        digest=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def draw_all(
    studies: Sequence[Study],
    results: Sequence[Held],
    model: "Model",
    direction: "Direction | None",
    prompts: int,
):
    """Draw every cell of every study that the model can draw; the others say why it cannot."""
    wanted = [
        (study, each, drawing, dict(_cells(study, prompts)))
        for study, each, drawing in zip(studies, results, drawings_of(studies, results, model, direction))
        if drawing is not None
    ]
    with Bar(sum(len(cells) for *_, cells in wanted), "drawing", "cell") as bar:
        for study, each, drawing, cells in wanted:
            _draw(study, each, drawing, cells, bar)
            if isinstance(each, xr.Dataset):
                drawn = f"first {prompts} prompts" if prompts > 1 else "first prompt"
                study.hint = f"The page has the pictures of the {drawn}, with the first seed and draw."


def _cells(study: Study, prompts: int) -> Iterator[tuple[str, tuple[View, dict[str, int]]]]:
    """Every cell that has a value in some view, by the key of its pictures; what is chosen are the first prompts, seed and draw."""
    sizes = {axis.name: min(len(axis.values), prompts if axis.name == "prompt" else 1) for axis in study.choices}
    for view in study.views:
        value = view.cells["value"]
        for index in zip(*np.nonzero(np.isfinite(value))):
            cell = {axis.name: int(i) for axis, i in zip(view.axes, index)}
            for chosen in np.ndindex(*sizes.values()):
                at = cell | dict(zip(sizes, chosen))
                if (name := key(at)) not in study.pictures:
                    yield name, (view, at)


def _draw(
    study: Study,
    results: Held,
    drawing: "Drawing",
    cells: Mapping[str, tuple[View, dict[str, int]]],
    bar: Bar,
):
    """Draw cells into a study, those of one prompt, seed and draw together."""
    groups: dict[tuple[int, int, int], list[str]] = {}
    for name, (_, at) in cells.items():
        groups.setdefault(picture_of(results, at), []).append(name)
    for chosen, names in groups.items():
        places = [place_of(results, *cells[name]) for name in names]
        for name, captioned in zip(names, drawing.pictures(places, *chosen)):
            study.pictures[name] = as_urls(captioned)
            bar.update()
