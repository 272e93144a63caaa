"""Causal tracing: corrupt the words of a concept, restore one state at a time, see what brings the concept back.

After Meng et al. 2022 (arXiv 2202.05262, section 2.1), for diffusion models Basu et al. 2023 (arXiv 2310.13730).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import xarray as xr

from workbench.arguments import checked, instance_of
from workbench.engine.gradients import check_apart
from workbench.experiments.base import Experiment
from workbench.experiments.results import site_facts
from workbench.experiments.shards import Row
from workbench.experiments.store import Store
from workbench.interventions import Intervention, World, ablate, add_noise, restore
from workbench.localize.specs import CorruptionSpec, TraceSpec
from workbench.metrics import Measures, Scoring
from workbench.models import Model
from workbench.progress import Bar
from workbench.prompts import Prompt, Prompts, PromptSet
from workbench.sites import Site, Sites
from workbench.steps import WHOLE, Window, unless_whole
from workbench.text import replace_words, tokenizers, tokens_of


@dataclass(frozen=True)
class Target:
    """One thing to restore: sites, under one name, at which tokens, in which window of the steps."""

    site: str
    sites: tuple[str, ...]
    token: str
    steps: Window
    tokens: str | tuple[int, ...] | None
    apart: tuple[str, int] | None = None
    """("head", 2) or ("channel", 5), where only that one is restored."""

    def restore(self, rows: str | None) -> Intervention:
        only = {} if self.apart is None else {f"{self.apart[0]}s": self.apart[1]}
        return restore(self.sites, "clean", tokens=self.tokens, steps=unless_whole(self.steps), rows=rows, **only)

    @property
    def place(self) -> Row:
        """Its columns in results."""
        apart = {} if self.apart is None else {self.apart[0]: self.apart[1]}
        return {"site": self.site, "token": self.token, "steps": str(self.steps), **apart}


@checked(spec=instance_of("workbench.localize.specs:TraceSpec"))
def causal_trace(
    model: Model,
    prompts: Prompts,
    spec: TraceSpec | None = None,
    *,
    subject: str = "",
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    batch_size: int = 16,
) -> xr.Dataset:
    """Trace where a model keeps the concept that each prompt's subject words name.

    prompts: a `PromptSet`, or whatever `PromptSet.of` takes: "a zebra in the savanna", several, `Prompt`s; subject: of mere texts.
    Worlds of one prompt share their starting noise: clean; corrupted; and, for every target of the spec, corrupted with
    the clean world's state put back there. Every image is scored by four metrics: `probability` of the prompt's value
    among the set's labels and `similarity` to the prompt (both by `scorer`, the embedded grader when left out),
    `pixel_distance` and `ssim` to the clean image.

    folder: where finished parts are kept (one per prompt and draw); the same call goes on where it was stopped, and
    `open_results` reads it. Returns a Dataset with `clean` (metric, prompt, seed), `corrupted` (metric, prompt, draw, seed)
    and `restored` (metric, prompt, draw, seed, site, token, steps, and head or channel where spec.over says so); NaN where a
    prompt has no such token. Everything needed to do it again is in `attrs`; `workbench.effects` averages it.

    Raises, before anything is generated, KeyError for unknown sites and ValueError for words, tokens, steps, rows or
    replacements that do not fit, or a folder of another trace.

    >>> spec = wb.TraceSpec(sites=("text_encoder.0.{attention,mlp}",), draws=1, seeds=(0,))
    >>> trace = wb.causal_trace(model, "a zebra in the savanna", spec, subject="zebra")
    >>> dict(trace.restored.sizes)
    {'draw': 1, 'metric': 4, 'prompt': 1, 'seed': 1, 'site': 2, 'token': 1, 'steps': 1}
    >>> trace.site.values.tolist()
    ['text_encoder.0.attention', 'text_encoder.0.mlp']
    """
    chosen, measures = PromptSet.of(prompts, subject=subject), Measures.of(scorer, model)
    chosen.require("subject", by="a causal trace")
    return Tracing(model, spec or TraceSpec(), prompts=chosen, measures=measures, batch_size=batch_size).dataset(folder)


class Corrupting(Experiment):
    """What compares a clean world with a corrupted one. A part is a prompt under one draw of noise."""

    spec: CorruptionSpec

    @cached_property
    def sigmas(self) -> dict[str, float]:
        return noise_sigmas(self.model, self.prompts, self.spec.noise_multiple)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"sigmas": self.sigmas}

    def parts(self) -> dict[str, tuple[int, int]]:
        return {
            f"prompt{p:04d}-draw{draw:02d}": (p, draw)
            for p in range(len(self.prompts))
            for draw in range(self.spec.draws)
        }

    def pair(self, p: int, draw: int) -> tuple[World, World]:
        """The clean world and the corrupted one."""
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
        return World("clean", prompt.prompt, subject=prompt.subject), World("corrupted", text, corruption, subject)


class Tracing(Corrupting):
    """One causal trace: what is asked, with everything that answers it."""

    name = "causal trace"
    uncounted = ""
    spec: TraceSpec

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        for name, sites in self.joints.items():
            layer = sites[0].place.replace(sites[0].component, "text_encoders", 1)
            identity["site_facts"][name] = site_facts(sites[0]) | {"layer": layer}
        return identity

    def sites(self) -> Sites:
        return self.model.sites(*self.spec.sites)

    @cached_property
    def joints(self) -> dict[str, Sites]:
        """Sites of several text encoders that are restored together, by their common name."""
        return self.sites().joint() if self.spec.joint and self.spec.window == 1 and not self.spec.over else {}

    def check(self, p: int, draw: int) -> int:
        targets = [each for target in self.targets(p) for each in self.single(target)]
        return self.plan(self.worlds(p, draw, targets))

    def measure(self, p: int, draw: int, bar: Bar) -> list[Row]:
        """Rows (world, metric, prompt, draw, seed, site, token, steps, [head or channel,] value)."""
        targets = [each for target in self.targets(p) for each in self.single(target)]
        worlds = self.worlds(p, draw, targets)
        places: list[Row] = [dict(world="clean", draw=None), dict(world="corrupted", draw=draw)]
        places += [dict(world="restored", draw=draw, **target.place) for target in targets]
        return self.score(p, worlds, places, bar)

    def targets(self, p: int) -> list[Target]:
        """Everything that is restored in a prompt, in execution order."""
        prompt, targets = self.prompts[p], []
        tokens = tokens_of(self.model.pipeline, prompt.prompt)
        if "each" in self.spec.tokens and len(self.prompts) > 1:
            raise ValueError(
                'tokens="each": positions mean different things in different prompts; trace one prompt (prompts[:1]), or '
                'name tokens by their part: "subject_last", "after_subject", "eos", ...'
            )
        # by their part, each encoder finds them with its own tokenizer
        named = [(token, token) for token in self.spec.tokens if token != "each"]
        named = [(label, token) for label, token in named if tokens.positions(token, prompt.subject)]
        if "each" in self.spec.tokens:
            named += [(f"{i}:{tokens.pieces[i].strip('<|>')}", (i,)) for i in range(tokens.end + 1)]
        together = [(centre.name, sites) for centre, sites in _windows(self.sites(), self.spec.window)]
        for name, sites in [*together, *self.joints.items()]:
            for label, token in named if "token" in sites[0].axes else [("all", None)]:
                for window in self.spec.steps if sites[0].part == "denoiser" else [WHOLE]:
                    targets.append(Target(name, tuple(site.name for site in sites), label, window, token))
        return targets

    def single(self, target: Target) -> Sequence[Target]:
        """A target's heads or channels, each by itself, where the spec keeps them apart; else the target as it is."""
        over, site = self.spec.over, self.model.sites[target.sites[0]]
        if over is None:
            return [target]
        check_apart(site, over)
        count = site.heads or 0 if over == "head" else site.axis("channel")
        return [replace(target, apart=(over, number)) for number in range(count)]

    def worlds(self, p: int, draw: int, targets: Sequence[Target]) -> list[World]:
        """Clean, corrupted, and one restored world for each target."""
        clean, corrupted = self.pair(p, draw)
        restored = [
            replace(
                corrupted,
                name=f"restored {i}",
                interventions=(*corrupted.interventions, target.restore(self.spec.rows)),
            )
            for i, target in enumerate(targets)
        ]
        return [clean, corrupted, *restored]


def noise_sigmas(model: Model, prompts: PromptSet, noise_multiple: float) -> dict[str, float]:
    """Noise per text encoder's embedding: so many standard deviations of the embeddings of all subject tokens in the set."""
    sigmas = {}
    for site in model.sites("text_encoder*.embedding"):
        table = getattr(model.pipeline, site.component).get_input_embeddings().weight
        read = [(tokens_of(model.pipeline, prompt.prompt, site.tokenizer), prompt.subject) for prompt in prompts]
        ids = [tokens.ids[i] for tokens, subject in read for i in tokens.of(subject)]
        sigmas[site.name] = noise_multiple * table[ids].float().std().item()
    return sigmas


def noise_seed(prompt: Prompt, draw: int) -> int:
    """Seed of the corrupting noise: a prompt's own, whatever set it stands in."""
    return crc32(prompt.prompt.encode()) + draw


def _windows(sites: Sites, width: int) -> Iterator[tuple[Site, Sequence[Site]]]:
    """Each site with the `width` neighbours of its kind around it, in its own encoder or UNet."""
    for site in sites:
        alike = [other for other in sites if (other.component, other.kind) == (site.component, site.kind)]
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
