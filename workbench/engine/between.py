"""What passes from one call of the denoiser to the next, on its way: through diffusers' callback, or at the scheduler's step.

Older pipelines (DeepFloyd IF) know only a callback that is shown the latents and gives none back, and not behind every call. Theirs pass
where the scheduler makes them, which every call of the denoiser comes to once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from itertools import count
from typing import Any


def ends_by_itself(pipeline) -> bool:
    """Whether a pipeline's loop over the steps is told when to end, and takes latents back, by diffusers' newer callback."""
    return "callback_on_step_end" in signature(type(pipeline).__call__).parameters


@contextmanager
def latents_passing(pipeline, after_call: Callable, *, first_only: bool = False) -> Iterator[dict[str, Any]]:
    """Have latents pass through a function behind every call of the denoiser, for as long as the block lasts.

    after_call: (pipeline, number of the call, timestep, {"latents": ...}) -> the same with the latents to go on with. first_only: whether
    an older pipeline is to make its first call alone; a newer one is told by its `_interrupt`. Yields keywords for the pipeline's call. The
    scheduler must be one of this run's own.
    """
    if ends_by_itself(pipeline):
        yield {"callback_on_step_end": after_call}
        return
    scheduler, calls = pipeline.scheduler, count()
    own_step, own_timesteps = scheduler.step, scheduler.set_timesteps

    @wraps(own_step)  # pipelines look at its signature
    def step(noise, timestep, latents, *args, **keywords):
        made = own_step(noise, timestep, latents, *args, **keywords)
        tensors = after_call(pipeline, next(calls), timestep, {"latents": made[0]})
        return (tensors["latents"], *made[1:])

    @wraps(own_timesteps)
    def set_timesteps(*args, **keywords):
        own_timesteps(*args, **keywords)
        scheduler.timesteps = scheduler.timesteps[:1]

    scheduler.step = step
    if first_only:
        scheduler.set_timesteps = set_timesteps
    try:
        yield {}
    finally:
        for name in ("step", "set_timesteps"):
            vars(scheduler).pop(name, None)
