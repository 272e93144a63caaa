"""Which layers carry which attribute, by four localizers? `python -m workbench.studies.agreement` measures and draws it.

`locogen.png`: direct effect of each window, for six attributes; `locogen_images.png`: one image for each window;
`localizers.png`: where the localizers agree; `locogen.csv`, `localizers.csv` and `agreement.csv`: every number with its
interval; `locogen_best.csv`: each attribute's best window; `locogen_search.csv`: whether the search from coarse to fine
finds the same one, in how many runs. Finished parts are kept in `runs/agreement`: what was stopped goes on with the same
command.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import tyro
import xarray as xr

from workbench import plot
from workbench.experiments.results import strongest, with_interval
from workbench.localize.compare import Comparison, compare_localizers
from workbench.localize.locogen import LocoGen, locogen_images, locogen_search
from workbench.localize.specs import LocoGenSpec, TraceSpec
from workbench.models import Model, load
from workbench.prompts import prompt_set
from workbench.scorer import Scorer

ATTRIBUTES = ("object", "style", "colour", "season", "action", "fact")
DIRECTION = {
    "fact": "max"
}  # facts by how far the other individual's look rises, the rest by how far their own value falls
WIDTH = 2


@dataclass
class AgreementOptions:
    attributes: tuple[str, ...] = ATTRIBUTES
    prompts: int = 12
    seeds: int = 2
    noise_multiple: float = 6.0
    num_inference_steps: int = 12
    widths: tuple[int, ...] = (1, 2)
    batch_size: int = 32
    runs: Path = Path("runs/agreement")
    out: Path = Path("runs/figures")


def main(options: AgreementOptions):
    model, scorer = load(), Scorer()
    found: dict[str, Comparison] = {}
    searches = []
    for attribute in options.attributes:
        trace = TraceSpec(
            noise_multiple=options.noise_multiple,
            draws=1,
            seeds=tuple(range(options.seeds)),
            num_inference_steps=options.num_inference_steps,
        )
        prompts = prompt_set(attribute)[: options.prompts]
        found[attribute] = compare_localizers(
            model,
            prompts,
            trace=trace,
            generate=LocoGenSpec(widths=options.widths),
            scorer=scorer,
            folder=options.runs / attribute,
            batch_size=options.batch_size,
        )
        direction = DIRECTION.get(attribute, "min")
        spec = LocoGenSpec(seeds=trace.seeds, num_inference_steps=trace.num_inference_steps)
        search = locogen_search(
            model,
            prompts,
            spec,
            width=WIDTH,
            direction=direction,
            scorer=scorer,
            folder=options.runs / attribute / "search",
            batch_size=options.batch_size,
        )
        best = found[attribute].locogen.best(WIDTH, direction=direction)
        searches.append(
            dict(
                attribute=attribute,
                best=" + ".join(best),
                searched=" + ".join(search.best(WIDTH, direction=direction)),
                windows=search.windows,
                exhaustive=search.exhaustive,
            )
        )

    options.out.mkdir(parents=True, exist_ok=True)
    effects = {name: attribute_effects(each.locogen, name) for name, each in found.items()}
    tables = {
        "locogen": {
            name: strongest(effect).assign(total_effect=float(effect.total_effect)) for name, effect in effects.items()
        },
        "localizers": {name: each.table() for name, each in found.items()},
        "agreement": {name: each.agreement() for name, each in found.items()},
    }
    for stem, by_name in tables.items():
        joined = pd.concat([table.assign(attribute=name) for name, table in by_name.items()]).round(4)
        joined.to_csv(options.out / f"{stem}.csv", index=False)
    pd.DataFrame(searches).to_csv(options.out / "locogen_search.csv", index=False)
    print(pd.DataFrame(searches).to_string(index=False))
    count = f"{options.prompts} prompts x {options.seeds} seeds"
    by_width = {
        width: {name: attribute_effects(each.locogen, name, width) for name, each in found.items()}
        for width in (WIDTH, 1)
    }
    windows_figure(by_width, count).savefig(options.out / "locogen.png", dpi=110)
    agreement_figure(found, count).savefig(options.out / "localizers.png", dpi=70)
    images_figure(model, options).savefig(options.out / "locogen_images.png", dpi=130)
    best = pd.DataFrame([verdict(name, each.locogen) for name, each in found.items()])
    best.to_csv(options.out / "locogen_best.csv", index=False)
    print(best.to_string(index=False))


def attribute_effects(found: LocoGen, name: str, width: int | None = None) -> xr.Dataset:
    """Direct effects in an attribute's own direction."""
    return found.effects(direction=DIRECTION.get(name, "min"), width=width)


