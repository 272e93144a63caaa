"""LocoGen: give a window of cross-attention layers another prompt, see which window changes the picture.

Basu et al. 2024, arXiv 2405.01008, section 4: the direct effect of the text that enters layers j .. j+m-1 in an otherwise
unaltered run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from workbench.arguments import checked, fit, instance_of, line, one_of, prompt_set
from workbench.experiments.executors import Executor
from workbench.experiments.results import averages, measured_by, scores
from workbench.experiments.statistics import LEVEL, RESAMPLES, chance_of_best
from workbench.experiments.store import Store, as_store
from workbench.inputs import count, shown, text
from workbench.localize.patching import Generating, blocks, cross_layers, window_numbers
from workbench.localize.specs import LocoGenSpec
from workbench.metrics import Measures, Scoring
from workbench.models import Model
from workbench.prompts import Prompt, Prompts, PromptSet

Toward = Literal["min", "max"]
TOWARD: Any = one_of("min", "max")  # the prompt's attribute falls, or the target's rises
ONE = dict.fromkeys(("inputs", "heads", "steps"), text)  # of several that were measured, by their names in the results
SPEC = instance_of("workbench.localize.specs:LocoGenSpec")


def a_target(value: Any, argument: str) -> str | LocoGenSpec:
    """The target's prompt; or, of a set that has its own, the spec."""
    if not isinstance(value, (str, LocoGenSpec)):
        raise ValueError(
            f"{argument}={shown(value)}: give the prompt to compare with, such as 'a giraffe in the savanna'"
        )
    return value


