"""Which layers carry which attribute, by four localizers? `python -m workbench.studies.agreement` measures and draws it.

`locogen.png`: direct effect of each window, for six attributes; `locogen_images.png`: images for the best windows;
`localizers.png`, `localizers_others.png`: where the localizers agree; `locogen.csv`, `localizers.csv` and `agreement.csv`:
every number with its interval; `locogen_best.csv`: each attribute's best window; `locogen_search.csv`: whether the search from
coarse to fine finds the same one, in how many runs. Finished parts are kept in `runs/agreement`: what was stopped goes on with
the same command. `--redraw` draws from the tables in `--out`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import tyro
import xarray as xr
from matplotlib.figure import Figure

from workbench import plot
from workbench.drawing import WIDTH, bar, house, save
from workbench.experiments.results import from_table, strongest, with_interval
from workbench.localize.compare import Comparison, compare_localizers
from workbench.localize.localizers import FOUR, Abstains, Localizer, localizers
from workbench.localize.locogen import LocoGen, locogen, locogen_images, locogen_search
from workbench.localize.patching import window_numbers
from workbench.localize.specs import LocoGenSpec, TraceSpec
from workbench.models import Model, load
from workbench.prompts import PromptSet, prompt_set
from workbench.scorer import Scorer

ATTRIBUTES = ("object", "style", "colour", "season", "action", "fact")
DIRECTION = {
    "fact": "max"
}  # facts by how far the other individual's look rises, the rest by how far their own value falls
WINDOW = 2  # layers
SHOWN = ("object", "season")  # in the first figure of localizers; the rest stands in another


@dataclass
class AgreementOptions:
    attributes: tuple[str, ...] = ATTRIBUTES
    prompts: int = 12
    seeds: int = 2
    noise_multiple: float = 6.0
    num_inference_steps: int = 12
    widths: tuple[int, ...] = (1, 2)
    batch_size: int = 32
    device: str = "cpu"
    runs: Path = Path("runs/agreement")
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the tables in `out`."""


def main(options: AgreementOptions):
    if not options.redraw:
        measure(options)
    draw(options)


def measure(options: AgreementOptions):
    model, scorer = load(device=options.device), Scorer(device=options.device)
    compared: dict[str, Comparison] = {}
    found: dict[str, LocoGen] = {}
    searches = []
    for attribute in options.attributes:
        found[attribute], compared[attribute] = compared_on(model, scorer, attribute, options)
        direction = DIRECTION.get(attribute, "min")
        search = locogen_search(
            model,
            prompt_set(attribute)[: options.prompts],
            LocoGenSpec(seeds=tuple(range(options.seeds)), num_inference_steps=options.num_inference_steps),
            width=WINDOW,
            direction=direction,
            scorer=scorer,
            folder=options.runs / attribute / "search",
            batch_size=options.batch_size,
        )
        best = found[attribute].best(WINDOW, direction=direction)
        searches.append(
            dict(
                attribute=attribute,
                best=" + ".join(best),
                searched=" + ".join(search.best(WINDOW, direction=direction)),
                windows=search.windows,
                exhaustive=search.exhaustive,
            )
        )

    options.out.mkdir(parents=True, exist_ok=True)
    effects = {name: attribute_effects(each, name) for name, each in found.items()}
    tables = {
        "locogen": {
            name: strongest(effect).assign(total_effect=float(effect.total_effect)) for name, effect in effects.items()
        },
        "localizers": {name: each.table() for name, each in compared.items()},
        "agreement": {name: each.agreement() for name, each in compared.items()},
    }
    for stem, by_name in tables.items():
        joined = pd.concat([table.assign(attribute=name) for name, table in by_name.items()]).round(4)
        joined.to_csv(options.out / f"{stem}.csv", index=False)
    pd.DataFrame(searches).to_csv(options.out / "locogen_search.csv", index=False)
    print(pd.DataFrame(searches).to_string(index=False))
    best = pd.DataFrame([verdict(name, each) for name, each in found.items()])
    best.to_csv(options.out / "locogen_best.csv", index=False)
    print(best.to_string(index=False))


def compared_on(model: Model, scorer: Scorer, attribute: str, options: AgreementOptions) -> tuple[LocoGen, Comparison]:
    """LocoGen's windows of an attribute, and of four localizers those that speak of the layers where text enters."""
    trace = TraceSpec(
        sites=(model.family.layers,),
        noise_multiple=options.noise_multiple,
        draws=1,
        seeds=tuple(range(options.seeds)),
        num_inference_steps=options.num_inference_steps,
    )
    prompts = prompt_set(attribute)[: options.prompts]
    spec = LocoGenSpec(seeds=trace.seeds, num_inference_steps=trace.num_inference_steps, widths=options.widths)
    common = dict(scorer=scorer, batch_size=options.batch_size)
    found = locogen(model, prompts, spec, folder=options.runs / attribute / "locogen", **common)
    known = localizers(folder=options.runs / attribute, **common)
    four = {name: known[name] for name in FOUR} | {"LocoGen": single_layers(found)}
    spoken = {}
    for name, localizer in four.items():
        try:
            scores = localizer(model, prompts, trace)
        except Abstains:  # of joint attention
            continue
        spoken[name] = partial(as_measured, scores)
    return found, compare_localizers(model, prompts, trace, localizers=spoken)


def as_measured(scores: xr.DataArray, model: Model, prompts: PromptSet, spec: TraceSpec) -> xr.DataArray:
    """A localizer that says what was measured."""
    return scores


def single_layers(found: LocoGen) -> Localizer:
    """A localizer that says what was found of single layers, so that they are not drawn a second time."""

    def localizer(model: Model, prompts: PromptSet, spec: TraceSpec) -> xr.DataArray:
        single = found.direct(width=1)
        return single.drop_vars([name for name in single.coords if name not in single.dims]).rename(site="layer")

    return localizer


