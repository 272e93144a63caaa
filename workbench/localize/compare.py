"""Do the localizers agree? Layers ranked by several of them, on one model and the same prompts and seeds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from workbench.arguments import checked, function, instance_of, mapping_of, prompt_set
from workbench.experiments.executors import Executor, Unfinished
from workbench.experiments.forecast import answer_plans
from workbench.experiments.statistics import LEVEL, RESAMPLES, ends, halves_agree, resampled_means, spearman
from workbench.experiments.store import Store
from workbench.inputs import count, shown, text
from workbench.localize.localizers import FOUR, Localizer, is_own, layers_of
from workbench.localize.localizers import localizers as table_of_localizers
from workbench.localize.specs import TraceSpec
from workbench.metrics import Scoring
from workbench.models import Model
from workbench.prompts import PromptSet

DEFAULTS = {"metric": "probability", "scorer": None, "folder": None, "executor": None, "batch_size": 16}


def a_mapping_of_localizers(value: Any, argument: str) -> dict[str, Localizer]:
    """Functions by name."""
    return mapping_of(function, "{'mine': mine}, functions (model, prompts, spec) -> scores (prompt, seed, layer)")(
        value, argument
    )


@dataclass(frozen=True)
class Comparison:
    """What each localizer says of single layers.

    scores: (localizer, prompt, seed, layer), larger for a layer that matters more, each localizer in its own unit.

    >>> comparison.scores.localizer.values.tolist()
    ['causal tracing', 'LocoGen', 'low entropy', 'contribution']
    """

    scores: xr.DataArray

    @checked(localizer=text, width=count)
    def best(self, localizer: str, width: int = 2) -> tuple[str, ...]:
        """Names of the layers of the window of neighbours whose scores sum to the most.

        >>> comparison.best("low entropy", width=2)
        ('unet.up.1.0.cross', 'unet.up.1.1.cross')
        """
        if localizer not in (known := self.scores.localizer.values.tolist()):
            raise KeyError(f"localizer={localizer!r}: may be {', '.join(map(repr, known))}")
        if width > self.scores.sizes["layer"]:
            raise ValueError(f"width={width}: there are {self.scores.sizes['layer']} layers; give as many at most")
        mean = self.scores.sel(localizer=localizer).mean(["prompt", "seed"]).values
        start = int(np.argmax(np.convolve(mean, np.ones(width), "valid")))
        return tuple(self.scores.layer.values[start : start + width].tolist())

    @checked
    def table(self, *, level: float = LEVEL, resamples: int = RESAMPLES) -> pd.DataFrame:
        """One row for each localizer and layer: score, low, high (bootstrap over prompts and seeds) and rank, 1 for the strongest.

        >>> table = comparison.table(resamples=100)
        >>> len(table), list(table)
        (64, ['localizer', 'layer', 'paper', 'score', 'low', 'high', 'rank'])
        """
        mean = self.scores.mean(["prompt", "seed"]).transpose("localizer", "layer")
        low, high = ends(self._drawn(resamples), level)
        rows = []
        for i, localizer in enumerate(mean.localizer.values):
            ranks = rankdata(-mean.values[i], method="min")
            for j, layer in enumerate(mean.layer.values):
                rows.append(
                    dict(
                        localizer=localizer,
                        layer=layer,
                        paper=j,
                        score=mean.values[i, j],
                        low=low[i, j],
                        high=high[i, j],
                        rank=int(ranks[j]),
                    )
                )
        return pd.DataFrame(rows)

    @checked
    def agreement(self, *, level: float = LEVEL, resamples: int = RESAMPLES) -> pd.DataFrame:
        """Spearman correlation over layers of each pair of localizers, with its interval over prompts and seeds.

        A localizer paired with itself is correlated between halves of the prompts, split at random: what agreement with anything
        is limited by. It has half the prompts on each side, so it is on the low side.

        >>> found = comparison.agreement(resamples=100)
        >>> len(found), list(found)
        (10, ['a', 'b', 'spearman', 'low', 'high'])
        """
        mean = self.scores.mean(["prompt", "seed"]).transpose("localizer", "layer").values
        drawn, names, rows = self._drawn(resamples), list(self.scores.localizer.values), []
        for a, b in combinations(range(len(names)), 2):
            low, high = map(float, ends(np.array([spearman(sample[a], sample[b]) for sample in drawn]), level))
            rows.append(dict(a=names[a], b=names[b], spearman=spearman(mean[a], mean[b]), low=low, high=high))
        prompts = self.scores.mean("seed").transpose("localizer", "prompt", "layer").values
        for name, (value, low, high) in zip(names, halves_agree(prompts, level=level)):
            rows.append(dict(a=name, b=name, spearman=value, low=low, high=high))
        return pd.DataFrame(rows)

    def _drawn(self, resamples: int) -> np.ndarray:
        """Means over prompts and seeds drawn again: (resample, localizer, layer)."""
        return resampled_means(self.scores, resamples=resamples).transpose("resample", "localizer", "layer").values


@checked(prompts=prompt_set, spec=instance_of("workbench.localize.specs:TraceSpec"), localizers=a_mapping_of_localizers)
def compare_localizers(
    model: Model,
    prompts: PromptSet,
    spec: TraceSpec | None = None,
    *,
    localizers: Mapping[str, Localizer] | None = None,
    metric: str = "probability",
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> Comparison:
    """Score layers by several localizers, on the same prompts, seeds, steps and guidance.

    spec: the layers (its sites), seeds, steps, guidance, and how concepts are corrupted; the cross-attention layers when left out.
    localizers: any functions (model, prompts, spec) -> scores (prompt, seed, layer) by name, layer the names of the spec's sites,
    larger for a layer that matters more; left out, causal tracing, LocoGen, entropy of the subject's map and attention contribution.
    `wb.localizers(...)` has these and others, for a mapping of your own, and then takes metric, scorer, folder, executor and batch_size in
    this function's place. metric: of tracing and LocoGen. folder: one subfolder for each experiment. executor: as for `causal_trace`.

    Raises `wb.Abstains` where a localizer cannot speak of the layers or prompts, ValueError for scores that do not fit the others.

    >>> quick = wb.TraceSpec(sites=("unet.*.cross",), seeds=(0,), draws=1, num_inference_steps=1)
    >>> def by_depth(model, prompts, spec):
    ...     layers = [site.name for site in model.sites(*spec.sites)]
    ...     axes = {"prompt": range(len(prompts)), "seed": list(spec.seeds), "layer": layers}
    ...     depth = np.broadcast_to(np.arange(len(layers)), [len(axis) for axis in axes.values()])
    ...     return xr.DataArray(depth, axes, list(axes))
    >>> tracing = wb.localizers()["causal tracing"]
    >>> found = wb.compare_localizers(model, prompts[:1], quick, localizers={"tracing": tracing, "depth": by_depth})
    >>> dict(found.scores.sizes), found.best("depth")
    ({'localizer': 2, 'prompt': 1, 'seed': 1, 'layer': 16}, ('unet.up.3.1.cross', 'unet.up.3.2.cross'))
    """
    spec = spec or TraceSpec(sites=(model.family.layers,))
    settings = dict(metric=metric, scorer=scorer, folder=folder, executor=executor, batch_size=batch_size)
    if localizers is None:
        known = table_of_localizers(**settings)
        localizers = {name: known[name] for name in FOUR}
    elif given := [name for name, value in settings.items() if value != DEFAULTS[name]]:
        raise ValueError(
            f"{given[0]}= is of the localizers that are taken where none are named; for a mapping, give it to "
            f"wb.localizers({given[0]}=...)"
        )
    layers = layers_of(model, spec)
    answer_plans("comparison", (_planned(model, prompts, spec, *each) for each in localizers.items()))
    scores, unfinished = {}, []
    for name, localizer in localizers.items():
        try:
            scores[name] = _fitting(localizer(model, prompts, spec), name, prompts, spec, layers)
        except Unfinished as rest:  # its share of the others is done as well
            unfinished.append(rest)
    if unfinished:
        raise unfinished[0]
    joined = xr.concat(list(scores.values()), dim=pd.Index(list(scores), name="localizer"), join="exact")
    return Comparison(joined)


def _planned(
    model: Model, prompts: PromptSet, spec: TraceSpec, name: str, localizer: Localizer
) -> Callable[[], xr.DataArray]:
    """What asks a localizer, for its plan."""
    if not is_own(localizer):
        raise ValueError(
            f"plan(compare_localizers): localizers[{name!r}] is a function of your own, which does not say beforehand what it draws; plan "
            "those of wb.localizers() alone"
        )
    return partial(localizer, model, prompts, spec)


def _fitting(scores: xr.DataArray, name: str, prompts: PromptSet, spec: TraceSpec, layers: list[str]) -> xr.DataArray:
    """A localizer's scores, (prompt, seed, layer), in the order asked; ValueError for any others."""
    wanted: dict[str, list[Any]] = {"prompt": list(range(len(prompts))), "seed": list(spec.seeds), "layer": layers}
    if not isinstance(scores, xr.DataArray) or set(scores.dims) != set(wanted):
        raise ValueError(
            f"localizers[{name!r}] returned {shown(scores)}: return an xarray.DataArray with the axes prompt, seed and layer"
        )
    for axis, values in wanted.items():
        if (
            axis not in scores.coords
            or set(scores[axis].values.tolist()) != set(values)
            or scores.sizes[axis] != len(values)
        ):
            raise ValueError(
                f"localizers[{name!r}] returned scores whose {axis} axis is {shown(scores[axis].values.tolist())}; it must be "
                f"{shown(values)}: numbers of the prompts from 0, spec.seeds, and names of the spec's sites"
            )
    return scores.astype(float).sel(wanted).transpose(*wanted)
