"""Pipeline x scheduler x method: right or refused? `python -m workbench.studies.matrix`.

On random tiny pipelines, each method is compared with what it must equal by definition: the plain pipeline that the workbench
never wrapped, a world without interventions, the target prompt's own image, plain hooks. A cell is "right" with the largest
difference of a pixel (range 1), "refused" with the sentence, or "wrong"; the command fails if any is.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import tyro
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import workbench as wb
from workbench.drawing import WIDTH, cells, house, save, wrapped
from workbench.edit.export import LAYOUTS
from workbench.edit.low_rank import Edit, update_of
from workbench.families import check_class
from workbench.progress import each
from workbench.sites import weight_of
from workbench.studies import tiny, tiny_transformers

ZEBRA, LION = "a zebra in the savanna", "a lion on the beach at night"
RIGHT = (
    1e-4  # a pixel's difference that rounding in float32 explains; what the methods do moves pixels by 1e-3 and more
)
GUIDANCE = 3.0
OTHER_PIPELINES = (
    "StableDiffusionPAGPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "PixArtSigmaPAGPipeline",
    "IFSuperResolutionPipeline",
    "KandinskyPipeline",
    "AuraFlowPipeline",
)
PIPELINES = tiny.PIPELINES | {"deepfloyd": tiny_transformers.deepfloyd}
OTHER_SCHEDULERS = ("DPMSolverSDEScheduler", "IPNDMScheduler", "EDMEulerScheduler", "SASolverScheduler")


@dataclass
class MatrixOptions:
    out: Path = Path("runs/figures/matrix")
    pipelines: tuple[str, ...] = tuple(PIPELINES)
    schedulers: tuple[str, ...] = tuple(tiny.SCHEDULERS)
    redraw: bool = False
    """Measure nothing, draw from the table in `out`."""


def main(options: MatrixOptions):
    if not options.redraw:
        measure(options)
    table = pd.read_csv(options.out / "matrix.csv")
    save(figure(table), options.out / "matrix.png")
    shown = table[table.verdict != "refused"].pivot_table("deviation", "scheduler", "method", "max", sort=False)
    print(shown.map("{:.0e}".format).to_string())
    told = table[table.verdict == "refused"].assign(reason=table.reason.str.slice(0, 90))
    print(told[["pipeline", "scheduler", "method", "reason"]].to_string(index=False))
    print(table.groupby("verdict").size().to_string())
    if (table.verdict == "wrong").any():
        raise SystemExit(f"wrong cells:\n{table[table.verdict == 'wrong'].to_string(index=False)}")


def measure(options: MatrixOptions):
    options.out.mkdir(parents=True, exist_ok=True)
    pairs = [(pipeline, scheduler) for pipeline in options.pipelines for scheduler in options.schedulers]
    rows = [row for pair in each(pairs, "matrix", "pair") for row in compared(*pair)]
    rows += list(refused())
    pd.DataFrame(rows).to_csv(options.out / "matrix.csv", index=False)


def compared(name: str, scheduler: str) -> Iterator[dict]:
    """Every method on one pipeline with one scheduler."""
    torch.manual_seed(0)
    plain = PIPELINES[name]()
    if name in tiny.PIPELINES:  # in DeepFloyd IF's the text matters as it is; sharpened, it makes 1e-4 of rounding
        tiny.sharpen(plain)
    plain.set_progress_bar_config(disable=True)
    plain.scheduler = tiny.scheduler(scheduler)
    if name == "deepfloyd":  # which asks every scheduler for it
        config = {"variance_type": "fixed_small"} | dict(plain.scheduler.config)
        plain.scheduler = type(plain.scheduler).from_config(config)
    trial = Trial(wb.load(copy.deepcopy(plain)), plain, tiny.steps_for(scheduler))
    for method, compare in METHODS.items():
        cell = dict(pipeline=name, scheduler=scheduler, method=method)
        try:
            deviation = compare(trial)
        except (KeyError, ValueError) as error:
            yield cell | dict(verdict="refused", deviation=np.nan, reason=str(error))
        else:
            yield cell | dict(verdict="right" if deviation <= RIGHT else "wrong", deviation=deviation, reason="")


def refused() -> Iterator[dict]:
    """Pipelines and schedulers that no table knows, with what the user is told."""
    for name in OTHER_PIPELINES:
        try:
            check_class(name)
        except ValueError as error:
            yield dict(
                pipeline=name, scheduler="any", method="load", verdict="refused", deviation=np.nan, reason=str(error)
            )
        else:
            yield dict(
                pipeline=name, scheduler="any", method="load", verdict="wrong", deviation=np.nan, reason="accepted"
            )
    pipeline = tiny.sd1()
    for name in OTHER_SCHEDULERS:
        cell = dict(pipeline="sd1", scheduler=name, method="run", deviation=np.nan)
        kind = getattr(diffusers, name)
        try:  # of schedulers whose libraries are not installed diffusers has stand-ins, which cannot be made
            pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        except ImportError:
            pipeline.scheduler = type(name, (type(pipeline.scheduler),), {})(**tiny.SCHEDULE)
        try:
            wb.load(pipeline).run(ZEBRA, num_inference_steps=2, progress=False)
        except ValueError as error:
            yield cell | dict(verdict="refused", reason=str(error))
        else:
            yield cell | dict(verdict="wrong", reason="accepted")


class Trial:
    """A model, a pipeline like its own that was never wrapped, and how both draw."""

    def __init__(self, model: wb.Model, plain: diffusers.DiffusionPipeline, steps: int):
        self.model, self.plain, self.steps = model, plain, steps
        self.pooled = [site.name for site in model.sites.where(kind="pooled", read=True)]

    def run(self, *worlds: wb.World) -> np.ndarray:
        """Images (world, seed, y, x, colour)."""
        run = self.model.run(
            worlds, seeds=(0, 5), num_inference_steps=self.steps, guidance_scale=GUIDANCE, progress=False
        )
        return run.images.values

    def draw(self, *prompts: str, pipeline: diffusers.DiffusionPipeline | None = None) -> np.ndarray:
        """The same by plain diffusers, of prompts without interventions."""
        rows = [(prompt, seed) for prompt in prompts for seed in (0, 5)]
        images = (pipeline or self.plain)(
            [prompt for prompt, _ in rows],
            generator=[torch.Generator().manual_seed(seed) for _, seed in rows],
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            output_type="np",
        ).images
        return images.reshape(len(prompts), 2, *images.shape[1:])

    def edit(self, *sites: str) -> Edit:
        """A change of every cross-attention layer's values, and of more sites, a text encoder's layer when none are named."""
        generator, updates = torch.Generator().manual_seed(0), []
        for site in self.model.sites("unet.*.cross.v", *(sites or ("text_encoder*.0.out",))):
            weight = weight_of(self.model.pipeline, site)
            b = 0.3 * torch.randn(weight.shape[0], 2, generator=generator)
            a = 0.3 * torch.randn(2, weight.shape[1], generator=generator)
            updates.append(update_of(self.model, site.name, b, a))
        return Edit(updates, {"editor": "random"})


def largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def plain_run(trial: Trial) -> float:
    return largest(trial.run(wb.World("a", ZEBRA), wb.World("b", LION)), trial.draw(ZEBRA, LION))


def twins(trial: Trial) -> float:
    images = trial.run(wb.World("a", ZEBRA), wb.World("b", LION), wb.World("c", ZEBRA))
    return largest(images[0], images[2])


def restored(trial: Trial) -> float:
    """The corrupted run with what the clean one predicts put back, in two windows of steps, is the clean one."""
    predicted = "unet.{noise,variance}"
    noise = wb.add_noise("text_encoder*.embedding", 1.0, seed=1, tokens="zebra")
    back = [wb.restore(predicted, "clean", steps=wb.window(*share)) for share in ((0, 0.5), (0.5, 1))]
    images = trial.run(
        wb.World("clean", ZEBRA), wb.World("corrupted", ZEBRA, [noise]), wb.World("back", ZEBRA, [noise, *back])
    )
    return largest(images[0], images[2])


def other_prompt(trial: Trial) -> float:
    """Every layer, and the pooled vector, given another prompt is that prompt's image."""
    given = wb.replace_prompt(["unet.*.cross.context", *trial.pooled], LION)
    return largest(trial.run(wb.World("zebra", ZEBRA), wb.World("lion", ZEBRA, [given]))[1:], trial.draw(LION))


