"""What the engine costs and saves: `python -m workbench.studies.speed`.

Every study times several ways to the same pictures, in turn in one process with the number of threads stated; numbers are shares of the
first way's time, medians over the turns. Against a pipeline that the workbench never wrapped and the loops that one would write with hooks
(`speed_loops`), which must draw the same pictures, or it stops:

- plain diffusers: a traced run without interventions, and with 16 sites recorded at every step;
- late windows: LocoGen in the second half of the steps, from latents that all windows share, against all steps of each;
- text-encoder trace, LocoGen: a user's loop, the engine with one picture a batch, and with full batches;
- text-encoder trace, savings apart: with rows for worlds of which only the text is read; and (several prompts) each prompt by itself;
- best three: `wb.screen` and `wb.race` against the user's loop over all sites, whose time is what its pictures take in this run times
  their number; with the share of the true best three, of a trace of all sites, that they name;
- workers: Ray's, one and two of one thread each, whose rows must be one process's.

On a CPU the embedded model is asked, on CUDA also random models of Stable Diffusion 1.5's and XL's sizes, in half precision.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import tyro
from diffusers import DiffusionPipeline

from workbench.engine.plan import Plan
from workbench.experiments.base import Experiment
from workbench.experiments.racing import race
from workbench.experiments.results import effects
from workbench.experiments.spec import RaceSpec
from workbench.interventions import World, add_noise, replace_prompt, restore
from workbench.localize.causal_trace import causal_trace
from workbench.localize.locogen import locogen, locogen_images
from workbench.localize.patching import cross_layers
from workbench.localize.screen import screen
from workbench.localize.specs import LocoGenSpec, ScreenSpec, TraceSpec
from workbench.metrics import Metric
from workbench.models import MENAGERIE, Model, load
from workbench.prompts import Prompt, PromptSet, prompt_set
from workbench.steps import window
from workbench.studies import speed_loops
from workbench.studies.full_models import random_pipeline
from workbench.studies.speed_workers import by_workers

PROMPT, SUBJECT, TARGET = "a photo of a zebra in the savanna", "zebra", "a photo of a giraffe in the savanna"
SITES = "text_encoder.*.{attention,mlp,hidden}"
HEADS = {
    "heads that read the text": ("text_encoder.*.z", "unet.*.cross.z"),
    "all heads": ("text_encoder.*.z", "unet.*.{self,cross}.z"),
}
COMPONENTS = ("text_encoder.*.{attention,mlp}", "unet.*.{self,cross,ff}")
ATTRIBUTES = ("object", "style", "colour", "season")  # of the prompts that share batches
NOISE = add_noise("text_encoder.embedding", 1.0, tokens="subject")
LATE = window(0.5, 1.0)
BEST = 3
NOISE_MULTIPLE = 6.0  # as in the studies of attribution and of causal tracing
DIFFERENCE = {torch.float32: 0.02, torch.float16: 0.25}  # of a pixel, at which pictures are others


@dataclass
class SpeedOptions:
    studies: tuple[str, ...] = (
        "plain diffusers",
        "late windows",
        "text-encoder trace",
        "LocoGen",
        "several prompts",
        "best three",
        "workers",
    )
    """Which of the comparisons to make."""
    out: Path = Path("runs/figures/speed.csv")
    repeats: int = 7
    """Turns of short comparisons; long ones, those with a loop, take one for each four of them."""
    seeds: int = 4
    batch_size: int = 32
    num_inference_steps: int | None = None
    prompts: int = 48
    """That share batches; in `best_steps` steps."""
    best_steps: int = 8
    """Of best three."""
    screened: int = 6
    """Prompts on each of which the best heads are screened for."""
    raced: int = 24
    """Prompts on which sites race together, under two draws of noise."""
    shared: int = 16
    """Prompts that workers share."""


class Subject(NamedTuple):
    """What is timed: a model of the workbench, and the same pipeline never wrapped."""

    name: str
    model: Model
    pipeline: DiffusionPipeline
    steps: int

    @property
    def drawing(self) -> tuple[int, float]:
        return self.steps, self.model.guidance_scale


def main(options: SpeedOptions):
    rows: list[dict[str, Any]] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    about = dict(threads=torch.get_num_threads(), device=device_name())
    for subject in subjects(options):
        embedded = subject.name == "embedded"
        for study in options.studies:
            if not embedded and study not in OF_SIZES:
                continue
            for row in STUDIES[study](subject, options):
                rows.append(dict(study=study, model=subject.name) | row | about)
                print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
                pd.DataFrame(rows).round(4).to_csv(options.out, index=False)


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def subjects(options: SpeedOptions) -> Iterator[Subject]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made: dict[str, Callable[[], DiffusionPipeline]] = {
        "embedded": partial(DiffusionPipeline.from_pretrained, MENAGERIE)
    }
    if device == "cuda":
        sizes = {"SD 1.5": (device, torch.float16), "SDXL": (device, torch.float16)}
        made |= {f"{name}'s size": partial(random_pipeline, name, *where) for name, where in sizes.items()}
    for name, make in made.items():
        plain = make().to(device)
        plain.set_progress_bar_config(disable=True)
        wrapped = plain.__class__(**plain.components)  # the same weights
        model = load(device=device) if name == "embedded" else load(wrapped)
        yield Subject(name, model, plain, options.num_inference_steps or model.num_inference_steps)


# Timing


def in_turn(
    sides: dict[str, Callable[[], Any]], *, turns: int, warm: bool = True
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each side, and what each returned last. Sides run in turn, every other turn in the opposite order: none follows
    another one always. warm: whether a first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    returned: dict[str, Any] = {}
    for turn in range(turns + warm):
        for name in reversed(sides) if turn % 2 else sides:
            synchronize()
            began = time.perf_counter()
            returned[name] = sides[name]()
            synchronize()
            if turn >= warm:
                times[name].append(time.perf_counter() - began)
    return {name: median(seconds) for name, seconds in times.items()}, returned


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rows_of(seconds: dict[str, float], images: int, **more: Any) -> Iterator[dict[str, Any]]:
    """A row for each side. share: of the first one's time."""
    first = next(iter(seconds.values()))
    for side, own in seconds.items():
        yield dict(side=side, images=images, seconds=own, share=own / first, times_faster=first / own) | more