def verdict(name: str, found: LocoGen) -> dict:
    """The best window of an attribute, what it does, and whether shuffled windows do as much."""
    direction = DIRECTION.get(name, "min")
    layers, effect = found.best(WIDTH, direction=direction), found.effects(direction=direction, width=WIDTH)
    first, last = (found.layers.index(layer) for layer in (layers[0], layers[-1]))
    return {
        "attribute": name,
        "direction": direction,
        "full replacement": with_interval(effect, "total_effect"),
        "best window": f"{first}-{last}",
        "layers": " + ".join(layers),
        "direct effect": with_interval(effect.sel(site=layers[0]).squeeze(), "direct_effect"),
        "p against shuffled windows": round(found.chance(WIDTH, direction=direction), 4),
    }


def windows_figure(effects: dict[int, dict[str, xr.Dataset]], count: str) -> plt.Figure:
    """Attributes x windows, and attributes x single layers."""
    figure, axes = plt.subplots(2, 1, figsize=(11, 7.5), layout="constrained")
    for ax, (width, by_name) in zip(axes, effects.items()):
        rows = [effect.expand_dims(attribute=[name]) for name, effect in by_name.items()]
        joined = xr.concat(rows, dim="attribute", coords="minimal", compat="override", combine_attrs="drop_conflicts")
        plot.heatmap(
            joined,
            "window",
            "attribute",
            ax=ax,
            limit=1.0,
            title=f"windows of {width}" if width > 1 else "single layers",
        )
    figure.suptitle(
        f"LocoGen: the target prompt at one window of layers, every step; effect on the grader's probability.\n{count}; a dot: "
        "the 95 % interval leaves out 0"
    )
    return figure


def agreement_figure(found: dict[str, Comparison], count: str) -> plt.Figure:
    """Ranks of the layers and correlations of the localizers, two attributes a row."""
    rows = -(-len(found) // 2)
    figure, axes = plt.subplots(rows, 4, figsize=(27, 5.4 * rows), layout="constrained", squeeze=False)
    for ax in axes.flat[2 * len(found) :]:
        ax.remove()
    for i, (name, each) in enumerate(found.items()):
        plot.ranks(each, ax=axes.flat[2 * i], title=f"{name}: rank of each layer")
        plot.agreement(
            each, ax=axes.flat[2 * i + 1], title=f"{name}: agreement; on the diagonal, of halves of the prompts"
        )
    figure.suptitle(f"Four localizers on the same prompts and seeds ({count})")
    return figure


def images_figure(model: Model, options: AgreementOptions) -> plt.Figure:
    """One image for each window, one row an attribute."""
    strips = []
    for attribute in options.attributes:
        prompt = prompt_set(attribute)[0]
        spec = LocoGenSpec(widths=(WIDTH,), seeds=(0,), num_inference_steps=options.num_inference_steps)
        strips.append(locogen_images(model, prompt, spec, batch_size=options.batch_size).sel(seed=0, drop=True))
    names = [f"{prompt_set(name)[0].prompt}\n-> {prompt_set(name)[0].target}" for name in options.attributes]
    images = xr.concat(strips, dim=pd.Index(names, name="prompt -> target"))
    figure, ax = plt.subplots(figsize=(4 + 0.9 * images.sizes["world"], 1.2 + 0.95 * len(names)), layout="constrained")
    plot.image_grid(
        images.rename(world="window"),
        ax=ax,
        title="LocoGen: the target prompt at two neighbouring cross-attention layers, seed 0",
    )
    ax.set(xlabel="layers given the target prompt", ylabel="")
    return figure


if __name__ == "__main__":
    main(tyro.cli(AgreementOptions))
