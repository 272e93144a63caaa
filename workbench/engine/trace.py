"""A diffusers pipeline under NNsight: wrapped once, wrapped anew when its modules change, left as it was after every run."""

import copy
import inspect
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from workbench.engine.nn import Controller, NNsight
from workbench.engine.switches import check_switches
from workbench.families import family_of
from workbench.families.attention import give_probs
from workbench.families.clip import give_text_probs
from workbench.sites import Sites, find_sites


class PipelineRoot(torch.nn.Module):
    """A diffusers pipeline as a module: its components are children, its forward is the pipeline's call."""

    def __init__(self, pipeline):
        super().__init__()
        object.__setattr__(self, "held", weakref.ref(pipeline))  # a pipeline that nobody else holds is freed
        family = family_of(pipeline)
        give_probs(family.model(pipeline))
        for encoder in family.present(pipeline):
            give_text_probs(getattr(pipeline, encoder.component))
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                self.add_module(name, part)

    def forward(self, *args, pipeline=None, grad=False, **kwargs):
        """Call the pipeline, or another that is made of the same components; grad: without its `torch.no_grad`."""
        pipeline = pipeline or self.held()
        call = type(pipeline).__call__
        if not grad:
            return call(pipeline, *args, **kwargs)
        encode = type(pipeline).encode_prompt  # DeepFloyd IF's has one of its own
        vars(pipeline)["encode_prompt"] = partial(inspect.unwrap(encode), pipeline)
        try:
            return inspect.unwrap(call)(pipeline, *args, **kwargs)
        finally:
            del vars(pipeline)["encode_prompt"]


class Wrapped:
    """NNsight over a pipeline, and the modules that it was made from."""

    def __init__(self, pipeline):
        self.nn = NNsight(PipelineRoot(pipeline))
        self.modules = list(modules_of(pipeline))
        self.sites: dict[tuple[int, int, int | None, str, str | None], Sites] = {}

    def current(self, pipeline) -> bool:
        """Whether the pipeline still has just these modules: adapters, fused layers and swapped components change them."""
        now = list(modules_of(pipeline))
        return len(now) == len(self.modules) and all(a is b for a, b in zip(now, self.modules))


_WRAPPED: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def modules_of(pipeline) -> Iterator[torch.nn.Module]:
    """Every module of every component, in a fixed order."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            yield from part.modules()


def wrapped(pipeline) -> NNsight:
    """The pipeline as NNsight sees it; made once for a pipeline, and anew when its modules changed behind our back."""
    return _held(pipeline).nn


def sites_of(pipeline, height: int | None = None, width: int | None = None) -> Sites:
    """All sites of a pipeline at a resolution, found once, and anew when its modules changed."""
    family, held = family_of(pipeline), _held(pipeline)
    own = family.size(pipeline)
    size = (height or own[0], width or own[1])
    scheduler = pipeline.scheduler  # which says whether a predicted variance is read
    key = (*size, family.length_of(pipeline), type(scheduler).__name__, scheduler.config.get("variance_type"))
    if key not in held.sites:
        held.sites[key] = find_sites(pipeline, *size)
    return held.sites[key]


def _held(pipeline) -> Wrapped:
    held = _WRAPPED.get(pipeline)
    if held is None:
        check_switches(pipeline)
        held = _WRAPPED[pipeline] = Wrapped(pipeline)
    elif not held.current(pipeline):
        check_switches(pipeline)
        held.nn._update(PipelineRoot(pipeline))
        held.modules = list(modules_of(pipeline))
        held.sites.clear()
    return held


@contextmanager
def listening(pipeline, paths: Collection[str]) -> Iterator[NNsight]:
    """The pipeline as NNsight sees it, at the modules of these paths alone.

    NNsight puts a `forward` of its own on every module, which takes microseconds a call to find that nobody asked for its value: a tenth
    of the time of a small picture. Where nobody does, the module's own is called meanwhile.
    """
    wrapping = _held(pipeline)
    heard = {wrapping.nn.get(path)._module for path in paths}
    own: dict[torch.nn.Module, Callable] = {}
    try:
        for module in wrapping.modules:
            if module not in heard and type(vars(module).get("forward")) is Controller:
                own[module] = vars(module).pop("forward")
        yield wrapping.nn
    finally:
        for module, forward in own.items():
            vars(module)["forward"] = forward


@contextmanager
def untouched(pipeline):
    """Leave a pipeline as it was, whatever happens in the block: its scheduler's state, its progress bar, its VAE's dtype."""
    scheduler, bar = pipeline.scheduler, getattr(pipeline, "_progress_bar_config", None)
    vae = getattr(pipeline, "vae", None)
    dtype = getattr(vae, "dtype", None)
    pipeline.scheduler = copy.deepcopy(scheduler)
    pipeline.set_progress_bar_config(**(bar or {}) | {"disable": True})
    try:
        yield
    finally:
        pipeline.scheduler = scheduler
        if vae is not None and vae.dtype != dtype:  # SDXL's is raised to float32 while it decodes
            vae.to(dtype=dtype)
        if bar is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = bar


def aside(pipeline, path: str) -> Callable:
    """A module of the pipeline that may be called while a run passes (in a `Fold`), without the run taking notice of it."""
    return wrapped(pipeline).get(path)
