"""Probing: can a linear probe tell, from what a layer gives, whether a prompt names the concept? (Alain & Bengio 2016, arXiv 1610.01644)

What a probe says is that something can be read from a layer, not that the layers behind it do read it, still less that it is kept
there: whatever enters by the word's embedding can be read from nearly every layer that it flows through. A probe says where a
concept is *absent*, and how far apart two wordings lie; causal tracing says whether that matters. How much a probe learns
of its own is told by control labels (Hewitt & Liang 2019, arXiv 1909.03368).
"""

import random
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
import xarray as xr

from workbench.arguments import checked, number, prompt_set
from workbench.engine import Fold
from workbench.engine.text import text_values
from workbench.experiments.forecast import answer_run
from workbench.inputs import text
from workbench.interventions import World
from workbench.localize.causal_trace import replaced
from workbench.models import Model
from workbench.prompts import Prompt, PromptSet
from workbench.sites import Site, Sites
from workbench.text import tokens_of

CONTROLS = 16  # ways in which control labels are drawn
Worded = Sequence[tuple[World, World]]  # each prompt with the concept, and without


@checked(prompts=prompt_set, tokens=text, ridge=partial(number, above=0))
def probe(
    model: Model,
    prompts: PromptSet,
    sites: str | Sequence[str] = ("text_encoder*.{attention,mlp}",),
    *,
    tokens: str = "subject_last",
    joint: bool = False,
    ridge: float = 0.1,
    seeds: Sequence[int] = (0,),
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int = 16,
) -> xr.Dataset:
    """How well a linear probe of each layer tells prompts with their concept from the same prompts without it, held out by prompt.

    Without: the subject replaced by the prompt's replacement or, where there is none, the target. A layer's state is the mean over
    the positions that `tokens` names, in the text encoder; over pixels and calls, of the conditional half, in the denoiser. The
    probe is a ridge classifier of the labels 1 and -1, fitted to all other prompts and asked about this one, so give several
    prompts of one concept, with other words in front of it: a causal encoder's states are else the same in all, and every probe
    perfect. joint: layers of several text encoders (SDXL) together too, see `Sites.joint`. ridge: its penalty, in
    units of the states' mean square. Text-encoder sites alone need no denoising, and have the same scores for every seed.

    Returns a Dataset (prompt, seed, layer). `margin`: label times the probe's answer, mean over the two states; 0 is chance, about 1
    perfect. `accuracy`: share of the two that are told rightly; 0.5 is chance. `control`: the accuracy of probes of control labels, which
    are right for one wording in some prompts and for the other in the rest, by lot: what is learned where there is nothing to learn.

    Raises, before anything is computed, ValueError for fewer than two prompts, for prompts without subject or other wording, for a
    part of the prompt that a target lacks, and for sites without channels or outside text encoder and denoiser.

    >>> found = wb.probe(model, wb.prompt_set("object")[:4], "text_encoder.{0,6}.mlp")
    >>> dict(found.margin.sizes), found.layer.values.tolist()
    ({'prompt': 4, 'seed': 1, 'layer': 2}, ['text_encoder.0.mlp', 'text_encoder.6.mlp'])
    """
    chosen = model.sites(*sites)
    worded = wordings(model, prompts, chosen, tokens)
    denoised = [site for site in chosen if site.part == "denoiser"]
    worlds = [world for pair in worded for world in pair] if denoised else []

    def of_trial(steps: int) -> list[Fold]:
        return [_mean_fold(site, len(model.calls(steps))) for site in denoised]

    settings = model._settings(num_inference_steps, guidance_scale)
    answer_run("probing", model, worlds, seeds, settings, of_trial, batch_size=batch_size)
    states = text_states(model, worded, [site for site in chosen if site.part == "text"], tokens)
    states |= denoiser_states(
        model,
        worded,
        denoised,
        seeds=seeds,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
    )
    layers = {site.name: states[site] for site in chosen}
    if joint:
        layers |= {
            name: torch.cat([states[site] / _size(states[site]) for site in together], -1)
            for name, together in chosen.joint().items()
        }
    probed = {name: held_out(each, ridge) for name, each in layers.items()}
    axes, count = ("prompt", "seed", "layer"), len(seeds)
    coords = {"prompt": range(len(prompts)), "seed": list(seeds), "layer": list(layers)}
    arrays = {
        score: np.stack([np.broadcast_to(each[score], (len(prompts), count)) for each in probed.values()], -1)
        for score in ("margin", "accuracy", "control")
    }
    return xr.Dataset({score: (axes, values) for score, values in arrays.items()}, coords)


def wordings(model: Model, prompts: PromptSet, sites: Sites, tokens: str) -> Worded:
    """Each prompt with its concept and without, once it is known that probes can be fitted to them; ValueError where not."""
    if len(prompts) < 2:
        raise ValueError(
            f"prompts holds {len(prompts)}: a probe is asked about prompts that it was not fitted to; give at least two"
        )
    for site in sites:
        if site.part not in ("text", "denoiser") or "channel" not in site.axes:
            raise ValueError(
                f"sites: {site.name} has the axes {site.axes[1:]} in the {site.component}: a probe reads the channels of text encoder and "
                "denoiser; name components, such as text_encoder.*.mlp or unet.*.cross"
            )
    worded = [
        (World(f"{p} with", each.prompt, subject=each.subject), _without(model, each, p))
        for p, each in enumerate(prompts)
    ]
    for site in (site for site in sites if "token" in site.axes):
        for world in (world for pair in worded for world in pair):
            if tokens.startswith(("subject", "after_subject")) and not world.subject:
                raise ValueError(
                    f"tokens={tokens!r}: {world.prompt!r} names no subject, which a target does not; give Prompt(..., subject=..., "
                    "replacement=...), or tokens='eos' or 'all'"
                )
            if not tokens_of(model.pipeline, world.prompt, site.tokenizer).positions(tokens, world.subject):
                raise ValueError(f"tokens={tokens!r}: {world.prompt!r} has no such tokens; name another part")
    return worded


