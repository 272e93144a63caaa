"""Cases on which the laws must hold: a pipeline under the workbench, beside one like it that the workbench never saw.

Environment variables: DEVICE ("cpu"), DTYPE (all three when left out), and STRENGTH, of the cover of all factors by cases: 2, every
pair of levels, for `make test`; 3, every triple and so every law on every pipeline with every scheduler, for `make laws`.
"""

import copy
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256

import diffusers
import numpy as np
import torch
import transformers
from cover import cover

import workbench as wb
from workbench import World
from workbench.studies import tiny

DEVICE = os.environ.get("DEVICE", "cpu")
DTYPES = (os.environ["DTYPE"],) if "DTYPE" in os.environ else ("float32", "bfloat16", "float16")
STRENGTH = int(os.environ.get("STRENGTH", 2))

# Largest difference of a pixel, of a range of 1, between rows of one batch or between a batch and its rows alone: what rounding
# does. Plain pipelines show as much: they were measured (all of the table, batches of 4 against 1, on a CPU) to differ by up to 1e-6,
# 1e-3 and 0.012; on a GPU (H200) the laws met up to 1e-4 and 0.007. What the laws tell apart is larger: see `Case.apart`.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 0.025}

LAWS = ("plain", "seed", "identity", "everything", "calls", "exception", "rows", "preview", "lora", "behind")
FACTORS: dict[str, Sequence[str]] = {
    "law": LAWS,
    "pipeline": tuple(tiny.PIPELINES),
    "scheduler": tuple(tiny.SCHEDULERS),
    "adapter": ("none", "lora before", "lora after", "lora fused", "word before", "word after"),  # see ADAPTERS
    "negative": ("unguided", "none", "all", "each"),
    "size": ("own", "larger", "wide"),
    "dtype": DTYPES,
}
SIZES = {"own": {}, "larger": dict(height=24, width=24), "wide": dict(height=16, width=32)}

diffusers.logging.set_verbosity_error()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.backends.cudnn.allow_tf32 = False  # float32 is float32, also on a GPU


@dataclass(frozen=True)
class Case:
    """One level of each factor. largest: the largest deviation that its law met, to be reported."""

    law: str
    pipeline: str
    scheduler: str
    adapter: str = "none"
    negative: str = "none"
    size: str = "own"
    dtype: str = "float32"
    largest: list[float] = field(default_factory=list, compare=False, repr=False)

    def __str__(self):
        return f"{self.pipeline}, {self.scheduler}, {self.adapter}, {self.negative}, {self.size}, {self.dtype}"

    # What is drawn

    @property
    def zebra(self) -> str:
        return f"a {tiny.WORD} zebra in the savanna" if "word" in self.adapter else "a zebra in the savanna"

    @property
    def lion(self) -> str:
        return "a lion on the beach at night"

    def world(self, name: str, prompt: str | None = None, interventions=()) -> World:
        """A world of this case, with its negative prompt; the zebra's when no prompt is given."""
        prompt = self.zebra if prompt is None else prompt
        own = "a red car" if prompt == self.lion else "a blurry picture"
        negative = {"unguided": None, "none": None, "all": "a blurry picture", "each": own}[self.negative]
        return World(name, prompt, interventions, subject="zebra", negative_prompt=negative)

    def mixed(self) -> list[World]:
        """A clean world, a corrupted one, and one in which something of it is restored."""
        noise = wb.add_noise("text_encoder*.embedding", 1.0, seed=3, tokens="subject")
        worlds = {"clean": [], "corrupted": [noise], "restored": [noise, wb.restore("unet.*.cross", "clean", steps=1)]}
        return [self.world(name, None, each) for name, each in worlds.items()]

    @property
    def settings(self) -> dict:
        """Keywords of a run and of the pipeline's own call alike."""
        guidance = 1.0 if self.negative == "unguided" else 3.0
        return dict(num_inference_steps=self.steps, guidance_scale=guidance) | SIZES[self.size]

    @property
    def steps(self) -> int:
        return tiny.steps_for(self.scheduler)

    @property
    def guided(self) -> bool:
        """Whether the UNet's batch is doubled."""
        return self.negative != "unguided" and self.pipeline != "lcm"

    # By whom

    def pair(self, *, own: bool = False) -> tuple[wb.Model, diffusers.DiffusionPipeline]:
        """A model, and a plain pipeline like its own: adapters are loaded before it was wrapped, or after it ran.

        own: whether the plain pipeline is this case's alone, since it will be changed.
        """
        when = self.adapter.partition(" ")[2]
        ours = self.plain("none")
        if when in ("before", "fused"):
            ADAPTERS[self.adapter](ours)
        model = wb.load(ours)
        if when == "after":
            self.run(model, [World("first", self.lion)])
            ADAPTERS[self.adapter](ours)
        return model, self.plain() if own else self._shared_plain()

    def plain(self, adapter: str | None = None) -> diffusers.DiffusionPipeline:
        """A pipeline that the workbench never saw, new, with this case's adapter or another."""
        base = _pipeline(self.pipeline, self.dtype)
        kept = [] if "word" in self.adapter else [getattr(base, name) for name in tiny.encoders_of(base).values()]
        pipeline = copy.deepcopy(base, {id(each): each for each in kept})  # tokenizers are slow to copy
        ADAPTERS[self.adapter if adapter is None else adapter](pipeline)
        pipeline.scheduler = tiny.scheduler(self.scheduler)
        return pipeline

    def _shared_plain(self) -> diffusers.DiffusionPipeline:
        pipeline = _adapted(self.pipeline, self.dtype, self.adapter)
        pipeline.scheduler = tiny.scheduler(self.scheduler)
        return pipeline

    def run(self, model: wb.Model, worlds: Sequence[World], seeds: Sequence[int] = (0,), **more) -> wb.Run:
        """What the workbench makes of worlds."""
        return model.run(worlds, seeds=seeds, progress=False, **self.settings | more)

    def draw(self, pipeline, worlds: Sequence[World], seeds: Sequence[int] = (0,), **more) -> np.ndarray:
        """What diffusers makes of their prompts in one batch: (world, seed, y, x, colour) in [0, 1]."""
        rows = [(world, seed) for world in worlds for seed in seeds]
        call = dict(prompt=[world.prompt for world, _ in rows], output_type="np") | self.settings
        if worlds[0].negative_prompt is not None:
            call["negative_prompt"] = [world.negative_prompt for world, _ in rows]
        call["generator"] = [torch.Generator().manual_seed(seed) for _, seed in rows]
        images = pipeline(**call | more).images
        images = images.float().cpu().numpy() if isinstance(images, torch.Tensor) else images
        return images.reshape(len(worlds), len(seeds), *images.shape[1:])

    # How far apart

    def deviation(self, a, b) -> float:
        """The largest difference; also kept, to be reported."""
        distance = float(np.abs(np.asarray(a, "f8") - np.asarray(b, "f8")).max())
        self.largest.append(distance)
        return distance

    def close(self, a, b) -> bool:
        """Whether two pictures are the same up to rounding."""
        return self.deviation(a, b) <= TOLERANCE[self.dtype]

    def apart(self, a, b) -> bool:
        """Whether they differ by more than anything that was taken for rounding: a law that passes with this could have failed."""
        return float(np.abs(np.asarray(a) - np.asarray(b)).max()) > max(1e-3, *self.largest, 0.0)


