"""What experiments are asked, as frozen values: the fields that all share. The command line reads them before torch is imported."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, Self

from workbench.arguments import Check, fit, level, one_of, optional
from workbench.inputs import count
from workbench.schema import whole
from workbench.steps import Window


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every experiment is asked."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Of the starting noise, shared by everything that is compared."""
    num_inference_steps: int | None = None
    """The model's own when left out."""
    guidance_scale: float | None = None
    """The model's own when left out."""

    @classmethod
    def of_results(cls, kept: Mapping[str, Any]) -> Self:
        """The spec of results, from what they keep of it: `json.loads(results.attrs["spec"])`.

        >>> import json
        >>> wb.TraceSpec.of_results(json.loads(trace.attrs["spec"])) == once
        True
        """
        return cls(**{each.name: _restored(kept[each.name]) for each in fields(cls)})

    def __post_init__(self):
        fit(self, **self._checks())

    def _checks(self) -> dict[str, Check]:
        """What each field may be, by name; the ones that `workbench.arguments` knows besides."""
        return {}


@dataclass(frozen=True, kw_only=True)
class RaceSpec:
    """How candidates race: prompts, draws and seeds are added only to those that may yet be among the best.

    >>> wb.RaceSpec(best=1).level
    0.95
    """

    best: int = 3
    """So many candidates (sites, windows, strengths) are looked for."""
    metric: str = "probability"
    """Of the picture; one that has bounds: a probability, a share, a similarity or a distance."""
    direction: Literal["min", "max"] | None = None
    """Which effects are best. Of a causal trace and a sweep "max", the largest, when left out, but "min" of a trace's pixel distance. Of
    LocoGen "min", the largest fall of the prompt's attribute, when left out; "max" is the largest rise of the target's."""
    level: float = 0.95
    """With this probability none of the true best is given up."""
    units: int = 4
    """So many units (a prompt with a draw and a seed) are drawn until it is asked again who may leave."""
    order: int = 0
    """Seed of the random order of the units."""

    def __post_init__(self):
        own = dict(best=count, direction=optional(one_of("min", "max")), level=level, units=count)
        fit(self, **own, order=partial(whole, least=0, most=2**32 - 1))


def _restored(value: Any) -> Any:
    """What JSON made of a field: windows are its only mappings."""
    if isinstance(value, dict):
        return Window(**value)
    return tuple(map(_restored, value)) if isinstance(value, list) else value
