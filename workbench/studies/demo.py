"""Where does the embedded model keep "zebra"? `make demo` traces one prompt and draws the heat-maps."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import tyro
import xarray as xr

from workbench import plot
from workbench.experiments.results import effects, strongest, with_interval
from workbench.interventions import World, add_noise, restore
from workbench.localize.causal_trace import causal_trace, noise_seed, noise_sigmas
from workbench.localize.specs import TraceSpec
from workbench.models import Model, load
from workbench.prompts import Prompt, PromptSet, prompt_set
from workbench.scorer import Scorer

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
    out: Path = Path("runs/zebra_trace.png")


def main(options: DemoOptions):
    model, scorer = load(), Scorer()
    prompts = PromptSet(
        "demo", (Prompt(options.prompt, options.subject, options.subject),), prompt_set("object").labels
    )

    def traced(*sites, tokens=("subject_last",)):
        spec = TraceSpec(
            sites=sites,
            tokens=tokens,
            draws=1,
            noise_multiple=options.noise_multiple,
            seeds=tuple(range(options.seeds)),
            num_inference_steps=options.num_inference_steps,
        )
        return effects(causal_trace(model, prompts, spec, scorer=scorer, batch_size=options.batch_size), "probability")

    by_token = traced("text_encoder.*.hidden", tokens=("each",))
    by_component = traced("text_encoder.*.{attention,mlp,hidden}")
    unet = traced("unet.*.{resnet,self,cross,ff}")
    for name, found in (("layers x tokens", by_token), ("layers x components", by_component), ("UNet modules", unet)):
        best = strongest(found).iloc[0]
        print(
            f"{name}: total effect {with_interval(found, 'total_effect')}; most comes back at {best.site}, "
            f"token {best.token}: {with_interval(best, 'indirect_effect')}"
        )

    if abs(float(by_token.total_effect)) < SMALL:
        print(
            f"The noise changes almost nothing (total effect {with_interval(by_token, 'total_effect')}): where nothing is lost, "
            "nothing can come back. Take a larger --noise-multiple, or a --prompt whose --subject the model draws."
        )
    figure = plt.figure(figsize=(15, 10.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 0.9))
    left, middle, right = top.subplots(1, 3, width_ratios=(1.3, 0.8, 0.8))
    plot.heatmap(by_token, "token", "layer", ax=left, title="hidden state: layer x token")
    plot.heatmap(by_component, "kind", "layer", ax=middle, title=f'at "{options.subject}": layer x component')
    plot.image_grid(pictures(model, prompts, options), ax=right, title="one noise per column")
    plot.profile(unet, ax=bottom.subplots(), title="UNet: one module restored at every step")
    what, sigma = options.subject, f"{options.noise_multiple:g} standard deviations"
    figure.suptitle(
        f'Where is "{what}" kept? Its embedding gets noise of {sigma}, then one state is restored.\nEffect on the grader\'s '
        f'probability of "{what}", {options.seeds} seeds; a dot: the 95 % interval over seeds leaves out 0'
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(f"wrote {options.out}")


def pictures(model: Model, prompts: PromptSet, options: DemoOptions) -> xr.DataArray:
    """Clean, corrupted and twice restored images (world, seed, y, x, colour)."""
    ((embedding, sigma),) = noise_sigmas(model, prompts, options.noise_multiple).items()
    noise = add_noise(embedding, sigma, noise_seed(prompts[0], draw=0), tokens="subject")
    last = [site.name for site in model.sites("text_encoder.*.hidden")][-1]
    worlds = [World("clean", options.prompt), World("corrupted", options.prompt, [noise], options.subject)]
    for name, site in (("layer 0\nrestored", "text_encoder.0.hidden"), ("last layer\nrestored", last)):
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
