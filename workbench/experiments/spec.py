"""What experiments are asked, as frozen values: the fields that all share. The command line reads them before torch is imported."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from workbench.arguments import Check, fit
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


def _restored(value: Any) -> Any:
    """What JSON made of a field: windows are its only mappings."""
    if isinstance(value, dict):
        return Window(**value)
    return tuple(map(_restored, value)) if isinstance(value, list) else value
