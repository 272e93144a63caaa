"""Which states carry which attribute? `python -m workbench.studies.survey` traces all prompt sets and draws two figures.

`causal_trace_text.png`: layers and components of the text encoder at the last subject token; `causal_trace_unet.png`:
modules of the UNet in execution order; `causal_trace.csv`: every number with its interval. Finished parts are kept in
`runs/survey`: a stopped survey goes on with the same command.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import tyro
import xarray as xr

from workbench import plot
from workbench.experiments.results import effects, strongest, with_interval
from workbench.localize.causal_trace import causal_trace
from workbench.localize.specs import TraceSpec
from workbench.models import load
from workbench.prompts import prompt_set
from workbench.scorer import Scorer

ATTRIBUTES = ("object", "style", "colour", "season", "action", "position")
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
    runs: Path = Path("runs/survey")
    out: Path = Path("runs/figures")


def main(options: SurveyOptions):
    model, scorer = load(), Scorer()
    found: dict[tuple[str, str], xr.Dataset] = {}
    for part, sites in SITES.items():
        for attribute in options.attributes:
            spec = TraceSpec(
                sites=sites,
                noise_multiple=options.noise_multiple,
                draws=options.draws,
                seeds=tuple(range(options.seeds)),
                num_inference_steps=options.num_inference_steps,
            )
            prompts = prompt_set(attribute)[: options.prompts]
            trace = causal_trace(
                model,
                prompts,
                spec,
                scorer=scorer,
                folder=options.runs / f"{attribute}-{part}",
                batch_size=options.batch_size,
            )
            found[part, attribute] = effects(trace, "probability")
    options.out.mkdir(parents=True, exist_ok=True)
    tables = [
        strongest(effect).assign(attribute=attribute, total_effect=float(effect.total_effect))
        for (_, attribute), effect in found.items()
    ]
    pd.concat(tables).drop(columns=["token", "steps"]).round(4).to_csv(options.out / "causal_trace.csv", index=False)
    for part, draw in (("text", text_figure), ("unet", unet_figure)):
        figure = draw({attribute: found[part, attribute] for attribute in options.attributes})
        noise = f"Noise of {options.noise_multiple:g} standard deviations at the words that name the attribute, one state restored"
        count = f"{options.prompts} prompts x {options.seeds} seeds, 95 % intervals"
        figure.suptitle(f"{noise}:\neffect on the grader's probability of the attribute; {count}")
        figure.savefig(options.out / f"causal_trace_{part}.png", dpi=110)
    for (part, attribute), effect in found.items():
        best = strongest(effect).iloc[0]
        count = f"{int(effect.significant.sum())} of {effect.sizes['site']} significant"
        print(
            f"{attribute:9s}{part:5s}total effect {with_interval(effect, 'total_effect')}; strongest {best.site}: "
            f"{with_interval(best, 'indirect_effect')}; {count}"
        )


def text_figure(found: dict[str, xr.Dataset]) -> plt.Figure:
    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 5.2), layout="constrained", squeeze=False)
    limit = max(float(abs(effect.indirect_effect).max()) for effect in found.values())
    for ax, (attribute, effect) in zip(axes.flat, found.items()):
        plot.heatmap(
            effect, "kind", "layer", ax=ax, limit=limit, title=f"{attribute} (total {float(effect.total_effect):.2f})"
        )
    return figure


def unet_figure(found: dict[str, xr.Dataset]) -> plt.Figure:
    figure, axes = plt.subplots(len(found), 1, figsize=(13, 2.6 * len(found) + 1), layout="constrained", squeeze=False)
    for ax, (attribute, effect) in zip(axes.flat, found.items()):
        plot.profile(effect, ax=ax, title=attribute)
        ax.set_ylabel("indirect effect\n(probability)")
        if ax is not axes.flat[-1]:
            ax.set(xlabel="", xticklabels=[])
    return figure


if __name__ == "__main__":
    main(tyro.cli(SurveyOptions))