def own_prompt(trial: Trial) -> float:
    """LocoGen with the own prompt at keys and values changes nothing."""
    given = wb.replace_prompt("unet.*.cross.{k,v}", ZEBRA)
    return largest(trial.run(wb.World("a", ZEBRA), wb.World("b", ZEBRA, [given])), trial.draw(ZEBRA, ZEBRA))


def steered(trial: Trial) -> float:
    """A direction added to a text encoder's layer, against a plain hook at the prompt's call."""
    site = trial.model.sites["text_encoder.0.mlp"]
    vector = torch.linspace(-1, 1, site.axis("channel"))
    images = trial.run(wb.World("a", ZEBRA, [wb.steer(site.name, vector, 2.0)]))
    component, _, path = site.module.partition(".")
    called: list[int] = []

    def hook(module, given, output):
        called.append(1)
        return output + 2.0 * vector if len(called) == 1 else None

    handle = getattr(trial.plain, component).get_submodule(path).register_forward_hook(hook)
    try:
        return largest(images, trial.draw(ZEBRA))
    finally:
        handle.remove()


def mixed(trial: Trial) -> float:
    """Prompt-to-Prompt without replaced steps is the plain target, and from a prompt to itself the plain source."""
    none = wb.prompt_to_prompt(
        trial.model,
        ZEBRA,
        "a lion in the savanna",
        cross_replace_steps=0.0,
        self_replace_steps=0.0,
        self_resolution=1.0,
    )
    same = wb.prompt_to_prompt(trial.model, ZEBRA, ZEBRA, self_resolution=1.0)
    plain = trial.draw(ZEBRA, "a lion in the savanna", ZEBRA)
    return max(largest(trial.run(*none), plain[:2]), largest(trial.run(*same), plain[[0, 2]]))


