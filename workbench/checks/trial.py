"""A model under check: how it is run, and what was seen of it so far."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from workbench.checks.hooks import Watch
from workbench.checks.report import Claims
from workbench.engine.between import latents_passing
from workbench.engine.call import pictures_of
from workbench.engine.calls import Calls, calls_in
from workbench.engine.result import Run
from workbench.engine.trace import untouched
from workbench.families import Site
from workbench.interventions import World
from workbench.models import Model

# Pictures in [0, 1] that must be equal may differ by the rounding of other batches and of explicit attention.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Of values computed alike, relative to them, and of sums of probabilities.
ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Trial:
    """One check.

    prompt, target: two prompts. picture: the plain pipeline's, (y, x, colour); explicit: the same with attention in the open. watch:
    what hooks saw. good: the sites that are as said. scheduled: the calls of the run, None where they are not known.
    """

    def __init__(
        self,
        model: Model,
        *,
        prompt: str,
        target: str,
        seed: int,
        steps: int,
        guidance_scale: float,
        size: tuple[int, int],
        batch_size: int,
    ):
        self.model, self.pipeline = model, model.pipeline
        self.prompt, self.target, self.seed, self.batch_size = prompt, target, seed, batch_size
        self.steps, self.guidance_scale, self.size = steps, guidance_scale, size
        self.settings: dict[str, Any] = dict(
            num_inference_steps=steps, guidance_scale=guidance_scale, height=size[0], width=size[1]
        )
        self.denoiser: torch.nn.Module = model.family.model(model.pipeline)
        self.dtype: torch.dtype = next(self.denoiser.parameters()).dtype
        self.tolerance, self.rounding = TOLERANCE[self.dtype], ROUNDING[self.dtype]
        self.sites = model.sites_at(*size)
        self.claims = Claims()
        self.calls = 0
        self.picture: np.ndarray | None = None
        self.explicit: np.ndarray | None = None
        self.watch = Watch(1)
        self.good: list[Site] = []
        self.scheduled: Calls | None = None

    def count(self, *ignored):
        """A hook of the denoiser's."""
        self.calls += 1

    def about(self) -> str:
        return (
            f"{type(self.pipeline).__name__}, {type(self.pipeline.scheduler).__name__}, "
            f"{str(self.dtype).removeprefix('torch.')}, {' x '.join(map(str, self.size))} pixels, "
            f"num_inference_steps={self.steps}, guidance_scale={self.guidance_scale:g}"
        )

    def plain(self, after_call: Callable | None = None) -> np.ndarray:
        """The picture of the plain pipeline, (y, x, colour). after_call: what sees the latents pass, as diffusers' callback does."""
        with untouched(self.pipeline), torch.no_grad(), ExitStack() as stack:
            generator = torch.Generator().manual_seed(self.seed)
            more = self.model.family.keywords(self.pipeline)
            if after_call is not None:
                more |= stack.enter_context(latents_passing(self.pipeline, after_call))
            output = self.pipeline(self.prompt, generator=generator, output_type="pt", **self.settings, **more)
        return pictures_of(self.pipeline, output, ["plain"])[0].permute(1, 2, 0).float().cpu().numpy()

    def run(self, *worlds: World) -> Run:
        """Worlds through the engine."""
        return self.model.run(worlds, seeds=self.seed, batch_size=self.batch_size, progress=False, **self.settings)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two pictures."""
    return float(np.abs(a - b).max())


def fewest_steps(pipeline) -> int:
    """The smallest number of steps from 2 on that a pipeline's scheduler takes; 2 where it takes none."""
    for steps in range(2, 51):
        try:
            calls_in(pipeline, steps)
        except ValueError:
            continue
        return steps
    return 2


def state(pipeline) -> dict[str, object]:
    """What a run may leave behind in a pipeline."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    modules = {f"{name}.{path}": module for name, part in parts.items() for path, module in part.named_modules()}
    return {
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()},
        "attention processors": {
            (name, path): id(processor)
            for name, part in parts.items()
            for path, processor in getattr(part, "attn_processors", {}).items()
        },
        "scheduler": (id(pipeline.scheduler), str(getattr(pipeline.scheduler, "num_inference_steps", None))),
        "dtypes": {name: next(part.parameters()).dtype for name, part in parts.items()},
    }


def changed(before: dict[str, object], after: dict[str, object]) -> Sequence[str]:
    """Names of what is not as it was."""
    return [name for name in before if before[name] != after[name]]
