"""Where does the embedded model keep "zebra"? `make demo` traces one prompt and draws the heat-maps."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import tyro
import xarray as xr
from matplotlib.figure import Figure

from workbench import plot
from workbench.drawing import WIDTH, bar, house, save
from workbench.experiments.results import effects, from_table, strongest, with_interval
from workbench.interventions import World, add_noise, restore
from workbench.localize.causal_trace import causal_trace, noise_seed, noise_sigmas
from workbench.localize.specs import TraceSpec
from workbench.models import Model, load
from workbench.prompts import Prompt, PromptSet, prompt_set
from workbench.scorer import Scorer

PANELS = {  # sites and tokens that are restored
    "layers x tokens": ("text_encoder.*.hidden", "each"),
    "layers x components": ("text_encoder.*.{attention,mlp,hidden}", "subject_last"),
    "UNet modules": ("unet.*.{resnet,self,cross,ff}", "subject_last"),
}
SMALL = 0.1  # a total effect below it leaves little to be found


@dataclass
class DemoOptions:
    prompt: str = "a zebra in the savanna"
    subject: str = "zebra"
    """The words to trace; one of the objects."""
    seeds: int = 3
    noise_multiple: float = 6.0
    batch_size: int = 32
    num_inference_steps: int | None = None
    runs: Path | None = None
    """Where finished parts are kept; nowhere when left out."""
    out: Path = Path("runs/zebra_trace.png")
    """The picture; its table is written beside it."""
    redraw: bool = False
    """Measure nothing, draw from the table beside `out`."""


def main(options: DemoOptions):
    model, table = load(), options.out.with_suffix(".csv")
    if not options.redraw:
        found = measure(model, options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found.round(4).to_csv(table, index=False)
    save(figure(pd.read_csv(table), model, pictures(model, options), options), options.out)


def asked(options: DemoOptions) -> PromptSet:
    return PromptSet("demo", (Prompt(options.prompt, options.subject, options.subject),), prompt_set("object").labels)


def measure(model: Model, options: DemoOptions) -> pd.DataFrame:
    """Every effect, one row for each state that is restored."""
    prompts, scorer, tables = asked(options), Scorer(), []
    for panel, (sites, tokens) in PANELS.items():
        spec = TraceSpec(
            sites=(sites,),
            tokens=(tokens,),
            draws=1,
            noise_multiple=options.noise_multiple,
            seeds=tuple(range(options.seeds)),
            num_inference_steps=options.num_inference_steps,
        )
        folder = options.runs / panel if options.runs else None
        trace = causal_trace(model, prompts, spec, scorer=scorer, folder=folder, batch_size=options.batch_size)
        found = effects(trace, "probability")
        best = strongest(found).iloc[0]
        print(
            f"{panel}: total effect {with_interval(found, 'total_effect')}; most comes back at {best.site}, "
            f"token {best.token}: {with_interval(best, 'indirect_effect')}"
        )
        tables.append(strongest(found).assign(panel=panel, total_effect=float(found.total_effect)))
    if abs(total := float(tables[0].total_effect[0])) < SMALL:
        print(
            f"The noise changes almost nothing (total effect {total:.2f}): where nothing is lost, "
            "nothing can come back. Take a larger --noise-multiple, or a --prompt whose --subject the model draws."
        )
    return pd.concat(tables, ignore_index=True)


@house
def figure(table: pd.DataFrame, model: Model, images: xr.DataArray, options: DemoOptions) -> Figure:
    """Text encoder by token and component on one scale, pictures, and the UNet by layer."""
    by_token, by_component, unet = (
        from_table(rows, model.sites, "indirect_effect", "probability")
        for _, rows in table.groupby("panel", sort=False)
    )
    sheet = plt.figure(figsize=(WIDTH, 9.8), layout="constrained")
    top, middle, bottom = sheet.subfigures(3, 1, height_ratios=(3.3, 2.9, 3.2))
    axes = top.subplots(1, 2, width_ratios=(1.9, 1), sharey=True)
    shared = dict(limit=float(abs(table.indirect_effect).max()), bar=False)
    plot.heatmap(by_token, "token", "layer", ax=axes[0], title="hidden state after each layer", **shared)
    plot.heatmap(by_component, "kind", "layer", ax=axes[1], title=f'at "{options.subject}"', **shared)
    axes[1].label_outer()
    bar(axes, "indirect effect (probability)")
    for ax, some in zip(middle.subplots(1, 2), (images[:2], images[2:])):
        plot.image_grid(some, ax=ax)
    plot.profile(unet, ax=bottom.subplots(), title="UNet: one module restored")
    sigma = f"{options.noise_multiple:g} standard deviations"
    sheet.suptitle(
        f'Where is "{options.subject}" kept? Its embedding gets noise of {sigma}, then one state is restored:\n'
        f'effect on the grader\'s probability of "{options.subject}", {options.seeds} seeds'
    )
    return sheet


def pictures(model: Model, options: DemoOptions) -> xr.DataArray:
    """Clean, corrupted and twice restored images (world, seed, y, x, colour)."""
    prompts = asked(options)
    ((embedding, sigma),) = noise_sigmas(model, prompts, options.noise_multiple).items()
    noise = add_noise(embedding, sigma, noise_seed(prompts[0], draw=0), tokens="subject")
    last = [site.name for site in model.sites("text_encoder.*.hidden")][-1]
    worlds = [World("clean", options.prompt), World("corrupted", options.prompt, [noise], options.subject)]
    for name, site in (("layer 0 restored", "text_encoder.0.hidden"), ("last layer restored", last)):
        back = restore(site, "clean", tokens="subject")
        worlds.append(World(name, options.prompt, [noise, back], options.subject))
    run = model.run(
        worlds,
        seeds=range(options.seeds),
        num_inference_steps=options.num_inference_steps,
        batch_size=options.batch_size,
    )
    return run.images


if __name__ == "__main__":
    main(tyro.cli(DemoOptions))
