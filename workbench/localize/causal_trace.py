"""Causal tracing: corrupt the words of a concept, restore one state at a time, see what brings the concept back.

After Meng et al. 2022 (arXiv 2202.05262, section 2.1), for diffusion models Basu et al. 2023 (arXiv 2310.13730).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal
from zlib import crc32

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from workbench.interventions import Intervention, World, ablate, add_noise, restore
from workbench.metrics import Scorer, as_pil, pixel_distance, ssim
from workbench.models import Model
from workbench.plan import resolve
from workbench.prompts import Prompt, PromptSet
from workbench.results import Shards
from workbench.sites import Site, Sites, layer_and_kind
from workbench.text import tokenize

METRICS = ("probability", "similarity", "pixel_distance", "ssim")


@dataclass(frozen=True)
class TraceSpec:
    """What a causal trace asks."""

    sites: tuple[str, ...] = ("text_encoder*.{attention,mlp,hidden}",)
    """Globs; each site is restored by itself, or with its neighbours (see window)."""
    tokens: tuple[str, ...] = ("subject_last",)
    """Where sites with a token axis are restored, each in turn: "subject", "subject_last", "after_subject", "eos", "padding",
    "all", a word, or, for one prompt, "each" position. Sites without that axis are restored whole."""
    steps: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """Windows of the denoising, as shares of the run, in which sites inside the UNet are restored, each in turn."""
    rows: Literal["cond", "uncond", "both"] | None = None
    """Halves of the guided batch; left out, the conditional half for what comes from the text, both inside the UNet."""
    window: int = 1
    """So many neighbours of a kind are restored together, around each site, cut at the ends."""
    corruption: Literal["noise", "replace", "zero"] = "noise"
    """Of the subject's token embeddings: noise, zero, or the prompt set's replacement for its words."""
    noise_multiple: float = 3.0
    """Noise in standard deviations of the embeddings of all subject tokens in the set."""
    draws: int = 3
    """Independent draws of the noise, for each prompt; 1 for the other corruptions."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Of the starting noise, shared by all worlds of a prompt."""
    num_inference_steps: int | None = None
    """The model's own when left out."""
    guidance_scale: float | None = None
    """The model's own when left out."""

    def __post_init__(self):
        if self.corruption not in ("noise", "replace", "zero"):
            raise ValueError(f'corruption={self.corruption!r}: may be "noise", "replace" or "zero"')
        if self.corruption != "noise" and self.draws != 1:
            raise ValueError(f"corruption={self.corruption!r} has nothing random, but draws={self.draws}; give draws=1")
        for name in ("sites", "tokens", "steps", "seeds"):
            if isinstance(getattr(self, name), str) or not len(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r}: give a tuple of at least one")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.draws < 1 or self.window < 1:
            raise ValueError(f"draws={self.draws}, window={self.window}: both are at least 1")


@dataclass(frozen=True)
class Target:
    """One thing to restore: sites, at which tokens, in which window of the steps."""

    site: str
    sites: tuple[str, ...]
    token: str
    steps: tuple[float, float]
    where: tuple[tuple[int, ...] | None, tuple[float, float] | None]

    def restore(self, rows: str | None) -> Intervention:
        tokens, steps = self.where
        return restore(self.sites, "clean", tokens=tokens, steps=steps, rows=rows)


