"""LocoGen: give a window of cross-attention layers another prompt, see which window changes the picture.

Basu et al. 2024, arXiv 2405.01008, section 4: the direct effect of the text that enters layers j .. j+m-1 in an otherwise
unaltered run.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr

from workbench.experiment import Experiment, check_spec, share
from workbench.interventions import World, replace_prompt, window
from workbench.metrics import Scorer
from workbench.models import Model
from workbench.prompts import Prompt, PromptSet
from workbench.results import averages, measured_by
from workbench.sites import Sites

ALL = "all"
PORTS = {"kv": ("context",), "k": ("k",), "v": ("v",)}


@dataclass(frozen=True)
class LocoGenSpec:
    """What LocoGen asks."""

    widths: tuple[int, ...] = (2,)
    """Windows of so many neighbouring cross-attention layers, at every place where they fit whole."""
    windows: tuple[tuple[int, int], ...] | None = None
    """Only these windows, (number of the first layer, width), in place of all of those widths."""
    inputs: tuple[Literal["kv", "k", "v"], ...] = ("kv",)
    """What is computed from the target prompt, each in turn: keys and values, keys only, values only."""
    heads: tuple[int, ...] | None = None
    """Single heads, each in turn; all together when left out."""
    steps: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """Windows of the denoising, as shares of the run, each in turn."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Of the starting noise, shared by all worlds of a prompt."""
    num_inference_steps: int | None = None
    """The model's own when left out."""
    guidance_scale: float | None = None
    """The model's own when left out."""

    def __post_init__(self):
        check_spec(self, "widths", "inputs", "steps", "seeds", *(["windows"] if self.windows is not None else []))
        if unknown := [what for what in self.inputs if what not in PORTS]:
            raise ValueError(f'inputs={tuple(unknown)}: may be "kv", "k" and "v"')


@dataclass(frozen=True)
class Patch:
    """One window of layers that is given the target prompt."""

    start: int
    width: int
    inputs: str
    head: int | None
    steps: tuple[float, float]


@dataclass(frozen=True)
class LocoGen:
    """What LocoGen found.

    data: scores `clean` (metric, prompt, seed) of the unaltered run, `full` (metric, prompt, seed) with the target prompt at all
    layers, and `patched` (metric, prompt, seed, site, width, inputs, heads, steps), site the first layer of a window; NaN
    where a window does not fit. Everything needed to do it again is in its `attrs`.
    """

    data: xr.Dataset

    @property
    def layers(self) -> list[str]:
        """The model's cross-attention layers in execution order, numbered from 0 as papers do."""
        return json.loads(self.data.attrs["spec"])["layers"]

    def effects(
        self,
        metric: str = "probability",
        direction: Literal["min", "max"] = "min",
        *,
        width: int | None = None,
        **options,
    ) -> xr.Dataset:
        """Direct effect of each window, with bootstrap intervals over prompts and seeds.

        direction: "min" asks how far the prompt's own attribute falls, "max" how far the target's rises (the paper takes the first
        for style and objects, the second for facts). `direct_effect` is that fall or rise against the unaltered run, `total_effect`
        that of the full replacement, `share` the ratio. width: only windows of this many layers, whose numbers, ends included,
        are then the coordinate `window`. options: see `workbench.effects`. Raises KeyError for a metric, ValueError for a width that
        was not measured.
        """
        widths = self.data.width.values.tolist()
        width = widths[0] if width is None and len(widths) == 1 else width
        name, contrasts = self._contrasts(metric, direction)
        if width is not None:
            contrasts["direct_effect"] = _only(contrasts["direct_effect"], width=width)
        found = averages(
            contrasts, "share", attrs=self.data.attrs | {"metric": name, "direction": direction}, **options
        )
        if width is None:
            return found
        starts = [self.layers.index(site) for site in found.site.values]
        return found.assign_coords(window=("site", [_numbers(start, width) for start in starts]))

    def best(
        self, width: int = 2, metric: str = "probability", direction: Literal["min", "max"] = "min", **where
    ) -> tuple[str, ...]:
        """Names of the layers of the window with the largest direct effect.

        where: which of several inputs, heads or steps: `best(2, inputs="v")`. Raises ValueError for a width that was not measured.
        """
        effect = self.direct(metric, direction, width=width, **where).mean(("prompt", "seed"))
        start = self.layers.index(effect.idxmax("site").item())
        return tuple(self.layers[start : start + width])

    def chance(
        self,
        width: int = 2,
        metric: str = "probability",
        direction: Literal["min", "max"] = "min",
        *,
        permutations: int = 10_000,
        **where,
    ) -> float:
        """Permutation p-value of the best window: how often a best window as good comes from windows shuffled within each prompt.

        The largest mean over prompts is compared with the largest of each shuffling, so that having picked the best of many is
        accounted for; seeds of a prompt are averaged first.
        """
        scores = self.direct(metric, direction, width=width, **where).mean("seed").transpose("prompt", "site").values
        rng = np.random.default_rng(0)
        largest = [rng.permuted(scores, axis=1).mean(0).max() for _ in range(permutations)]
        return float((1 + sum(value >= scores.mean(0).max() - 1e-12 for value in largest)) / (1 + permutations))

    def _contrasts(self, metric: str, direction: str) -> tuple[str, dict[str, xr.DataArray]]:
        """The metric's name for a direction, and by it the total and the single effects: falls of the prompt's, rises of the target's."""
        if direction not in ("min", "max"):
            raise ValueError(
                f'direction={direction!r}: may be "min" (the prompt\'s attribute falls) or "max" (the target\'s rises)'
            )
        name, sign = (metric, 1) if direction == "min" else (f"target_{metric}", -1)
        scores = measured_by(self.data, name)
        return name, {
            "total_effect": sign * (scores.clean - scores.full),
            "direct_effect": sign * (scores.clean - scores.patched),
        }

    def direct(
        self, metric: str = "probability", direction: Literal["min", "max"] = "min", *, width: int = 2, **where
    ) -> xr.DataArray:
        """Direct effects of single images, (prompt, seed, site), of the windows of one width; see `effects` and `best`."""
        effect = _only(self._contrasts(metric, direction)[1]["direct_effect"], width=width, **where)
        if several := {
            axis: effect[axis].values.tolist() for axis in ("inputs", "heads", "steps") if effect[axis].size > 1
        }:
            axis = next(iter(several))
            raise ValueError(
                f"several {axis} were measured: {several[axis]}; name one, as in best({width}, {axis}={several[axis][0]!r})"
            )
        return effect.isel(inputs=0, heads=0, steps=0, missing_dims="ignore", drop=True)