def check_alike(study: str, subject: Subject, images: dict[str, np.ndarray]) -> float:
    """The largest difference of a pixel between sides; raises RuntimeError where they draw other pictures."""
    first, *others = images.values()
    apart = max(float(np.abs(first - each).max()) for each in others)
    if apart > DIFFERENCE[subject.pipeline.dtype]:
        raise RuntimeError(
            f"{study}: the loop and the engine draw different images (largest difference {apart}): their times cannot be compared"
        )
    return apart


def few(options: SpeedOptions) -> int:
    """Turns of long comparisons."""
    return max(1, options.repeats // 4)


# What is timed


def plain_diffusers(subject: Subject, options: SpeedOptions) -> Iterator[dict[str, Any]]:
    for images in (1, 16):
        run = partial(subject.model.run, PROMPT, seeds=range(images), num_inference_steps=subject.steps, progress=False)
        sides = {
            "plain diffusers": partial(speed_loops.draw, subject.pipeline, PROMPT, range(images), *subject.drawing),
            "traced": run,
            "traced, 16 sites recorded": partial(run, record="unet.*.cross"),
        }
        seconds, _ = in_turn(sides, turns=options.repeats)
        yield from rows_of(seconds, images)


def late_windows(subject: Subject, options: SpeedOptions) -> Iterator[dict[str, Any]]:
    layers = cross_layers(subject.model)
    sites = [[f"{site.name}.context" for site in layers.window(start, 2)] for start in range(0, len(layers) - 1, 2)]
    worlds = [World("clean", PROMPT)]
    worlds += [World(f"{i}", PROMPT, [replace_prompt(own, TARGET, steps=LATE)]) for i, own in enumerate(sites)]
    run = partial(engine, subject, worlds, options)
    sides = {"all steps": partial(run, reuse=False), "from shared latents": run}
    seconds, images = in_turn(sides, turns=few(options))
    apart = check_alike("late windows", subject, images)
    yield from rows_of(seconds, len(images["all steps"]), largest_difference=apart)


def engine(subject: Subject, worlds: list[World], options: SpeedOptions, **how: Any) -> np.ndarray:
    """Images (world x seed, y, x, colour)."""
    asked = dict(seeds=range(options.seeds), batch_size=options.batch_size, num_inference_steps=subject.steps)
    run = subject.model.run(worlds, **asked | how, progress=False)
    return run.images.values.reshape(-1, *run.images.shape[2:])


def text_trace(subject: Subject, options: SpeedOptions) -> Iterator[dict[str, Any]]:
    """A text-encoder trace, by a loop and by the engine: with one picture a batch, with all rows, and without those of text alone."""
    model, seeds = subject.model, range(options.seeds)
    chosen, embedding = model.sites(SITES), model.sites["text_encoder.embedding"]
    worlds = [World("clean", PROMPT), World("corrupted", PROMPT, [NOISE], SUBJECT)]
    worlds += [
        World(site.name, PROMPT, [NOISE, restore(site.name, "clean", tokens="subject")], SUBJECT) for site in chosen
    ]
    by_engine = partial(engine, subject, worlds, options)

    def with_rows_of_text() -> np.ndarray:
        with patch.object(Plan, "reads_text_alone", lambda self, action: False):
            return by_engine()

    given = (chosen, embedding, NOISE, PROMPT, SUBJECT, seeds, *subject.drawing)
    sides = {
        "the loop one would write": partial(speed_loops.trace, subject.pipeline, *given),
        "engine, one picture a batch": partial(by_engine, batch_size=1),
        "engine, with rows of which the text alone is read": with_rows_of_text,
        "engine": by_engine,
    }
    seconds, images = in_turn(sides, turns=few(options), warm=False)
    apart = check_alike("text-encoder trace", subject, images)
    yield from rows_of(seconds, len(images["engine"]), largest_difference=apart)


def generating(subject: Subject, options: SpeedOptions) -> Iterator[dict[str, Any]]:
    """LocoGen over all windows of two."""
    seeds = range(options.seeds)
    spec = LocoGenSpec(widths=(2,), seeds=tuple(seeds), num_inference_steps=subject.steps)
    prompt = Prompt(PROMPT, SUBJECT, target=TARGET)

    def by_engine(batch_size: int) -> np.ndarray:
        images = locogen_images(subject.model, prompt, spec, batch_size=batch_size)
        return images.values.reshape(-1, *images.shape[2:])

    given = (cross_layers(subject.model), 2, PROMPT, TARGET, seeds, *subject.drawing)
    sides = {
        "the loop one would write": partial(speed_loops.locogen, subject.pipeline, *given),
        "engine, one picture a batch": partial(by_engine, 1),
        "engine": partial(by_engine, options.batch_size),
    }
    seconds, images = in_turn(sides, turns=few(options), warm=False)
    apart = check_alike("LocoGen", subject, images)
    yield from rows_of(seconds, len(images["engine"]), largest_difference=apart)


def several_prompts(subject: Subject, options: SpeedOptions) -> Iterator[dict[str, Any]]:
    """LocoGen of one window on many prompts, one seed each: 3 pictures a prompt, in batches of their own and in shared ones."""
    every = [prompt for name in ATTRIBUTES for prompt in prompt_set(name)]
    prompts = PromptSet.of([replace(prompt, value="", target_value="") for prompt in every[: options.prompts]])
    spec = LocoGenSpec(windows=((6, 2),), seeds=(0,), num_inference_steps=options.best_steps)
    metric = Metric("brightness", lambda images: images.mean((1, 2, 3)))
    ask = partial(locogen, subject.model, prompts, spec, scorer=metric, batch_size=options.batch_size)

    def by_themselves():
        with patch.object(Experiment, "together", lambda self, parts: [{name: parts[name]} for name in parts]):
            return ask()

    sides = {"each prompt by itself": by_themselves, "prompts share batches": ask}
    seconds, found = in_turn(sides, turns=few(options))
    apart = float(abs(found["each prompt by itself"].data - found["prompts share batches"].data).to_array().max())
    if apart > DIFFERENCE[subject.pipeline.dtype]:
        raise RuntimeError(f"several prompts: scores are {apart} apart: their times cannot be compared")
    yield from rows_of(seconds, 3 * len(prompts), largest_difference=apart)


def best_three(subject: Subject, options: SpeedOptions) -> Iterator[dict[str, Any]]:
    """The best three, named by screening and by racing, against a loop over all sites; and how many of them are the true ones."""
    own = subject._replace(steps=options.best_steps)
    picture = seconds_a_picture(own, options)
    for name, sites in HEADS.items():
        yield from screened(own, options, picture, name, sites)
    yield from raced(own, options, picture)


def seconds_a_picture(subject: Subject, options: SpeedOptions) -> float:
    """Of a user's loop, without any scoring."""
    model = subject.model
    chosen, embedding = model.sites(SITES), model.sites["text_encoder.embedding"]
    given = (chosen, embedding, NOISE, PROMPT, SUBJECT, (0,), *subject.drawing)
    loop = {"loop": partial(speed_loops.trace, subject.pipeline, *given)}
    seconds, images = in_turn(loop, turns=few(options), warm=False)
    return seconds["loop"] / len(images["loop"])


def named(side: str, seconds: float, loop: float, images: int, recall: Sequence[float]) -> dict[str, Any]:
    """A row of what names the best. loop: seconds of the user's loop over all sites."""
    return dict(
        side=side,
        images=images,
        seconds=seconds,
        share=seconds / loop,
        times_faster=loop / seconds,
        recall=float(np.mean(recall)),
        recalls=len(recall),
    )


def screened(
    subject: Subject, options: SpeedOptions, picture: float, kind: str, sites: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """The best of many heads, for each prompt by itself."""
    prompts = prompt_set("object")[: options.screened]
    asked = dict(
        tokens=("all",), seeds=(0, 1), draws=1, noise_multiple=NOISE_MULTIPLE, num_inference_steps=subject.steps
    )
    trace = TraceSpec(sites=sites, over="head", **asked)
    spec = ScreenSpec(sites=sites, over="head", best=BEST, **asked)
    more = dict(batch_size=options.batch_size)
    images, times, recall = dict(all=0, screen=0), dict(all=0.0, screen=0.0), []
    for p in range(len(prompts)):
        taken, found = in_turn(
            {
                "all": partial(causal_trace, subject.model, prompts[p : p + 1], trace, **more),
                "screen": partial(screen, subject.model, prompts[p : p + 1], spec, **more),
            },
            turns=1,
            warm=False,
        )
        true = best_places(effects(found["all"], "probability").indirect_effect.to_dataframe().reset_index())
        recall.append(len(true & best_places(found["screen"].table)) / BEST)
        images["all"] += found["screen"].pictures_of_all
        images["screen"] += found["screen"].pictures
        times = {name: times[name] + taken[name] for name in times}
    loop = picture * images["all"]
    yield named(f"{kind}: the loop over all, reckoned", loop, loop, images["all"], [1.0])
    yield named(f"{kind}: engine, all", times["all"], loop, images["all"], [1.0])
    yield named(f"{kind}: wb.screen", times["screen"], loop, images["screen"], recall)


def best_places(table: pd.DataFrame) -> set[tuple[Any, ...]]:
    """Where the largest effects are."""
    axes = [axis for axis in ("site", "token", "head") if axis in table]
    return set(table.nlargest(BEST, "indirect_effect")[axes].itertuples(index=False, name=None))


def raced(subject: Subject, options: SpeedOptions, picture: float) -> Iterator[dict[str, Any]]:
    """The best components of all prompts together."""
    prompts = prompt_set("object")[: options.raced]
    asked = dict(
        sites=COMPONENTS,
        tokens=("all",),
        draws=2,
        seeds=(0,),
        noise_multiple=NOISE_MULTIPLE,
        num_inference_steps=subject.steps,
    )
    how = RaceSpec(best=BEST, metric="probability")
    more = dict(batch_size=options.batch_size)
    sides = {
        "all": partial(causal_trace, subject.model, prompts, TraceSpec(**asked), **more),
        "race": partial(race, causal_trace, subject.model, prompts, TraceSpec(**asked), race=how, **more),
        "screen": partial(screen, subject.model, prompts, ScreenSpec(best=BEST, race=True, **asked), **more),
    }
    seconds, found = in_turn(sides, turns=1, warm=False)
    true = best_places(effects(found["all"], "probability").indirect_effect.to_dataframe().reset_index())
    first = found["race"].table.head(BEST).rename(columns={"effect": "indirect_effect"})
    recall = {"race": first, "screen": found["screen"].table}
    whole = found["race"].pictures_of_all
    loop = picture * whole
    yield named("components: the loop over all, reckoned", loop, loop, whole, [1.0])
    yield named("components: engine, all", seconds["all"], loop, whole, [1.0])
    for name, side in (("race", "wb.race"), ("screen", "wb.screen, whose proposed sites race")):
        shares = [len(true & best_places(recall[name])) / BEST]
        yield named(f"components: {side}", seconds[name], loop, found[name].pictures, shares)


def ray_workers(subject: Subject, options: SpeedOptions) -> Iterator[dict[str, Any]]:
    """One and two of Ray's workers."""
    seconds, images = by_workers(subject.model, (1, 2), prompts=options.shared, turns=few(options))
    yield from rows_of({f"{workers} worker(s) of one thread": own for workers, own in seconds.items()}, images)


STUDIES = {
    "plain diffusers": plain_diffusers,
    "late windows": late_windows,
    "text-encoder trace": text_trace,
    "LocoGen": generating,
    "several prompts": several_prompts,
    "best three": best_three,
    "workers": ray_workers,
}
OF_SIZES = ("plain diffusers", "late windows", "text-encoder trace")  # what full-size models are asked


if __name__ == "__main__":
    main(tyro.cli(SpeedOptions))
