"""What the engine costs and saves: `python -m workbench.studies.speed`.

Ratios of medians, the two sides interleaved in one process with the number of threads stated, against a pipeline that the
workbench never wrapped: a traced run over plain diffusers, without interventions and with 16 sites recorded at every step;
and a whole text-encoder trace, and LocoGen over all windows, against the loops that one would write with hooks, one pipeline
call per site or window and seed. Both sides must draw the same images, or it stops.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
import tyro
from diffusers import DiffusionPipeline

from workbench.interventions import Context, World, add_noise, restore
from workbench.localize.locogen import locogen_images
from workbench.localize.patching import cross_layers
from workbench.localize.specs import LocoGenSpec
from workbench.models import MENAGERIE, Model, load
from workbench.prompts import Prompt
from workbench.sites import Site
from workbench.text import tokenize

PROMPT, SUBJECT, TARGET = "a photo of a zebra in the savanna", "zebra", "a photo of a giraffe in the savanna"
SITES = "text_encoder.*.{attention,mlp,hidden}"
NOISE = add_noise("text_encoder.embedding", 1.0, tokens="subject")


@dataclass
class SpeedOptions:
    studies: tuple[str, ...] = ("plain diffusers", "text-encoder trace", "LocoGen")
    """Which of the comparisons to make."""
    out: Path = Path("runs/figures/speed.csv")
    repeats: int = 7
    trace_seeds: int = 4
    batch_size: int = 32
    num_inference_steps: int | None = None


def main(options: SpeedOptions):
    model, pipeline = load(), never_wrapped()
    steps = options.num_inference_steps or model.num_inference_steps
    rows, threads = [], torch.get_num_threads()
    for images in (1, 16) if "plain diffusers" in options.studies else ():
        world = [World("w", PROMPT)]
        run = partial(model.run, world, seeds=range(images), num_inference_steps=steps, progress=False)
        sides = {
            "plain diffusers": partial(draw, pipeline, range(images), steps, model.guidance_scale),
            "traced, no interventions": run,
            "traced, 16 sites recorded at every step": partial(run, record="unet.*.cross"),
        }
        found = interleaved(sides, options.repeats)
        for name, seconds in found.items():
            ratio = seconds / found["plain diffusers"]
            rows.append(dict(what=f"{name}, {images} image(s)", threads=threads, seconds=seconds, ratio=ratio))
    studies = {"text-encoder trace": (by_loop, by_engine), "LocoGen": (locogen_by_loop, locogen_by_engine)}
    apart = {}
    for study in (name for name in studies if name in options.studies):
        drawn, taken = [], []
        for side in studies[study]:
            began = time.perf_counter()
            drawn.append(side(model, pipeline, steps, options))
            taken.append(time.perf_counter() - began)
        apart[study] = float(np.abs(drawn[0] - drawn[1]).max())
        if apart[study] > 0.02:
            raise RuntimeError(
                f"{study}: the loop and the engine draw different images (largest difference {apart[study]}): "
                "their times cannot be compared"
            )
        for name, seconds in zip(("the loop one would write", "engine"), taken):
            what = f"{study}, {len(drawn[0])} images: {name}"
            rows.append(dict(what=what, threads=threads, seconds=seconds, ratio=taken[0] / seconds))
    table = pd.DataFrame(rows).round(3)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out, index=False)
    print(
        table.to_string(index=False),
        f"\nlargest difference of a pixel between loop and engine: {apart}; {threads} threads",
    )


def never_wrapped() -> DiffusionPipeline:
    """The embedded model as anyone would load it."""
    pipeline = DiffusionPipeline.from_pretrained(MENAGERIE)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: DiffusionPipeline, seeds: Sequence[int], steps: int, guidance: float) -> np.ndarray:
    """Plain pictures of the prompt, (seed, y, x, colour)."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(
        [PROMPT] * len(generators),
        generator=generators,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="np",
    ).images


def module_of(pipeline: DiffusionPipeline, site: Site) -> torch.nn.Module:
    return getattr(pipeline, site.component).get_submodule(site.module.partition(".")[2])


