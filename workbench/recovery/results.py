"""What a test of recovery found: a table of all attacks beside their controls, and curves over budgets."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.arguments import checked, fit, one_of
from workbench.experiments.results import scores
from workbench.experiments.statistics import (
    LEVEL,
    RESAMPLES,
    Estimate,
    mean,
)
from workbench.recovery.specs import ATTACKS

OVER = ("prompt", "seed")
AXES = ("lam", "distance", "strength", "share", "tokens", "updates")  # what sets tries of an attack apart
BUDGETS = {"closed_form": "distance", "nearest_states": "distance", "concept_vector": "strength"}
BUDGETS |= {"completion": "share", "relearning": "updates"}  # along which an attack has a curve
ANY = "any of these"


@dataclass(frozen=True)
class Recovery:
    """What a test of recovery found.

    data: scores by metric, prompt and seed: `unedited`; `before`, the edited model; `redrawn` (draw), the same from other seeds; and of
    each attack by its name, over what it asked for (`asks`: "concept", "control", "random") and its settings. Metrics: `concept`, whether
    the concept is the likeliest label; `concept_probability`; `control`, whether the control is; `moved`, how far an attack's text
    states went, |C' - C| / |C|.

    >>> list(recovered.data.data_vars)
    ['completion', 'nearest_states', 'unedited', 'before', 'redrawn']
    >>> recovered.concept, recovered.control
    ('zebra', 'giraffe')
    """

    data: xr.Dataset

    def __post_init__(self):
        fit(self, data=scores("unedited", "before", "redrawn"))

    @property
    def asked(self) -> dict[str, Any]:
        """All that was asked, as plain values."""
        return json.loads(self.data.attrs["spec"])

    @property
    def concept(self) -> str:
        return self.asked["concept"]

    @property
    def control(self) -> str:
        return self.asked["control"]

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of those that were made."""
        return tuple(name for name in ATTACKS if name in self.data)

    @property
    def refused(self) -> dict[str, str]:
        """Why attacks were left out that do not fit the edit, by name."""
        return self.asked["refused"]

    @checked
    def table(self, *, level: float = LEVEL, resamples: int = RESAMPLES) -> pd.DataFrame:
        """How often the concept is shown, one row for each attack and setting: shares of images.

        Columns: `attack`, `setting`; `unedited`, the unedited model; `before`, the edited one; `after` the attack, with its interval over
        prompts and seeds, `after_low`, `after_high`; `control`, after the attack that asks for another concept, and `random`, after one
        that asks for nothing (NaN where there is no such); `moved`, how far states went on average; `redrawn`, in any of `redraws` other
        pictures of the edited model. The setting "any of these" counts images that any of an attack's settings brings back: compare it
        with `redrawn`, for it tried `tries` times.

        >>> recovered.table(resamples=100)[["attack", "setting", "unedited", "before", "after"]].head(3)
                   attack       setting  unedited  before  after
        0  nearest_states  distance 0.2       1.0     0.0    1.0
        1  nearest_states    distance 9       1.0     0.0    1.0
        2  nearest_states  any of these       1.0     0.0    1.0
        """
        concept = self.data.sel(metric="concept")
        common: dict[str, Any] = {name: float(concept[name].mean()) for name in ("unedited", "before")}
        redrawn = {"redraws": concept.sizes["draw"], "redrawn": float(concept.redrawn.max("draw").mean())}
        rows = []
        for name in self.attacks:
            cells = concept[name].stack(setting=[axis for axis in AXES if axis in concept[name].dims])
            cells = cells.dropna("setting", how="all")  # settings of other attacks
            own = [cells.isel(setting=i) for i in range(cells.sizes["setting"])]
            moved = self.data[name].sel(metric="moved") if "moved" in self.data.metric else None
            labels = [settings(each) for each in own]
            for label, each in [*zip(labels, own), *([(ANY, cells.max("setting"))] if len(own) > 1 else [])]:
                found = estimate(each.sel(asks="concept"), level=level, resamples=resamples)
                row = dict(attack=name, setting=label, **common)
                row |= {"after": found.value, "after_low": found.low, "after_high": found.high}
                row |= {asks: _mean(each, asks) for asks in ("control", "random")}
                row["moved"] = np.nan
                if moved is not None and label != ANY:
                    place = {axis: each.coords[axis].item() for axis in AXES if axis in moved.dims}
                    row["moved"] = float(moved.sel(asks="concept", **place).mean())
                rows.append(row | {"tries": len(own) if label == ANY else 1} | redrawn)
        return pd.DataFrame(rows)

    @checked(attack=one_of(*BUDGETS), metric=one_of("concept", "concept_probability"))
    def curve(
        self, attack: str, *, metric: str = "concept", level: float = LEVEL, resamples: int = RESAMPLES
    ) -> pd.DataFrame:
        """How often the concept is shown over an attack's budget (distance, strength, share of the steps or gradient steps): rows (asks,
        budget, value, low, high), of several lams the best at each budget.

        Raises KeyError for an attack that was not made.

        >>> recovered.curve("completion", resamples=100).columns.tolist()
        ['asks', 'share', 'value', 'low', 'high']
        """
        if attack not in self.data:
            raise KeyError(f"attack={attack!r} was not made; there are {', '.join(self.attacks)}")
        budget, cells = BUDGETS[attack], self.data[attack].sel(metric=metric)
        rows = []
        for asks in cells.asks.values:
            own = cells.sel(asks=asks).dropna(budget, how="all")
            for each in own[budget].values:
                at = own.sel({budget: each})
                if "lam" in at.dims:
                    at = at.isel(lam=int(at.mean(OVER).argmax("lam")))
                if at.notnull().any():
                    found = estimate(at, level=level, resamples=resamples)
                    rows.append({"asks": str(asks), budget: each.item(), **found._asdict()})
        return pd.DataFrame(rows)

    @checked(attack=one_of(*BUDGETS))
    def half_back(self, attack: str = "relearning") -> float:
        """The least budget of an attack behind which the concept is shown half as often as by the unedited model; NaN where none is
        enough.

        >>> recovered.half_back("completion")  # with two steps, one of them
        0.3
        """
        curve = self.curve(attack, resamples=2)
        half = float(self.data.unedited.sel(metric="concept").mean()) / 2
        enough = curve[(curve.asks == "concept") & (curve.value >= half)]
        return float(enough[BUDGETS[attack]].min()) if len(enough) else float("nan")

    def __repr__(self):
        table = self.table(resamples=200).drop(columns=["after_low", "after_high"]).round(2)
        left = "".join(f"\n{name} was left out: {why}" for name, why in self.refused.items())
        return f"Recovery of {self.concept!r} (control {self.control!r}):\n{table.to_string(index=False)}{left}"


def settings(cells: xr.DataArray) -> str:
    """What sets a try apart, in words."""
    return ", ".join(f"{axis} {said(cells.coords[axis].item())}" for axis in AXES if axis in cells.coords)


def said(budget: float) -> str:
    """A budget as tables and figures say it."""
    return "unbounded" if np.isinf(budget) else f"{budget:g}"


def estimate(cells: xr.DataArray, *, level: float, resamples: int) -> Estimate:
    """The mean over prompts and seeds with its interval, which knows of what so few prompts cannot have shown (`unseen_means`)."""
    units = cells.mean("seed") if cells.sizes["prompt"] > 1 else cells.mean("prompt")
    return mean(units.values, level=level, resamples=resamples, bounds=(0.0, 1.0))


def _mean(cells: xr.DataArray, asks: str) -> float:
    return float(cells.sel(asks=asks).mean()) if asks in cells.asks.values else np.nan