def draw(options: AgreementOptions):
    model, count = load(), f"{options.prompts} prompts x {options.seeds} seeds"
    tables = {name: pd.read_csv(options.out / f"{name}.csv") for name in ("locogen", "localizers", "agreement")}
    save(windows_figure(tables["locogen"], model, count), options.out / "locogen.png")
    names = tables["localizers"].attribute.unique()
    for stem, some in (
        ("localizers", [name for name in names if name in SHOWN]),
        ("localizers_others", [name for name in names if name not in SHOWN]),
    ):
        if some:
            figure = agreement_figure(tables["localizers"], tables["agreement"], some, count)
            save(figure, options.out / f"{stem}.png")
    best = pd.read_csv(options.out / "locogen_best.csv")
    save(images_figure(best_windows(model, best, options)), options.out / "locogen_images.png")


def attribute_effects(found: LocoGen, name: str, width: int | None = None) -> xr.Dataset:
    """Direct effects in an attribute's own direction."""
    return found.effects(direction=DIRECTION.get(name, "min"), width=width)


def verdict(name: str, found: LocoGen) -> dict:
    """The best window of an attribute, what it does, and whether shuffled windows do as much."""
    direction = DIRECTION.get(name, "min")
    layers, effect = found.best(WINDOW, direction=direction), found.effects(direction=direction, width=WINDOW)
    first, last = (found.layers.index(layer) for layer in (layers[0], layers[-1]))
    return {
        "attribute": name,
        "direction": direction,
        "full replacement": with_interval(effect, "total_effect"),
        "best window": f"{first}-{last}",
        "layers": " + ".join(layers),
        "direct effect": with_interval(effect.sel(site=layers[0]).squeeze(), "direct_effect"),
        "p against shuffled windows": round(found.chance(WINDOW, direction=direction), 4),
    }


@house
def windows_figure(table: pd.DataFrame, model: Model, count: str) -> Figure:
    """Attributes x windows, and attributes x single layers, on one scale."""
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 5.6), layout="constrained")
    layers = [site.name for site in model.sites("unet.*.cross")]
    for ax, width in zip(axes, (WINDOW, 1)):
        rows = []
        for attribute, some in table[table.width == width].groupby("attribute", sort=False):
            effect = from_table(some, model.sites("unet.*.cross"), "direct_effect", "probability")
            names = [window_numbers(layers.index(site), width) for site in effect.site.values]
            rows.append(effect.assign_coords(window=("site", names)).expand_dims(attribute=[attribute]))
        joined = xr.concat(rows, dim="attribute", coords="minimal", compat="override", combine_attrs="drop_conflicts")
        title = f"windows of {width}" if width > 1 else "single layers"
        plot.heatmap(joined, "window", "attribute", ax=ax, limit=1.0, title=title, bar=False).set_ylabel("")
    axes[0].set_xlabel("")
    bar(axes, f"direct effect on the grader's probability\n{plot.DOT}")
    figure.suptitle(f"LocoGen: the target prompt at one window of layers, every step; {count}")
    return figure


@house
def agreement_figure(ranked: pd.DataFrame, agreed: pd.DataFrame, attributes: Sequence[str], count: str) -> Figure:
    """Ranks of the layers and correlations of the localizers, two attributes a row."""
    lines = -(-len(attributes) // 2)
    figure = plt.figure(figsize=(WIDTH, 7.6 * lines + 0.4), layout="constrained")
    axes = figure.subplots(2 * lines, 2, height_ratios=[4.4, 3.2] * lines, squeeze=False)
    for i, attribute in enumerate(attributes):
        above, below = axes[2 * (i // 2)][i % 2], axes[2 * (i // 2) + 1][i % 2]
        plot.ranks(ranked[ranked.attribute == attribute], ax=above, title=f"{attribute}: rank of each layer")
        plot.agreement(agreed[agreed.attribute == attribute], ax=below, title=f"{attribute}: agreement")
        above.set_xlabel("")
        for ax in (above, below) if i % 2 else ():
            ax.set(ylabel="", yticklabels=[])
    for ax in axes.flat:
        if not ax.has_data():
            ax.remove()
    figure.suptitle(
        f"Four localizers on the same prompts and seeds ({count});\nrank 1: the strongest layer; agreement of one with itself: "
        "between halves of the prompts"
    )
    return figure


def best_windows(model: Model, best: pd.DataFrame, options: AgreementOptions) -> xr.DataArray:
    """Pictures (prompt, window, y, x, colour): unaltered, target prompt at all layers, and at each window that is an attribute's best."""
    starts = sorted({int(window.split("-")[0]) for window in best["best window"]})
    windows = tuple((start, WINDOW) for start in starts)
    spec = LocoGenSpec(windows=windows, seeds=(0,), num_inference_steps=options.num_inference_steps)
    prompts = [prompt_set(attribute)[0] for attribute in best.attribute]
    strips = [locogen_images(model, prompt, spec, batch_size=options.batch_size) for prompt in prompts]
    names = pd.Index([f"{prompt.prompt} \u2192 {prompt.target}" for prompt in prompts], name="prompt")
    return xr.concat([strip.sel(seed=0, drop=True) for strip in strips], dim=names).rename(world="window")


@house
def images_figure(images: xr.DataArray) -> Figure:
    """A row a prompt, a column a window."""
    figure, ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.98 * images.sizes["prompt"]), layout="constrained")
    plot.image_grid(
        images, ax=ax, title="LocoGen: the target prompt at two neighbouring cross-attention layers, seed 0"
    )
    ax.set(xlabel="layers given the target prompt", ylabel="")
    return figure


if __name__ == "__main__":
    main(tyro.cli(AgreementOptions))