def interleaved(sides: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each side, their runs in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(repeats + 1):  # the first turn warms up
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            if i:
                times[name].append(time.perf_counter() - began)
    return {name: median(seconds) for name, seconds in times.items()}


def by_engine(model: Model, pipeline: DiffusionPipeline, steps: int, options: SpeedOptions) -> np.ndarray:
    """Images (world x seed, y, x, colour)."""
    worlds = [World("clean", PROMPT), World("corrupted", PROMPT, [NOISE], SUBJECT)]
    worlds += [
        World(site.name, PROMPT, [NOISE, restore(site.name, "clean", tokens="subject")], SUBJECT)
        for site in model.sites(SITES)
    ]
    run = model.run(
        worlds,
        seeds=range(options.trace_seeds),
        num_inference_steps=steps,
        batch_size=options.batch_size,
        progress=False,
    )
    return run.images.values.reshape(-1, *run.images.shape[2:])


def by_loop(model: Model, pipeline: DiffusionPipeline, steps: int, options: SpeedOptions) -> np.ndarray:
    """The same with PyTorch hooks: a clean call that keeps its states, then one call per site and seed."""
    sites = list(model.sites(SITES))
    modules = {site.name: module_of(pipeline, site) for site in [*sites, model.sites["text_encoder.embedding"]]}
    words = list(tokenize(pipeline.tokenizer, PROMPT).of(SUBJECT))
    clean: dict[str, torch.Tensor] = {}

    def keep(name, out):
        clean.setdefault(name, (out[0] if isinstance(out, tuple) else out).clone())  # the prompt's call is the first

    def corrupt(out):
        changed = out.clone()
        changed[:, words] = NOISE.rule.apply(out, Context(model.sites["text_encoder.embedding"]))[:, words]
        return changed

    def put_back(name, out):
        value = (out[0] if isinstance(out, tuple) else out).clone()
        value[:, words] = clean[name][:, words]
        return (value, *out[1:]) if isinstance(out, tuple) else value

    @contextmanager
    def hooked(hooks):
        calls, handles = dict.fromkeys(hooks, 0), []
        for name, hook in hooks.items():

            def first_call(module, args, out, name=name, hook=hook):
                calls[name] += 1
                return hook(out) if calls[name] == 1 else None

            handles.append(modules[name].register_forward_hook(first_call))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def call(seed):
        return draw(pipeline, [seed], steps, model.guidance_scale)[0]

    images: dict[tuple[str, int], np.ndarray] = {}
    for seed in range(options.trace_seeds):
        with hooked({site.name: partial(keep, site.name) for site in sites}):
            images["clean", seed] = call(seed)
        with hooked({"text_encoder.embedding": corrupt}):
            images["corrupted", seed] = call(seed)
        for site in sites:
            with hooked({"text_encoder.embedding": corrupt, site.name: partial(put_back, site.name)}):
                images[site.name, seed] = call(seed)
    return np.stack(
        [
            images[name, seed]
            for name in ("clean", "corrupted", *(site.name for site in sites))
            for seed in range(options.trace_seeds)
        ]
    )


def locogen_by_engine(model: Model, pipeline: DiffusionPipeline, steps: int, options: SpeedOptions) -> np.ndarray:
    """Images (world x seed, y, x, colour): unaltered, all layers, every window of two."""
    spec = LocoGenSpec(widths=(2,), seeds=tuple(range(options.trace_seeds)), num_inference_steps=steps)
    images = locogen_images(model, Prompt(PROMPT, SUBJECT, target=TARGET), spec, batch_size=options.batch_size)
    return images.values.reshape(-1, *images.shape[2:])


def locogen_by_loop(model: Model, pipeline: DiffusionPipeline, steps: int, options: SpeedOptions) -> np.ndarray:
    """The same as published: one pipeline call for each window and seed, its layers' keys and values computed from the target."""
    layers = cross_layers(model)
    target = pipeline.encode_prompt(TARGET, pipeline.device, 1, False)[0]

    def swap(module, args, kwargs):  # the second half of the guided batch is the prompt's
        states = kwargs["encoder_hidden_states"].clone()
        states[len(states) // 2 :] = target
        return args, kwargs | {"encoder_hidden_states": states}

    windows, images = [[], list(layers), *(layers.window(start, 2) for start in range(len(layers) - 1))], []
    for window in windows:
        for seed in range(options.trace_seeds):
            modules = [module_of(pipeline, site) for site in window]
            handles = [module.register_forward_pre_hook(swap, with_kwargs=True) for module in modules]
            images.append(draw(pipeline, [seed], steps, model.guidance_scale)[0])
            for handle in handles:
                handle.remove()
    return np.stack(images)


if __name__ == "__main__":
    main(tyro.cli(SpeedOptions))
