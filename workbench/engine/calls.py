"""Calls and steps: a scheduler's step may take several calls of the denoiser; every call belongs to one step.

`steps=` of an intervention speaks of steps. The map comes from a table of what each scheduler does, checked against the timesteps
that it sets; a scheduler that the table does not know is refused by name, since counting its calls wrongly changes images by
more than half of their range without any error.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.families import family_of


def one_call(config, steps: int) -> list[int]:
    """Calls of each step: one."""
    return [1] * steps


def two_calls(config, steps: int) -> list[int]:
    """A second call corrects each step but the last (Heun; Karras et al. 2022, algorithm 1)."""
    return [2] * (steps - 1) + [1]


def pndm(config, steps: int) -> list[int]:
    """Runge-Kutta steps of four calls first, unless skipped; without them, the first step is taken twice and averaged."""
    if not config.skip_prk_steps:
        return [4] * min(3, steps) + [1] * max(0, steps - 3)
    return [2] + [1] * (steps - 1) if steps > 1 else [1]


# What each scheduler does in a step. Those with noise of their own draw it through the generators they are given, one a row.
SCHEDULERS: dict[str, Callable] = {
    "DDIMScheduler": one_call,
    "DDPMScheduler": one_call,
    "DEISMultistepScheduler": one_call,
    "DPMSolverMultistepScheduler": one_call,
    "DPMSolverSinglestepScheduler": one_call,
    "EulerAncestralDiscreteScheduler": one_call,
    "EulerDiscreteScheduler": one_call,
    "HeunDiscreteScheduler": two_calls,
    "KDPM2AncestralDiscreteScheduler": two_calls,
    "KDPM2DiscreteScheduler": two_calls,
    "LCMScheduler": one_call,
    "LMSDiscreteScheduler": one_call,
    "PNDMScheduler": pndm,
    "TCDScheduler": one_call,
    "UniPCMultistepScheduler": one_call,
}

# The same for models of flow matching, which take no others.
FLOW_SCHEDULERS: dict[str, Callable] = {
    "FlowMatchEulerDiscreteScheduler": one_call,
    "FlowMatchHeunDiscreteScheduler": two_calls,
}

# Known, and refused: why.
REFUSED = {
    "DPMSolverSDEScheduler": "draws its noise from a Brownian tree over the whole batch, so that worlds of one seed would differ",
    "CosineDPMSolverMultistepScheduler": "draws its noise from a Brownian tree over the whole batch, so that worlds of one seed differ",
}


@dataclass(frozen=True)
class Calls:
    """The denoiser's calls of a run: `step` and `timestep` of each, in order.

    >>> calls = Calls((0, 0, 1, 2), (900.0, 600.0, 600.0, 300.0))  # PNDM, three steps
    >>> calls.of([0, 2]), calls.steps, len(calls)
    ((0, 1, 3), 3, 4)
    """

    step: tuple[int, ...]
    timestep: tuple[float, ...]

    @property
    def steps(self) -> int:
        """How many steps they make."""
        return self.step[-1] + 1

    def __len__(self):
        return len(self.step)

    def of(self, steps: Iterable[int]) -> tuple[int, ...]:
        """Numbers of the calls that belong to some steps."""
        wanted = set(steps)
        return tuple(call for call, step in enumerate(self.step) if step in wanted)

    def ends(self, call: int) -> bool:
        """Whether a call is the last of its step."""
        return call + 1 == len(self) or self.step[call + 1] != self.step[call]


def calls_in(pipeline, steps: int, height: int | None = None, width: int | None = None) -> Calls:
    """The calls that a pipeline makes of its denoiser in a run, as `calls_of` finds them.

    height, width: of the picture in pixels, which some schedules follow; the pipeline's own when left out.
    """
    family = family_of(pipeline)
    own = family.size(pipeline)
    keywords = family.schedule(pipeline, steps, height or own[0], width or own[1])
    return calls_of(pipeline.scheduler, steps, flow=family.flow, keywords=keywords)


def calls_of(scheduler, steps: int, *, flow: bool = False, keywords: Mapping[str, Any] | None = None) -> Calls:
    """The calls that a scheduler makes of the denoiser for so many steps; its own state is left alone.

    flow: whether the model was trained by flow matching. keywords: that the pipeline gives when it sets the timesteps.

    Raises ValueError for a scheduler that is not in the table, and for a number of steps that it does not take.
    """
    if isinstance(steps, bool) or not hasattr(steps, "__index__") or steps < 1:
        raise ValueError(f"num_inference_steps={steps!r}: give a whole number of at least 1")
    steps = steps.__index__()
    name = type(scheduler).__name__
    known, other = (FLOW_SCHEDULERS, SCHEDULERS) if flow else (SCHEDULERS, FLOW_SCHEDULERS)
    if name not in known:
        why = REFUSED.get(name, "is not in the table of what schedulers do at each step")
        if name in other:
            why = f"is not for a model that was {'' if flow else 'not '}trained by flow matching"
        usual = "FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler"
        raise ValueError(
            f"the scheduler {name} {why}; set another, such as pipeline.scheduler = {usual}.from_config(pipeline.scheduler.config); "
            f"known are {', '.join(known)}"
        )
    if flow and scheduler.config.get("stochastic_sampling"):
        raise ValueError(
            f"the scheduler {name} draws noise at each step (stochastic_sampling) that the pipeline gives it no generator for, so "
            "that worlds of one seed would differ; set pipeline.scheduler = "
            f"{name}.from_config(pipeline.scheduler.config, stochastic_sampling=False)"
        )
    own = copy.deepcopy(scheduler)
    try:
        own.set_timesteps(steps, **keywords or {})
    except TypeError as error:  # it takes no noise levels, or no shift of them
        raise ValueError(
            f"the scheduler {name} does not take what the pipeline gives it ({error}); set pipeline.scheduler = "
            "FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)"
        ) from None
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"num_inference_steps={steps}: {name} does not take so many ({error}); give another number"
        ) from None
    timesteps = tuple(float(t) for t in own.timesteps)
    calls = known[name](own.config, steps)
    if sum(calls) != len(timesteps):
        raise ValueError(
            f"num_inference_steps={steps}: {name} sets {len(timesteps)} timesteps as it is configured, {sum(calls)} are expected; give "
            "another number of steps (PNDM with Runge-Kutta steps needs at least 4), or another scheduler"
        )
    return Calls(tuple(step for step, count in enumerate(calls) for _ in range(count)), timesteps)