def _only(effect: xr.DataArray, **where) -> xr.DataArray:
    """The windows of one width (and of one of several inputs, heads or steps)."""
    for axis, value in where.items():
        if value not in effect[axis].values:
            raise ValueError(
                f"{axis}={value!r} was not measured; found {effect[axis].values.tolist()}; ask for it in LocoGenSpec"
            )
        effect = effect.sel({axis: value})
    return effect.dropna("site", how="all")


def _numbers(start: int, width: int) -> str:
    """A window by the numbers of its first and last layer."""
    return str(start) if width == 1 else f"{start}-{start + width - 1}"


def locogen(
    model: Model,
    prompts: PromptSet,
    spec: LocoGenSpec | None = None,
    *,
    scorer: Scorer | None = None,
    folder: str | Path | None = None,
    batch_size: int = 16,
) -> LocoGen:
    """Find the cross-attention layers whose text input decides an attribute.

    Each prompt is generated unaltered, with its target prompt at all layers, and with the target prompt at each window of
    layers (conditional half, all tokens, every step unless the spec says otherwise), all from the same starting noise. Every image
    gets the metrics of `workbench.causal_trace`, and the same for the target: `target_probability` and `target_similarity`.

    folder: where finished parts are kept (one per prompt); the same call goes on where it was stopped, and
    `LocoGen(open_results(folder))` reads it. Raises, before anything is generated, ValueError for prompts without a target and for
    windows, heads, steps or inputs that do not fit the model, or a folder of another experiment.
    """
    return LocoGen(Generating(model, prompts, spec or LocoGenSpec(), scorer or Scorer(), batch_size).dataset(folder))


@dataclass(frozen=True)
class Search:
    """A coarse-to-fine search: what each stage found, and how many windows it took of how many there are."""

    coarse: LocoGen
    fine: LocoGen
    windows: int
    exhaustive: int

    def best(self, width: int = 2, *args, **where) -> tuple[str, ...]:
        return self.fine.best(width, *args, **where)


def locogen_search(
    model: Model,
    prompts: PromptSet,
    spec: LocoGenSpec | None = None,
    *,
    width: int = 2,
    keep: int = 1,
    metric: str = "probability",
    direction: Literal["min", "max"] = "min",
    scorer: Scorer | None = None,
    folder: str | Path | None = None,
    batch_size: int = 16,
) -> Search:
    """LocoGen from coarse to fine: whole blocks of the UNet first, then only the windows that touch the `keep` best blocks.

    A window that works only together with layers of a poor block is missed; a larger `keep` makes that rarer. The gain grows with
    the number of layers in a block.
    """
    spec, scorer = spec or LocoGenSpec(), scorer or Scorer()
    groups, count = blocks(model), len(cross_layers(model))
    part = lambda name: None if folder is None else Path(folder) / name
    coarse = locogen(
        model, prompts, replace(spec, windows=groups), scorer=scorer, folder=part("coarse"), batch_size=batch_size
    )
    found = coarse.effects(metric, direction).direct_effect.max(["width", "inputs", "heads", "steps"])
    order = sorted(groups, key=lambda group: -float(found.sel(site=coarse.layers[group[0]])))[:keep]
    touching = [
        start
        for start in range(count - width + 1)
        if any(start < first + size and first < start + width for first, size in order)
    ]
    windows = tuple((start, width) for start in touching)
    fine = locogen(
        model, prompts, replace(spec, windows=windows), scorer=scorer, folder=part("fine"), batch_size=batch_size
    )
    return Search(coarse, fine, len({*groups, *windows}), count - width + 1)