def causal_trace(model: Model, prompts: PromptSet, spec: TraceSpec | None = None, *, scorer: Scorer | None = None, folder=None,
                 batch_size: int = 16) -> xr.Dataset:  # fmt: skip
    """Trace where a model keeps the concept that each prompt's subject words name.

    Worlds of one prompt share their starting noise: clean; corrupted; and, for every target of the spec, corrupted with
    the clean world's state put back there. Every image is scored by four metrics: `probability` of the prompt's value
    among the set's labels and `similarity` to the prompt (both by `scorer`, the embedded grader when left out),
    `pixel_distance` and `ssim` to the clean image.

    folder: where finished parts are kept (one per prompt and draw); the same call goes on where it was stopped, and
    `open_results` reads it. Returns a Dataset with `clean` (metric, prompt, seed), `corrupted` (metric, prompt, draw, seed)
    and `restored` (metric, prompt, draw, seed, site, token, steps); NaN where a prompt has no such token. Everything
    needed to do it again is in `attrs`; `workbench.effects` averages it.

    Raises, before anything is generated, KeyError for unknown sites and ValueError for words, tokens, steps, rows or
    replacements that do not fit, or a folder of another trace.
    """
    spec = spec or TraceSpec()
    scorer = scorer or Scorer()
    steps = model.num_inference_steps if spec.num_inference_steps is None else spec.num_inference_steps
    guidance = model.guidance_scale if spec.guidance_scale is None else spec.guidance_scale
    sigmas = noise_sigmas(model, prompts, spec.noise_multiple)
    jobs = {}
    for p, prompt in enumerate(prompts):
        targets = _targets(model, prompt, spec, single=len(prompts) == 1)
        for draw in range(spec.draws):
            worlds = _worlds(model, prompt, spec, sigmas, draw, targets)
            resolve(model, worlds, steps, guidance > 1)
            jobs[f"prompt{p:04d}-draw{draw:02d}"] = (p, draw, targets, worlds)
    asked = {"experiment": "causal_trace", **asdict(spec), "num_inference_steps": steps, "guidance_scale": guidance, "sigmas": sigmas,
             "model": model.record, "scorer": scorer.record, "prompts": [asdict(prompt) for prompt in prompts], "prompt_set": prompts.name,
             "labels": {label: list(texts) for label, texts in prompts.labels.items()}}  # fmt: skip
    shards = Shards(asked, folder)
    todo = {part: job for part, job in jobs.items() if part not in shards}
    with tqdm(total=sum(len(job[3]) for job in todo.values()) * len(spec.seeds), desc="causal trace", unit="image", disable=None) as bar:
        for part, (p, draw, targets, worlds) in todo.items():
            shards.write(part, _measure(model, prompts, p, draw, targets, worlds, spec, scorer, steps, guidance, batch_size, bar))
    return shards.dataset()


def _measure(model, prompts, p, draw, targets, worlds, spec, scorer, steps, guidance, batch_size, bar) -> list[dict]:
    """Rows (prompt, draw, seed, world, site, token, steps, metric, value) of one prompt under one draw."""
    rows, (clean, *rest), per = [], worlds, max(1, batch_size - 1)
    aims = dict(zip((world.name for world in worlds), (None, None, *targets)))
    reference = None
    for at in range(0, len(rest), per):
        some = rest[at : at + per]
        run = model.run(
            [clean, *some], seeds=spec.seeds, num_inference_steps=steps, guidance_scale=guidance, batch_size=batch_size, progress=False
        )
        if at == 0:
            reference = run.images.sel(world="clean")
        for world in [clean, *some] if at == 0 else some:
            aim = aims[world.name]
            for metric, values in _scores(scorer, prompts, prompts[p], run.images.sel(world=world.name), reference).items():
                for seed, value in zip(spec.seeds, values):
                    where = dict(site=aim.site, token=aim.token, steps=f"{aim.steps[0]:g}-{aim.steps[1]:g}") if aim else {}
                    name = "restored" if aim else world.name
                    rows.append(dict(world=name, metric=metric, prompt=p, draw=None if name == "clean" else draw, seed=seed) | where
                                | dict(value=float(value)))  # fmt: skip
            bar.update(len(spec.seeds))
    return rows


def _scores(scorer: Scorer, prompts: PromptSet, prompt: Prompt, images: xr.DataArray, reference: xr.DataArray) -> dict[str, np.ndarray]:
    pictures, labels = as_pil(images), list(prompts.labels)
    return {
        "probability": scorer.class_probabilities(pictures, prompts.labels)[:, labels.index(prompt.value)].numpy(),
        "similarity": scorer.similarity(pictures, prompt.prompt).numpy(),
        "pixel_distance": pixel_distance(images, reference),
        "ssim": ssim(images, reference),
    }