def _without(model: Model, prompt: Prompt, number: int) -> World:
    """The world of a prompt without its concept."""
    if prompt.subject and prompt.replacement:
        other, subject = replaced(model, prompt)
        return World(f"{number} without", other, subject=subject)
    if not prompt.target:
        raise ValueError(
            f"a probe needs other words for the concept, which {prompt.prompt!r} lacks; give Prompt(..., subject=..., replacement=...), or "
            "a target"
        )
    return World(f"{number} without", prompt.target)


def text_states(model: Model, worded: Worded, sites: Sequence[Site], tokens: str) -> dict[Site, torch.Tensor]:
    """States of text-encoder sites: (prompt, 1, with or without, channel)."""
    if not sites:
        return {}
    worlds = [world for pair in worded for world in pair]
    states = {}
    for site, values in text_values(model, [world.prompt for world in worlds], sites).items():
        if "token" in site.axes:
            read = [tokens_of(model.pipeline, world.prompt, site.tokenizer) for world in worlds]
            at = [list(each.positions(tokens, world.subject)) for each, world in zip(read, worlds)]
            values = torch.stack([value.double()[positions].mean(0) for value, positions in zip(values, at)])
        states[site] = values.double().reshape(len(worded), 1, 2, -1)
    return states


def denoiser_states(
    model: Model, worded: Worded, sites: Sequence[Site], *, num_inference_steps: int | None, **settings
) -> dict[Site, torch.Tensor]:
    """States of the denoiser's sites, means over what is no channel and over the calls: (prompt, seed, with or without, channel)."""
    if not sites:
        return {}
    calls = len(model.calls(num_inference_steps))
    folds = [_mean_fold(site, calls) for site in sites]
    worlds = [world for pair in worded for world in pair]
    run = model.run(worlds, num_inference_steps=num_inference_steps, record=folds, progress=False, **settings)
    states = {}
    for site in sites:
        values = run.values[f"{site.name} mean"].transpose("world", "seed", "channel").values
        states[site] = torch.from_numpy(values).double().unflatten(0, (-1, 2)).transpose(1, 2)
    return states


def _mean_fold(site: Site, calls: int) -> Fold:
    others = [axis for axis, name in enumerate(site.axes) if name not in ("row", "channel")]

    def update(total, call, worlds, value):
        mean = (value.float().mean(others) if others else value.float()) / calls
        return mean if total is None else total + mean

    return Fold(f"{site.name} mean", (site.name,), ("channel",), update)


def held_out(states: torch.Tensor, ridge: float) -> Mapping[str, np.ndarray]:
    """Scores (prompt, seed) of probes of one layer's states (prompt, seed, with or without, channel), held out by prompt."""
    count, seeds = states.shape[:2]
    rng = random.Random(0)
    flips = torch.tensor([[1.0] * count, *([rng.choice((1.0, -1.0)) for _ in range(count)] for _ in range(CONTROLS))])
    labels = flips.T[:, None, None] * torch.tensor([1.0, -1.0])[:, None]  # (prompt, 1, with or without, labelling)
    labels = labels.expand(count, seeds, 2, -1).double()
    margins = []
    for p in range(count):
        others = [each for each in range(count) if each != p]
        fitted = states[others].flatten(0, 2)
        asked = (states[p] - fitted.mean(0)).flatten(0, 1)
        answers = ridge_answers(fitted - fitted.mean(0), labels[others].flatten(0, 2), asked, ridge)
        margins.append(labels[p] * answers.unflatten(0, (seeds, 2)))
    margin = torch.stack(margins)  # (prompt, seed, with or without, labelling)
    right = ((margin > 0).double() + (margin == 0).double() / 2).mean(2)
    found = dict(margin=margin[..., 0].mean(2), accuracy=right[..., 0], control=right[..., 1:].mean(-1))
    return {name: values.numpy() for name, values in found.items()}


def ridge_answers(fitted: torch.Tensor, labels: torch.Tensor, asked: torch.Tensor, ridge: float) -> torch.Tensor:
    """Of ridge regressions of labels (state, labelling) on states (state, channel), both of mean 0, the answers for those asked."""
    products = fitted @ fitted.T
    unit = products.diagonal().mean()
    if unit == 0:
        return torch.zeros(len(asked), labels.shape[1], dtype=labels.dtype)
    weights = torch.linalg.solve(products / unit + ridge * torch.eye(len(fitted), dtype=fitted.dtype), labels)
    return asked @ fitted.T / unit @ weights


def _size(states: torch.Tensor) -> torch.Tensor:
    """Root mean square of states about their mean; 1 where they are all alike."""
    size = (states - states.mean((0, 1, 2))).square().mean().sqrt()
    return size if size > 0 else torch.ones_like(size)
