"""The pictures behind cells: which drawing draws them, and what it is asked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr
from PIL import Image

from workbench.engine import Run
from workbench.pictures import data_url
from workbench.viewer import drawing
from workbench.viewer.sources import Held
from workbench.viewer.studies import LARGEST
from workbench.viewer.views import Study, View

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.steering.direction import Direction

SCORES = "Results hold scores and no pictures."
DRAWN = "causal traces, LocoGen and sweeps"


def is_drawn(results: Held) -> bool:
    """Whether a model can draw their pictures."""
    if not isinstance(results, xr.Dataset):
        return isinstance(results, Run)
    return bool({"restored", "patched"} & set(results.data_vars)) or _is_sweep(results)


def _is_sweep(results: xr.Dataset) -> bool:
    return "steered" in results and {"site", "strength"} <= set(results.sizes)


def drawing_of(results: Held, model: "Model", direction: "Direction | None") -> drawing.Drawing:
    """Draws pictures behind the cells. Raises ValueError where this model cannot."""
    if isinstance(results, Run):
        return drawing.LatentsDrawing(results, model)
    if not isinstance(results, xr.Dataset) or not is_drawn(results):
        raise ValueError(f"only pictures of {DRAWN} are drawn again; leave the model out")
    if "restored" in results:
        return drawing.TraceDrawing(results, model)
    if "patched" in results:
        return drawing.LocoGenDrawing(results, model)
    if direction is None:
        raise ValueError(
            "results of a sweep hold no more than a digest of their direction; give direction= to draw their pictures"
        )
    return drawing.SweepDrawing(results, model, direction)


def without_drawings(studies: Sequence[Study], results: Sequence[Held], how: str):
    """Let studies say how pictures are had, where they can be. how: a sentence."""
    for study, each in zip(studies, results):
        if study.views and not isinstance(each, Run):
            study.hint = f"{SCORES} {how if is_drawn(each) else f'Only those of {DRAWN} are drawn again.'}"


def drawings_of(
    studies: Sequence[Study], results: Sequence[Held], model: "Model", direction: "Direction | None"
) -> list[drawing.Drawing | None]:
    """Of each study what draws its pictures; one that this model cannot draw says why. Raises ValueError where it can draw none."""
    drawings: list[drawing.Drawing | None] = []
    for study, each in zip(studies, results):
        try:
            drawings.append(drawing_of(each, model, direction))
        except ValueError as error:
            drawings.append(None)
            study.hint = f"No pictures: {error}"
    if not any(drawings):
        raise ValueError(f"{studies[0].title}: {studies[0].hint.removeprefix('No pictures: ')}")
    return drawings


def place_of(results: Held, view: View, at: Mapping[str, int]) -> dict[str, Any]:
    """A cell by the values of its axes, as a `Drawing` takes it. at: by their numbers."""
    place = {axis.name: axis.values[at[axis.name]] for axis in view.axes}
    if "kind" in place and isinstance(results, xr.Dataset):
        layer, kind = place.pop("layer"), place.pop("kind")
        place["site"] = results.site.values[(results.layer == layer) & (results.kind == kind)].item()
    return place


def picture_of(results: Held, at: Mapping[str, int]) -> tuple[int, int, int]:
    """Prompt, seed and draw, as results call them, of what is chosen among the pictures behind a cell."""
    if not isinstance(results, xr.Dataset):
        return 0, 0, 0
    prompt, seed, draw = (
        int(results[axis].values[at[axis]]) if axis in results.dims else 0 for axis in ("prompt", "seed", "draw")
    )
    return prompt, seed, draw


def as_urls(captioned: Iterable[tuple[str, Image.Image]]) -> list[tuple[str, str]]:
    """Captioned pictures as a page holds them."""
    return [(caption, data_url(picture, LARGEST)) for caption, picture in captioned]