def read_maps(trial: Trial) -> float:
    """Attention's probabilities sum to one, where the picture is looked at too with those at it, and reading them leaves the image."""
    sites = trial.model.sites("unet.*.cross.probs")
    parts = {
        site: [trial.model.sites.beside(site, kind).name for kind in site.together or (site.kind,)] for site in sites
    }
    run = trial.model.run(
        ZEBRA,
        seeds=(0, 5),
        num_inference_steps=trial.steps,
        guidance_scale=GUIDANCE,
        record=[name for names in parts.values() for name in names],
        progress=False,
    )
    sums = (sum(run.values[name].values.sum(-1) for name in names) for names in parts.values())
    off = max(largest(each, np.ones(())) for each in sums)
    return max(off, largest(run.images.values, trial.draw(ZEBRA)))


def previewed(trial: Trial) -> float:
    edit = trial.edit()
    preview = trial.run(wb.World("a", ZEBRA, edit.preview()))
    with trial.model.applied(edit):
        return largest(preview, trial.run(wb.World("a", ZEBRA)))


def exported(trial: Trial) -> float:
    """The edit's LoRA, in a plain pipeline, in all layouts that it has, against the commit."""
    layouts = LAYOUTS[trial.model.family.name]
    edit, deviations = trial.edit(*(() if "kohya" in layouts else ("unet.*.cross.k",))), []  # T5's layers do not travel
    with trial.model.applied(edit):
        committed = trial.run(wb.World("a", ZEBRA))
    with TemporaryDirectory() as folder:
        for layout in layouts:
            pipeline = copy.deepcopy(trial.plain)
            pipeline.load_lora_weights(str(edit.to_lora(Path(folder) / f"{layout}.safetensors", layout=layout)))
            deviations.append(largest(committed, trial.draw(ZEBRA, pipeline=pipeline)))
    return max(deviations)


METHODS: dict[str, Callable[[Trial], float]] = {
    "plain run": plain_run,
    "twin worlds": twins,
    "restore (causal trace)": restored,
    "other prompt at all layers": other_prompt,
    "own prompt at k, v (LocoGen)": own_prompt,
    "steering": steered,
    "Prompt-to-Prompt": mixed,
    "attention maps": read_maps,
    "edit: preview = commit": previewed,
    "edit: LoRA = commit": exported,
}


@house
def figure(table: pd.DataFrame) -> Figure:
    """The largest deviation over all pipelines, by scheduler and method."""
    measured = table[table.verdict != "refused"]
    grid = measured.pivot_table("deviation", "scheduler", "method", "max", sort=False)
    grid.columns = [wrapped(method.replace("-to-", "-\nto-"), 12) for method in grid]
    figure, ax = plt.subplots(figsize=(WIDTH, 6), layout="constrained")
    notes = grid.map(lambda each: f"{each:.0e}" if each else "0").to_numpy()
    pipelines = ", ".join(measured.pipeline.unique())
    title = f"Largest difference of a pixel (range 1), over {pipelines}"
    scale = dict(norm=LogNorm(1e-8, RIGHT), cmap="viridis")
    cells(grid.clip(lower=1e-8), ax=ax, notes=notes, title=title, rotation=0, **scale)
    return figure


if __name__ == "__main__":
    main(tyro.cli(MatrixOptions))