def locogen_images(
    model: Model, prompt: Prompt, spec: LocoGenSpec | None = None, *, batch_size: int = 16
) -> xr.DataArray:
    """The paper's strips of images: one for each window, behind the unaltered and the fully replaced one.

    Returns float in [0, 1], (world, seed, y, x, colour), worlds named "unaltered", "all layers" and by their layers.
    """
    asked = Generating(
        model,
        PromptSet("images", (replace(prompt, value="", target_value=""),), {"": ("",)}),
        spec or LocoGenSpec(),
        None,
        batch_size,
    )
    asked.check(0)
    names = ["unaltered", "all layers", *(asked.label(patch) for patch in asked.patches())]
    return asked.run(asked.worlds(0)).images.assign_coords(world=names)


def cross_layers(model: Model) -> Sites:
    """The cross-attention layers, in execution order."""
    return model.sites("unet.*.cross")


def blocks(model: Model) -> tuple[tuple[int, int], ...]:
    """The windows (first layer, width) that the UNet's blocks make: all layers whose names differ in the last number only."""
    names = [site.name.removesuffix(".cross") for site in cross_layers(model)]
    block = [name.rpartition(".")[0] if name[-1].isdigit() else name for name in names]
    return tuple((block.index(name), block.count(name)) for name in dict.fromkeys(block))


class Generating(Experiment):
    """One LocoGen experiment. A part is a prompt."""

    name = "LocoGen"

    def __init__(self, model: Model, prompts: PromptSet, spec: LocoGenSpec, scorer: Scorer | None, batch_size: int):
        super().__init__(model, prompts, spec, scorer, batch_size)
        self.layers = [site.name for site in cross_layers(model)]
        count = len(self.layers)
        wanted = spec.windows or [(start, width) for width in spec.widths for start in range(max(1, count - width + 1))]
        if wrong := [(start, width) for start, width in wanted if width < 1 or not 0 <= start <= count - width]:
            raise ValueError(
                f"windows {wrong} (first layer, width) do not fit the model's cross-attention layers, 0 to {count - 1}; "
                "name others in LocoGenSpec(widths=...) or (windows=...)"
            )
        self.windows = list(wanted)
        if lacking := [prompt.prompt for prompt in prompts if not prompt.target]:
            raise ValueError(
                f"LocoGen compares a prompt with its target, which {lacking} lack; give Prompt(..., target=...), or a column "
                "target in the prompt set's file"
            )

    def asked(self) -> dict:
        return super().asked() | {"layers": self.layers}

    def patches(self) -> Iterator[Patch]:
        heads = (None,) if self.spec.heads is None else self.spec.heads
        for start, width in self.windows:
            for inputs in self.spec.inputs:
                for head in heads:
                    for steps in self.spec.steps:
                        yield Patch(start, width, inputs, head, steps)

    def label(self, patch: Patch) -> str:
        several = {"inputs": patch.inputs, "heads": f"head {patch.head}", "steps": share(patch.steps)}
        return " ".join(
            [
                _numbers(patch.start, patch.width),
                *(text for name, text in several.items() if len(getattr(self.spec, name) or ()) > 1),
            ]
        )

    def worlds(self, p: int) -> list[World]:
        """Unaltered, the target prompt at all layers, and at each window."""
        prompt = self.prompts[p]
        pooled = [
            site.name for site in self.model.sites if site.kind == "pooled" and site.read
        ]  # SDXL's other way in for the text
        everywhere = [
            self.patch(prompt, self.layers, "kv"),
            *([replace_prompt(pooled, prompt.target)] if pooled else []),
        ]
        worlds = [World("clean", prompt.prompt), World("full", prompt.prompt, everywhere)]
        for i, patch in enumerate(self.patches()):
            layers = self.layers[patch.start : patch.start + patch.width]
            where = dict(
                steps=None if patch.steps == (0.0, 1.0) else window(*patch.steps),
                heads=None if patch.head is None else [patch.head],
            )
            worlds.append(World(f"patched {i}", prompt.prompt, [self.patch(prompt, layers, patch.inputs, **where)]))
        return worlds

    def patch(self, prompt: Prompt, layers: Sequence[str], inputs: str, **where):
        ports = (
            ("k", "v") if inputs == "kv" and where.get("heads") else PORTS[inputs]
        )  # heads are apart behind the projections only
        return replace_prompt([f"{layer}.{port}" for layer in layers for port in ports], prompt.target, **where)

    def check(self, p: int) -> int:
        return self.plan(self.worlds(p))

    def measure(self, p: int, bar) -> list[dict]:
        """Rows (world, metric, prompt, seed, site, width, inputs, heads, steps, value)."""
        places = [dict(world="clean"), dict(world="full")]
        for patch in self.patches():
            places.append(
                dict(
                    world="patched",
                    site=self.layers[patch.start],
                    width=patch.width,
                    inputs=patch.inputs,
                    heads=ALL if patch.head is None else str(patch.head),
                    steps=share(patch.steps),
                )
            )
        return self.score(p, self.worlds(p), places, bar)
