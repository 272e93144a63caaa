"""Causal tracing: corrupt the words of a concept, restore one state at a time, see what brings the concept back.

After Meng et al. 2022 (arXiv 2202.05262, section 2.1), for diffusion models Basu et al. 2023 (arXiv 2310.13730).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import xarray as xr

from workbench.experiment import Experiment, check_spec, share
from workbench.interventions import Intervention, World, ablate, add_noise, restore, window
from workbench.metrics import Scorer
from workbench.models import Model
from workbench.prompts import Prompt, PromptSet
from workbench.sites import Site, Sites
from workbench.text import replace_words, tokenize, tokenizers, tokens_of


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
        check_spec(self, "sites", "tokens", "steps", "seeds")
        if self.draws < 1 or self.window < 1:
            raise ValueError(f"draws={self.draws}, window={self.window}: both are at least 1")


@dataclass(frozen=True)
class Target:
    """One thing to restore: sites, at which tokens, in which window of the steps."""

    site: str
    sites: tuple[str, ...]
    token: str
    steps: tuple[float, float]
    positions: tuple[int, ...] | None

    def restore(self, rows: str | None) -> Intervention:
        steps = None if self.steps == (0.0, 1.0) else window(*self.steps)
        return restore(self.sites, "clean", tokens=self.positions, steps=steps, rows=rows)


def causal_trace(
    model: Model,
    prompts: PromptSet,
    spec: TraceSpec | None = None,
    *,
    scorer: Scorer | None = None,
    folder=None,
    batch_size: int = 16,
) -> xr.Dataset:
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
    return Tracing(model, prompts, spec or TraceSpec(), scorer or Scorer(), batch_size).dataset(folder)


class Tracing(Experiment):
    """One causal trace: what is asked, with everything that answers it. A part is a prompt under one draw of noise."""

    name = "causal trace"

    def __init__(self, model: Model, prompts: PromptSet, spec: TraceSpec, scorer: Scorer, batch_size: int):
        super().__init__(model, prompts, spec, scorer, batch_size)
        self.sigmas = noise_sigmas(model, prompts, spec.noise_multiple)

    def asked(self) -> dict:
        return super().asked() | {"sigmas": self.sigmas}

    def parts(self) -> dict[str, tuple[int, int]]:
        return {
            f"prompt{p:04d}-draw{draw:02d}": (p, draw)
            for p in range(len(self.prompts))
            for draw in range(self.spec.draws)
        }

    def check(self, p: int, draw: int) -> int:
        return self.plan(self.worlds(p, draw, self.targets(p)))

    def measure(self, p: int, draw: int, bar) -> list[dict]:
        """Rows (world, metric, prompt, draw, seed, site, token, steps, value)."""
        targets = self.targets(p)
        worlds = self.worlds(p, draw, targets)
        places = [dict(world="clean", draw=None), dict(world="corrupted", draw=draw)]
        places += [
            dict(world="restored", draw=draw, site=aim.site, token=aim.token, steps=share(aim.steps)) for aim in targets
        ]
        return self.score(p, worlds, places, bar)

    def targets(self, p: int) -> list[Target]:
        """Everything that is restored in a prompt, in execution order."""
        prompt, targets = self.prompts[p], []
        tokens = tokenize(self.model.pipeline.tokenizer, prompt.prompt)
        if "each" in self.spec.tokens and len(self.prompts) > 1:
            raise ValueError(
                'tokens="each": positions mean different things in different prompts; trace one prompt (prompts[:1]), or '
                'name tokens by their part: "subject_last", "after_subject", "eos", ...'
            )
        named = [(token, tokens.positions(token, prompt.subject)) for token in self.spec.tokens if token != "each"]
        if "each" in self.spec.tokens:
            named += [(f"{i}:{tokens.pieces[i].strip('<|>')}", (i,)) for i in range(tokens.end + 1)]
        for centre, sites in _windows(self.model.sites(*self.spec.sites), self.spec.window):
            for label, positions in named if "token" in centre.axes else [("all", None)]:
                if positions == ():  # this prompt has no such token
                    continue
                for steps in self.spec.steps if centre.part == "denoiser" else [(0.0, 1.0)]:
                    targets.append(Target(centre.name, tuple(site.name for site in sites), label, steps, positions))
        return targets

    def worlds(self, p: int, draw: int, targets: Sequence[Target]) -> list[World]:
        """Clean, corrupted, and one restored world for each target."""
        prompt, corruption = self.prompts[p], []
        text, subject = prompt.prompt, prompt.subject
        if self.spec.corruption == "noise":
            corruption = [
                add_noise(name, sigma, noise_seed(prompt, draw), tokens="subject")
                for name, sigma in self.sigmas.items()
            ]
        elif self.spec.corruption == "zero":
            corruption = [ablate(name, tokens="subject") for name in self.sigmas]
        else:
            text, subject = replaced(self.model, prompt)
        world = lambda name, *more: World(name, text, [*corruption, *more], subject)
        restored = [world(f"restored {i}", target.restore(self.spec.rows)) for i, target in enumerate(targets)]
        return [World("clean", prompt.prompt, subject=prompt.subject), world("corrupted"), *restored]


def noise_sigmas(model: Model, prompts: PromptSet, noise_multiple: float) -> dict[str, float]:
    """Noise per text encoder's embedding: so many standard deviations of the embeddings of all subject tokens in the set."""
    sigmas = {}
    for site in model.sites("text_encoder*.embedding"):
        tokenizer = getattr(model.pipeline, site.tokenizer)
        table = getattr(model.pipeline, site.component).get_input_embeddings().weight
        ids = [
            tokenize(tokenizer, prompt.prompt).ids[i]
            for prompt in prompts
            for i in tokenize(tokenizer, prompt.prompt).of(prompt.subject)
        ]
        sigmas[site.name] = noise_multiple * table[ids].float().std().item()
    return sigmas


def noise_seed(prompt: Prompt, draw: int) -> int:
    """Seed of the corrupting noise: a prompt's own, whatever set it stands in."""
    return crc32(prompt.prompt.encode()) + draw


def _windows(sites: Sites, width: int) -> Iterator[tuple[Site, Sequence[Site]]]:
    """Each site with the `width` neighbours of its kind around it, in its own encoder or UNet."""
    kind = lambda site: (site.component, site.kind)
    for site in sites:
        alike = [other for other in sites if kind(other) == kind(site)]
        start = alike.index(site) - (width - 1) // 2
        yield site, alike[max(0, start) : start + width]


def replaced(model: Model, prompt: Prompt) -> tuple[str, str]:
    """A prompt with its subject words replaced wherever they stand, and the replacement; positions of all tokens stay.

    Raises ValueError for a prompt without replacement, and for one of another number of tokens.
    """
    if not prompt.replacement:
        raise ValueError(
            f'corruption="replace": {prompt.prompt!r} has no replacement for {prompt.subject!r}; give one in the prompt set, '
            'or take corruption="noise"'
        )
    change = replace_words(prompt.prompt, prompt.subject, prompt.replacement)
    for name in tokenizers(model.pipeline):
        before, after = (tokens_of(model.pipeline, text, name) for text in (prompt.prompt, change.text))
        if any(i != j for i, j in change.aligned(before, after, range(len(before.ids)))):
            raise ValueError(
                f'corruption="replace": {prompt.subject!r} and {prompt.replacement!r} have different numbers of tokens, so that '
                f"positions would shift: {before!r} against {after!r}; choose a replacement of as many tokens"
            )
    return change.text, prompt.replacement
