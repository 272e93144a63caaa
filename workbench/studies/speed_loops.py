"""The loops that a user would write with hooks, on a pipeline that the workbench never wrapped: what `speed` compares with.

One call of the pipeline for each site or window and each seed, as published code has it. Nothing of the workbench is used but the rules of
its noise and tokens, so that both sides draw the same pictures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from diffusers import DiffusionPipeline

from workbench.interventions import Context, Intervention
from workbench.sites import Site, Sites
from workbench.text import tokenize


def draw(pipeline: DiffusionPipeline, prompt: str, seeds: Sequence[int], steps: int, guidance: float) -> np.ndarray:
    """Plain pictures of a prompt, (seed, y, x, colour)."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    prompts, asked = [prompt] * len(generators), dict(num_inference_steps=steps, guidance_scale=guidance)
    return pipeline(prompts, generator=generators, output_type="np", **asked).images


def module_of(pipeline: DiffusionPipeline, site: Site) -> torch.nn.Module:
    return getattr(pipeline, site.component).get_submodule(site.module.partition(".")[2])


def trace(
    pipeline: DiffusionPipeline,
    sites: Sites,
    embedding: Site,
    noise: Intervention,
    prompt: str,
    subject: str,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> np.ndarray:
    """A causal trace of a text encoder: a clean call that keeps its states, a corrupted one, then one for each site and seed.

    Images (world x seed, y, x, colour): clean, corrupted, and one world for each site.
    """
    modules = {site.name: module_of(pipeline, site) for site in [*sites, embedding]}
    words = list(tokenize(pipeline.tokenizer, prompt).of(subject))
    clean: dict[str, torch.Tensor] = {}

    def keep(name, out):
        clean.setdefault(name, (out[0] if isinstance(out, tuple) else out).clone())  # the prompt's call is the first

    def corrupt(out):
        changed = out.clone()
        changed[:, words] = noise.rule.apply(out, Context(embedding))[:, words]
        return changed

    def put_back(name, out):
        value = (out[0] if isinstance(out, tuple) else out).clone()
        value[:, words] = clean[name][:, words]
        return (value, *out[1:]) if isinstance(out, tuple) else value

    @contextmanager
    def hooked(hooks: Mapping[str, Callable]) -> Iterator[None]:
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

    def call(seed: int) -> np.ndarray:
        return draw(pipeline, prompt, [seed], steps, guidance)[0]

    images: dict[tuple[str, int], np.ndarray] = {}
    for seed in seeds:
        with hooked({site.name: partial(keep, site.name) for site in sites}):
            images["clean", seed] = call(seed)
        with hooked({embedding.name: corrupt}):
            images["corrupted", seed] = call(seed)
        for site in sites:
            with hooked({embedding.name: corrupt, site.name: partial(put_back, site.name)}):
                images[site.name, seed] = call(seed)
    names = ("clean", "corrupted", *(site.name for site in sites))
    return np.stack([images[name, seed] for name in names for seed in seeds])


def locogen(
    pipeline: DiffusionPipeline,
    layers: Sites,
    width: int,
    prompt: str,
    target: str,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> np.ndarray:
    """LocoGen as published: one call for each window of layers and seed, whose keys and values are computed from the target.

    Images (world x seed, y, x, colour): unaltered, all layers, every window.
    """
    states = pipeline.encode_prompt(target, pipeline.device, 1, False)[0]

    def swap(module, args, kwargs):  # the second half of the guided batch is the prompt's
        changed = kwargs["encoder_hidden_states"].clone()
        changed[len(changed) // 2 :] = states
        return args, kwargs | {"encoder_hidden_states": changed}

    windows = [layers.window(start, width) for start in range(len(layers) - width + 1)]
    images = []
    for window in ([], list(layers), *windows):
        for seed in seeds:
            modules = [module_of(pipeline, site) for site in window]
            handles = [module.register_forward_pre_hook(swap, with_kwargs=True) for module in modules]
            images.append(draw(pipeline, prompt, [seed], steps, guidance)[0])
            for handle in handles:
                handle.remove()
    return np.stack(images)
