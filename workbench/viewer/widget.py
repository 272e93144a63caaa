"""The view in a notebook: what the page shows, with pictures that the kernel draws when they are asked for."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from workbench.viewer.behind import as_urls, picture_of, place_of
from workbench.viewer.page import SCRIPT, STYLE
from workbench.viewer.sources import Held
from workbench.viewer.views import Study, key

if TYPE_CHECKING:
    from workbench.viewer.drawing import Drawing


class Explorer(anywidget.AnyWidget):
    """A widget (`ipywidgets.DOMWidget`) that shows studies. Make it with `workbench.explore`.

    asked: what the view asks for, {"study", "view", "at"}, numbers and, by axis, numbers. answer: its pictures, {"study", "key",
    "pictures", "error"}.
    """

    _esm = SCRIPT
    _css = STYLE
    studies: traitlets.List = traitlets.List().tag(sync=True)
    asked: traitlets.Dict = traitlets.Dict().tag(sync=True)
    answer: traitlets.Dict = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        studies: Sequence[Study],
        results: Sequence[Held],
        drawings: Sequence["Drawing | None"],
    ):
        super().__init__(studies=[study.plain() for study in studies])
        self._held = list(zip(studies, results, drawings))
        self.observe(self._draw, "asked")

    def _draw(self, change: Mapping[str, Any]):
        number, at = change["new"]["study"], change["new"]["at"]
        study, results, drawing = self._held[number]
        answer = {"study": number, "key": key(at), "pictures": study.pictures.get(key(at)), "error": ""}
        if answer["pictures"] is None and drawing is not None:
            try:
                place = place_of(results, study.views[change["new"]["view"]], at)
                (captioned,) = drawing.pictures([place], *picture_of(results, at))
                answer["pictures"] = study.pictures[key(at)] = as_urls(captioned)
            except (ValueError, KeyError, RuntimeError, FloatingPointError, MemoryError) as error:
                answer["error"] = str(error)  # there is no cell whose output a traceback could stand in
        self.answer = answer