@dataclass(frozen=True)
class LocoGen:
    """What LocoGen found.

    data: scores `clean` (metric, prompt, seed) of the unaltered run, `full` (metric, prompt, seed) with the target prompt at
    all layers, where there is a pooled vector (SDXL) `pooled` (metric, prompt, seed) with the target's pooled vector alone, and
    `patched` (metric, prompt, seed, site, width, inputs, heads, steps), site the first layer of a window; NaN where a window
    does not fit. Everything needed to do it again is in its `attrs`.

    Where a method takes inputs, heads or steps, they say which of several that were measured is meant: `best(2, inputs="v")`.

    >>> len(windows.layers), windows.layers[6]
    (16, 'unet.mid.cross')
    >>> dict(windows.data.full.sizes)
    {'metric': 6, 'prompt': 2, 'seed': 1}
    >>> dict(windows.data.patched.sizes)
    {'metric': 6, 'prompt': 2, 'seed': 1, 'site': 16, 'width': 2, 'inputs': 1, 'heads': 1, 'steps': 1}
    """

    data: xr.Dataset

    def __post_init__(self):
        fit(self, data=scores("clean", "full", "patched"))

    @property
    def layers(self) -> list[str]:
        """The model's cross-attention layers in execution order, numbered from 0 as papers do."""
        return json.loads(self.data.attrs["spec"])["layers"]

    @checked(direction=TOWARD, width=count)
    def effects(
        self,
        metric: str = "probability",
        direction: Toward = "min",
        *,
        width: int | None = None,
        over: tuple[str, ...] = ("prompt", "seed"),
        level: float = LEVEL,
        resamples: int = RESAMPLES,
    ) -> xr.Dataset:
        """Direct effect of each window, with intervals over prompts and seeds.

        direction: "min" asks how far the prompt's own attribute falls, "max" how far the target's rises (the paper takes the
        first for style and objects, the second for facts). `direct_effect` is that fall or rise against the unaltered run,
        `total_effect` that of the full replacement, `share` the ratio; where the text also enters as a pooled vector (SDXL),
        the full replacement has it, the windows have not, and `pooled_effect` is its own. width: only windows of this many
        layers, whose numbers, ends included, are then the coordinate `window`. over, level, resamples: see `workbench.effects`.
        Raises KeyError for a metric, ValueError for a width that was not measured.

        >>> effects = windows.effects("probability", width=2)
        >>> effects.window.values[:3].tolist()
        ['0-1', '1-2', '2-3']
        >>> sorted(set(effects) & {"direct_effect", "total_effect", "share"})
        ['direct_effect', 'share', 'total_effect']
        """
        widths = self.data.width.values.tolist()
        width = widths[0] if width is None and len(widths) == 1 else width
        name, contrasts = self._contrasts(metric, direction)
        against = dict.fromkeys(contrasts, measured_by(self.data, name).clean)
        if width is not None:
            contrasts["direct_effect"] = _only(contrasts["direct_effect"], {"width": width})
        attrs = self.data.attrs | {"metric": name, "direction": direction}
        effects = averages(
            contrasts,
            "share",
            against=against,
            falls=direction == "min",
            over=over,
            level=level,
            resamples=resamples,
            attrs=attrs,
        )
        if width is None:
            return effects
        starts = [self.layers.index(site) for site in effects.site.values]
        return effects.assign_coords(window=("site", [window_numbers(start, width) for start in starts]))

    @checked(width=count, direction=TOWARD, **ONE)
    def best(
        self,
        width: int = 2,
        metric: str = "probability",
        direction: Toward = "min",
        *,
        inputs: str | None = None,
        heads: str | None = None,
        steps: str | None = None,
    ) -> tuple[str, ...]:
        """Names of the layers of the window with the largest direct effect. Raises ValueError for a width that was not measured.

        >>> windows.best(2, "probability", "max")
        ('unet.up.1.2.cross', 'unet.up.2.0.cross')
        """
        effect = self.direct(metric, direction, width=width, inputs=inputs, heads=heads, steps=steps)
        start = self.layers.index(effect.mean(("prompt", "seed")).idxmax("site").item())
        return tuple(self.layers[start : start + width])

    @checked(width=count, direction=TOWARD, **ONE)
    def chance(
        self,
        width: int = 2,
        metric: str = "probability",
        direction: Toward = "min",
        *,
        permutations: int = 10_000,
        inputs: str | None = None,
        heads: str | None = None,
        steps: str | None = None,
    ) -> float:
        """Permutation p-value of the best window: how often a best window as good comes from windows shuffled within each prompt.

        The largest mean over prompts is compared with the largest of each shuffling, so that having picked the best of many is
        accounted for; seeds of a prompt are averaged first.

        >>> 0 <= windows.chance(2, permutations=100) <= 1
        True
        """
        effect = self.direct(metric, direction, width=width, inputs=inputs, heads=heads, steps=steps)
        return chance_of_best(effect.mean("seed").transpose("prompt", "site").values, permutations=permutations)

    @checked(width=count, direction=TOWARD, **ONE)
    def direct(
        self,
        metric: str = "probability",
        direction: Toward = "min",
        *,
        width: int = 2,
        inputs: str | None = None,
        heads: str | None = None,
        steps: str | None = None,
    ) -> xr.DataArray:
        """Direct effects of single images, (prompt, seed, site), of the windows of one width; see `effects` and `best`.

        >>> dict(windows.direct("similarity", width=2).sizes)
        {'prompt': 2, 'seed': 1, 'site': 15}
        """
        named = {"inputs": inputs, "heads": heads, "steps": steps}
        chosen = {"width": width} | {axis: value for axis, value in named.items() if value is not None}
        effect = _only(self._contrasts(metric, direction)[1]["direct_effect"], chosen)
        for axis in named:
            if effect[axis].size > 1:
                values = effect[axis].values.tolist()
                raise ValueError(
                    f"several {axis} were measured: {values}; name one, as in best({width}, {axis}={values[0]!r})"
                )
        return effect.isel(inputs=0, heads=0, steps=0, missing_dims="ignore", drop=True)

    def _contrasts(self, metric: str, direction: str) -> tuple[str, dict[str, xr.DataArray]]:
        """The metric's name for a direction, and by it the total and the single effects: falls of the prompt's, rises of the target's."""
        name, sign = (metric, 1) if direction == "min" else (f"target_{metric}", -1)
        by = measured_by(self.data, name)
        pooled = {"pooled_effect": sign * (by.clean - by.pooled)} if "pooled" in by else {}
        return name, {
            "total_effect": sign * (by.clean - by.full),
            **pooled,
            "direct_effect": sign * (by.clean - by.patched),
        }


def _only(effect: xr.DataArray, chosen: Mapping[str, Any]) -> xr.DataArray:
    """The windows of one width, and of one of several inputs, heads or steps."""
    for axis, value in chosen.items():
        if value not in effect[axis].values:
            raise ValueError(
                f"{axis}={value!r} was not measured; found {effect[axis].values.tolist()}; ask for it in LocoGenSpec"
            )
        effect = effect.sel({axis: value})
    return effect.dropna("site", how="all")