def noise_sigmas(model: Model, prompts: PromptSet, noise_multiple: float) -> dict[str, float]:
    """Noise per text encoder's embedding: so many standard deviations of the embeddings of all subject tokens in the set."""
    sigmas = {}
    for site in model.sites("text_encoder*.embedding"):
        name = site.name.removesuffix(".embedding")
        tokenizer = getattr(model.pipeline, name.replace("text_encoder", "tokenizer"))
        table = getattr(model.pipeline, name).get_input_embeddings().weight
        ids = [
            tokenize(tokenizer, prompt.prompt).ids[i] for prompt in prompts for i in tokenize(tokenizer, prompt.prompt).of(prompt.subject)
        ]
        sigmas[site.name] = noise_multiple * table[ids].float().std().item()
    return sigmas


def noise_seed(prompt: Prompt, draw: int) -> int:
    """Seed of the corrupting noise: a prompt's own, whatever set it stands in."""
    return crc32(prompt.prompt.encode()) + draw


def _targets(model: Model, prompt: Prompt, spec: TraceSpec, *, single: bool) -> list[Target]:
    tokens = tokenize(model.pipeline.tokenizer, prompt.prompt)
    if "each" in spec.tokens and not single:
        raise ValueError('tokens="each": positions mean different things in different prompts; trace one prompt (prompts[:1]), or name '
                         'tokens by their part: "subject_last", "after_subject", "eos", ...')  # fmt: skip
    named = [(token, tokens.positions(token, prompt.subject)) for token in spec.tokens if token != "each"]
    if "each" in spec.tokens:
        named += [(f"{i}:{tokens.pieces[i].strip('<|>')}", (i,)) for i in range(tokens.end + 1)]
    targets = []
    for centre, sites in _windows(model.sites(*spec.sites), spec.window):
        places = named if "token" in centre.axes else [("all", None)]
        for label, positions in places:
            if positions == ():  # this prompt has no such token
                continue
            for window in spec.steps if centre.name.startswith("unet.") else [(0.0, 1.0)]:
                where = (positions, None if window == (0.0, 1.0) else window)
                targets.append(Target(centre.name, tuple(site.name for site in sites), label, window, where))
    return targets


def _windows(sites: Sites, width: int) -> Iterator[tuple[Site, Sequence[Site]]]:
    """Each site with the `width` neighbours of its kind around it, in its own encoder or UNet."""
    kind = lambda site: (site.name.split(".")[0], layer_and_kind(site.name)[1])
    for site in sites:
        alike = [other for other in sites if kind(other) == kind(site)]
        start = alike.index(site) - (width - 1) // 2
        yield site, alike[max(0, start) : start + width]


def _worlds(model: Model, prompt: Prompt, spec: TraceSpec, sigmas, draw: int, targets: Sequence[Target]) -> list[World]:
    text, subject, corruption = prompt.prompt, prompt.subject, []
    if spec.corruption == "noise":
        seed = noise_seed(prompt, draw)
        corruption = [add_noise(name, sigma, seed, tokens="subject") for name, sigma in sigmas.items()]
    elif spec.corruption == "zero":
        corruption = [ablate(name, tokens="subject") for name in sigmas]
    else:
        text, subject = _replaced(model, prompt)
    world = lambda name, *more: World(name, text, [*corruption, *more], subject)
    clean = World("clean", prompt.prompt, subject=prompt.subject)
    return [clean, world("corrupted"), *(world(f"restored {i}", target.restore(spec.rows)) for i, target in enumerate(targets))]


def _replaced(model: Model, prompt: Prompt) -> tuple[str, str]:
    if not prompt.replacement:
        raise ValueError(f'corruption="replace": {prompt.prompt!r} has no replacement for {prompt.subject!r}; give one in the prompt set, '
                         'or take corruption="noise"')  # fmt: skip
    at = prompt.prompt.lower().index(prompt.subject.lower())
    text = prompt.prompt[:at] + prompt.replacement + prompt.prompt[at + len(prompt.subject) :]
    before, after = (tokenize(model.pipeline.tokenizer, words) for words in (prompt.prompt, text))
    if before.of(prompt.subject) != after.of(prompt.replacement):
        raise ValueError(f'corruption="replace": {prompt.subject!r} and {prompt.replacement!r} have different numbers of tokens, so that '
                         f"positions would shift: {before!r} against {after!r}; choose a replacement of as many tokens")  # fmt: skip
    return text, prompt.replacement
