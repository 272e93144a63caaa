"""Results to look at by hand: a widget in the notebook, and the same as a page of its own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.arguments import checked, instance_of
from workbench.viewer.behind import drawings_of, without_drawings
from workbench.viewer.page import gallery
from workbench.viewer.sources import Results, sources_of
from workbench.viewer.studies import studies_of

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.steering.direction import Direction
    from workbench.viewer.drawing import Drawing
    from workbench.viewer.widget import Explorer

__all__ = ["explore", "gallery"]
EXTRA = 'pip install "diffusion-workbench[notebook]"'


@checked(direction=instance_of("workbench.steering.direction:Direction"))
def explore(
    results: Results | Mapping[str, Results],
    model: "Model | None" = None,
    *,
    direction: "Direction | None" = None,
) -> "Explorer":
    """Look through a run or results in the notebook: click a cell of a heat-map, and see its interval, prompts and pictures.

    results: a run, what `causal_trace`, `locogen`, `steer_sweep` or `open_results` return, a folder of results, or several of these
    by their titles. A run's heat-map is how far each world's picture, and each value that was recorded, is from the first world's.
    Strengths, steps and other ordered axes have sliders; arrow keys move from cell to cell, Enter draws.

    model: draws the pictures behind the cells of a causal trace, LocoGen or a sweep (direction: the sweep's) when a cell is clicked,
    since results hold scores alone; and a run's pictures after each step, where it recorded "latents". It must be the model of the
    results, and what it draws must be as far from its reference as was measured: else the view says so and shows no picture.

    >>> view = wb.explore(trace, model)  # the last line of a notebook's cell shows it
    >>> view = wb.explore(model.run(["a zebra", "a giraffe"], record="latents"), model)

    The numbers are those of `effects`. Needs the extra `[notebook]`; `gallery` writes the same as a page without it.

    Raises ImportError without that extra, ValueError for anything but results and for a model that is not theirs.
    """
    try:
        from workbench.viewer.widget import Explorer
    except ImportError as error:
        raise ImportError(
            f"wb.explore needs ipywidgets and anywidget ({error}), which the extra [notebook] brings: {EXTRA}; "
            "wb.gallery(results, 'page.html') writes the same as a page without them"
        ) from None
    held = sources_of(results)
    studies, sources = studies_of(held), list(held.values())
    drawings: list[Drawing | None] = [None] * len(studies)
    if model is None:
        without_drawings(studies, sources, "wb.explore(results, model) draws them.")
    else:
        drawings = drawings_of(studies, sources, model, direction)
        for study, drawing in zip(studies, drawings):
            study.live = drawing is not None
    return Explorer(studies, sources, drawings)