@checked(target=a_target, spec=SPEC, subject=line)
def locogen(
    model: Model,
    prompts: Prompts,
    target: str | LocoGenSpec = "",
    spec: LocoGenSpec | None = None,
    *,
    subject: str = "",
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> LocoGen:
    """Find the cross-attention layers whose text input decides an attribute.

    prompts: a `PromptSet`, or whatever `PromptSet.of` takes, texts with their target prompt beside them: `locogen(model, "a
    zebra in the savanna", "a giraffe in the savanna", subject="zebra")`; of a set, which has its own targets, the spec may
    stand in the target's place. Each prompt is generated unaltered, with its target prompt at all layers, and with the target
    prompt at each window of layers (conditional half, all tokens, every step unless the spec says otherwise), all from the same
    starting noise. Every image gets the metrics of `workbench.causal_trace`, and the same for the target: `target_probability`
    and `target_similarity`.

    folder: where finished parts are kept (one per prompt); the same call goes on where it was stopped, and
    `LocoGen(open_results(folder))` reads it. executor: as for `causal_trace`. Raises, before anything is generated,
    ValueError for prompts without a target and for
    windows, heads, steps or inputs that do not fit the model, or a folder of another experiment.

    >>> spec = wb.LocoGenSpec(widths=(8,), seeds=(0,))
    >>> found = wb.locogen(model, "a zebra", "a giraffe", spec, subject="a zebra")
    >>> dict(found.data.patched.sizes)
    {'metric': 6, 'prompt': 1, 'seed': 1, 'site': 9, 'width': 1, 'inputs': 1, 'heads': 1, 'steps': 1}
    """
    if isinstance(target, LocoGenSpec):
        target, spec = "", target
    chosen, measures = PromptSet.of(prompts, subject=subject, target=target), Measures.of(scorer, model)
    return LocoGen(Generating(model, chosen, spec or LocoGenSpec(), measures, batch_size).dataset(folder, executor))


@dataclass(frozen=True)
class LocoGenSearch:
    """A coarse-to-fine search: what each stage found, and how many windows it took of how many there are."""

    coarse: LocoGen
    fine: LocoGen
    windows: int
    exhaustive: int

    def best(self, width: int = 2, metric: str = "probability", direction: Toward = "min") -> tuple[str, ...]:
        return self.fine.best(width, metric, direction)


@checked(prompts=prompt_set, spec=SPEC, width=count, keep=count, direction=TOWARD)
def locogen_search(
    model: Model,
    prompts: PromptSet,
    spec: LocoGenSpec | None = None,
    *,
    width: int = 2,
    keep: int = 1,
    metric: str = "probability",
    direction: Toward = "min",
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> LocoGenSearch:
    """LocoGen from coarse to fine: whole blocks of the UNet first, then only the windows that touch the `keep` best blocks.

    A window that works only together with layers of a poor block is missed; a larger `keep` makes that rarer. The gain grows with
    the number of layers in a block.

    >>> found = wb.locogen_search(model, prompts[:1], wb.LocoGenSpec(seeds=(0,)), width=1)
    >>> found.exhaustive, len(found.best(1))
    (16, 1)
    """
    spec, scorer = spec or LocoGenSpec(), Measures.of(scorer, model)
    scorer.require(metric if direction == "min" else f"target_{metric}", prompts, "metric")
    store = as_store(folder)
    groups, layers = blocks(model), len(cross_layers(model))
    if width > layers:
        raise ValueError(f"width={width}: the model has {layers} cross-attention layers; give as many at most")
    coarse = locogen(
        model,
        prompts,
        replace(spec, windows=groups),
        scorer=scorer,
        folder=store.within("coarse"),
        executor=executor,
        batch_size=batch_size,
    )
    found = coarse.effects(metric, direction).direct_effect
    found = found.max([axis for axis in found.dims if axis != "site"])
    order = sorted(groups, key=lambda group: -float(found.sel(site=coarse.layers[group[0]])))[:keep]
    touching = [
        start
        for start in range(layers - width + 1)
        if any(start < first + size and first < start + width for first, size in order)
    ]
    windows = tuple((start, width) for start in touching)
    fine = locogen(
        model,
        prompts,
        replace(spec, windows=windows),
        scorer=scorer,
        folder=store.within("fine"),
        executor=executor,
        batch_size=batch_size,
    )
    return LocoGenSearch(coarse, fine, len({*groups, *windows}), layers - width + 1)


@checked(prompt=instance_of("workbench.prompts:Prompt"), spec=SPEC)
def locogen_images(
    model: Model, prompt: Prompt, spec: LocoGenSpec | None = None, *, batch_size: int = 16
) -> xr.DataArray:
    """The paper's strips of images: one for each window, behind the unaltered and the fully replaced one.

    Returns float in [0, 1], (world, seed, y, x, colour), worlds named "unaltered", "all layers" and by their layers.

    >>> strip = wb.locogen_images(model, prompts[0], wb.LocoGenSpec(widths=(8,), seeds=(0,)))
    >>> strip.world.values[:4].tolist()
    ['unaltered', 'all layers', '0-7', '1-8']
    """
    one = PromptSet("images", (replace(prompt, value="", target_value=""),))
    experiment = Generating(model, one, spec or LocoGenSpec(), None, batch_size)
    experiment.check(0)
    pooled = ["pooled vector"] if experiment.pooled else []
    names = ["unaltered", "all layers", *pooled, *(experiment.label(patch) for patch in experiment.patches())]
    worlds = experiment.worlds(0)
    images = experiment.run([*experiment.read(0), *worlds]).images
    return images.sel(world=[world.name for world in worlds]).assign_coords(world=names)