@cache
def _pipeline(name: str, dtype: str) -> diffusers.DiffusionPipeline:
    torch.manual_seed(0)
    pipeline = tiny.sharpen(tiny.PIPELINES[name]()).to(DEVICE, getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def _adapted(name: str, dtype: str, adapter: str) -> diffusers.DiffusionPipeline:
    """Plain pipelines of all cases that only draw with them."""
    return Case("", name, "ddim", adapter, dtype=dtype).plain()


def load_lora(pipeline, seed: int = 0):
    """A LoRA, at work beside the weights."""
    pipeline.load_lora_weights(tiny.lora(pipeline, seed=seed), adapter_name=f"lora {seed}")


def fuse_lora(pipeline):
    """A LoRA, added to the weights."""
    load_lora(pipeline)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


ADAPTERS: dict[str, Callable] = {
    "none": lambda pipeline: None,
    "lora before": load_lora,
    "lora after": load_lora,
    "lora fused": fuse_lora,
    "word before": tiny.add_word,
    "word after": tiny.add_word,
}


@cache
def cases(law: str) -> tuple[Case, ...]:
    """The cases of one law."""
    return tuple(case for case in _all() if case.law == law)


@cache
def _all() -> tuple[Case, ...]:
    return tuple(Case(**row) for row in cover(FACTORS, STRENGTH))


def equal(a, b) -> bool:
    """Bitwise."""
    return np.array_equal(np.asarray(a), np.asarray(b))


def steps_of_calls(scheduler: str, steps: int) -> tuple[int, ...]:
    """Which step each call of the denoiser belongs to, as the papers have it: not read off the engine's table."""
    twice = tuple(step for step in range(steps) for _ in range(2))[:-1]
    known = {"heun": twice, "kdpm2": twice, "kdpm2 ancestral": twice}
    known |= {"pndm": (0, *range(steps)), "pndm prk": (0,) * 4 + (1,) * 4 + (2,) * 4 + tuple(range(3, steps))}
    return known.get(scheduler, tuple(range(steps)))


@contextmanager
def hooked(
    module: torch.nn.Module, calls: Collection[int] = (), factor: float = 1.0, row: int = 0, of: int = 1
) -> Iterator[list[torch.Tensor]]:
    """The outputs that a module gives while the block lasts, call by call; plain PyTorch.

    calls: at which rows `row` of every `of` (in a guided batch, of each half) are multiplied by `factor`.
    """
    seen: list[torch.Tensor] = []

    def hook(module, args, output):
        whole = output if isinstance(output, tuple) else (output,)
        value = whole[0]
        if len(seen) in calls:
            value = value.clone()
            value[row::of] *= factor
        seen.append(value.detach().float().cpu())
        return (value, *whole[1:]) if isinstance(output, tuple) else value

    handle = module.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def state_of(pipeline) -> dict:
    """Everything of a pipeline that a run could leave changed, in comparable form."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    return {
        "weights": {f"{n}.{k}": _bits(v) for n, part in parts.items() for k, v in part.state_dict().items()},
        "modules": [id(module) for part in parts.values() for module in part.modules()],
        "hooks": [[len(getattr(m, h)) for h in hooks] for part in parts.values() for m in part.modules()],
        "modes": [module.training for part in parts.values() for module in part.modules()],
        "processors": {name: id(processor) for name, processor in denoiser.attn_processors.items()},
        "scheduler": {name: _bits(value) for name, value in vars(pipeline.scheduler).items()},
        "pipeline": {name: repr(getattr(pipeline, name, None)) for name in ("_progress_bar_config", "device", "dtype")},
    }


def _bits(value) -> str:
    if isinstance(value, torch.Tensor):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return f"{value.dtype} {tuple(value.shape)} {sha256(bits.data).hexdigest()}"
    return repr(value)
