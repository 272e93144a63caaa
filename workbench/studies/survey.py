"""Which states carry which attribute? `python -m workbench.studies.survey` traces all prompt sets and draws two figures.

`causal_trace_text.png`: layers and components of the text encoder at the last subject token; `causal_trace_unet.png`:
modules of the UNet in execution order; `causal_trace.csv`: every number with its interval. Finished parts are kept in
`runs/survey`: a stopped survey goes on with the same command. `--redraw` draws from the table in `--out`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import tyro
import xarray as xr
from matplotlib.figure import Figure

from workbench import plot
from workbench.drawing import TEXT, WIDTH, bar, house, save
from workbench.experiments.results import effects, from_table, strongest, with_interval
from workbench.localize.causal_trace import causal_trace
from workbench.localize.specs import TraceSpec
from workbench.models import Model, load
from workbench.prompts import prompt_set
from workbench.scorer import Scorer

ATTRIBUTES = ("object", "style", "colour", "season", "action", "position")
EFFECT = "indirect_effect"
TOTAL = ("total_effect", "total_effect_low", "total_effect_high")
SITES = {"text": ("text_encoder.*.{attention,mlp,hidden}",), "unet": ("unet.*.{resnet,self,cross}",)}


@dataclass
class SurveyOptions:
    attributes: tuple[str, ...] = ATTRIBUTES
    prompts: int = 12
    seeds: int = 2
    draws: int = 1
    noise_multiple: float = 6.0
    num_inference_steps: int = 12
    batch_size: int = 32
    device: str = "cpu"
    runs: Path = Path("runs/survey")
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the table in `out`."""


def main(options: SurveyOptions):
    if not options.redraw:
        measure(options)
    draw(options)


def measure(options: SurveyOptions):
    model, scorer = load(device=options.device), Scorer(device=options.device)
    found = {
        (part, attribute): traced(model, scorer, attribute, sites, options, options.runs / f"{attribute}-{part}")
        for part, sites in SITES.items()
        for attribute in options.attributes
    }
    tables = [
        strongest(effect).assign(attribute=attribute, **{name: float(effect[name]) for name in TOTAL})
        for (_, attribute), effect in found.items()
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    pd.concat(tables).drop(columns=["token", "steps"]).round(4).to_csv(options.out / "causal_trace.csv", index=False)
    for (part, attribute), effect in found.items():
        best = strongest(effect).iloc[0]
        count = f"{int(effect.significant.sum())} of {effect.sizes['site']} significant"
        print(
            f"{attribute:9s}{part:5s}total effect {with_interval(effect, 'total_effect')}; strongest {best.site}: "
            f"{with_interval(best, 'indirect_effect')}; {count}"
        )


def traced(
    model: Model,
    scorer: Scorer,
    attribute: str,
    sites: tuple[str, ...],
    options: SurveyOptions,
    folder: Path,
    *,
    tokens: tuple[str, ...] = TraceSpec.tokens,
) -> xr.Dataset:
    """Effects of restoring these sites, at these tokens where they have any, on an attribute's probability."""
    spec = TraceSpec(
        sites=sites,
        tokens=tokens,
        noise_multiple=options.noise_multiple,
        draws=options.draws,
        seeds=tuple(range(options.seeds)),
        num_inference_steps=options.num_inference_steps,
    )
    prompts = prompt_set(attribute)[: options.prompts]
    trace = causal_trace(model, prompts, spec, scorer=scorer, folder=folder, batch_size=options.batch_size)
    return effects(trace, "probability")


def draw(options: SurveyOptions):
    table, sites = pd.read_csv(options.out / "causal_trace.csv"), load().sites
    noise = f"Noise of {options.noise_multiple:g} standard deviations at the words that name the attribute, one state restored"
    count = f"{options.prompts} prompts x {options.seeds} seeds"
    for part, figure in (("text", text_figure), ("unet", unet_figure)):
        chosen = [site for site in sites(*SITES[part]) if site.name in set(table.site)]
        found = {
            attribute: from_table(rows[rows.site.isin([site.name for site in chosen])], chosen, EFFECT, "probability")
            for attribute, rows in table.groupby("attribute", sort=False)
        }
        save(figure(found, f"{noise};\n{count}"), options.out / f"causal_trace_{part}.png")


@house
def text_figure(found: Mapping[str, xr.Dataset], title: str) -> Figure:
    """Layers by components, an attribute a panel."""
    figure, axes = plt.subplots(1, len(found), figsize=(WIDTH, 4), layout="constrained", sharey=True, squeeze=False)
    limit = max(float(abs(effect[EFFECT]).max()) for effect in found.values())
    for ax, (attribute, effect) in zip(axes.flat, found.items()):
        total = f"{attribute}\n(total {float(effect.total_effect):.2f})"
        plot.heatmap(effect, "kind", "layer", ax=ax, limit=limit, bar=False, title=total).set_xlabel("")
        ax.label_outer()
    bar(axes.flat, f"indirect effect on the grader's probability\n{plot.DOT}")
    figure.suptitle(title)
    return figure


@house
def unet_figure(found: Mapping[str, xr.Dataset], title: str) -> Figure:
    """Modules by layer in execution order, an attribute a row, all on one scale."""
    size = (WIDTH, 1.3 * len(found) + 1.6)
    figure, axes = plt.subplots(
        len(found), 1, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for ax, (attribute, effect) in zip(axes.flat, found.items()):
        plot.profile(effect, ax=ax, title=f"{attribute} (total effect {float(effect.total_effect):.2f})")
        ax.set_ylabel("")
        ax.label_outer()
        if ax is not axes.flat[0]:
            ax.get_legend().remove()
    figure.supylabel("indirect effect on the grader's probability, 95 % interval", fontsize=TEXT)
    figure.suptitle(title)
    return figure


if __name__ == "__main__":
    main(tyro.cli(SurveyOptions))
