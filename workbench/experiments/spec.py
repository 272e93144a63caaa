"""What experiments are asked, as frozen values: the fields that all share, and how windows of the denoising are written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench import interventions

Window = tuple[float, float]
WHOLE: Window = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every experiment is asked."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Of the starting noise, shared by everything that is compared."""
    num_inference_steps: int | None = None
    """The model's own when left out."""
    guidance_scale: float | None = None
    """The model's own when left out."""

    def __post_init__(self):
        self.keep_tuples("seeds")
        if wrong := [seed for seed in self.seeds if not isinstance(seed, Integral) or isinstance(seed, bool)]:
            raise ValueError(
                f"seeds={self.seeds}: {wrong[0]!r} is no whole number; give numbers such as seeds=(0, 1, 2)"
            )
        seeds = tuple(int(seed) for seed in self.seeds)
        if twice := [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]:
            raise ValueError(f"seeds={seeds}: {twice[0]} stands there twice; give each seed once")
        object.__setattr__(self, "seeds", seeds)
        steps = self.num_inference_steps
        if steps is not None and (not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1):
            raise ValueError(f"num_inference_steps={steps!r}: give a whole number of at least 1, or leave it out")

    def keep_tuples(self, *names: str):
        """Raise ValueError unless these fields are sequences of at least one; keep them as tuples."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Iterable) or not len(tuple(value)):
                raise ValueError(f"{name}={value!r}: give a tuple of at least one")
            object.__setattr__(self, name, tuple(value))

    def keep_windows(self, name: str):
        """The same for a field of windows, each a pair of shares of the run or `workbench.window(a, b)`."""
        self.keep_tuples(name)
        object.__setattr__(self, name, tuple(as_window(name, window) for window in getattr(self, name)))


def as_window(name: str, given: Any) -> Window:
    """A window of the denoising as two shares of the run. name: of the argument, for the error."""
    pair = (given.start, given.stop) if hasattr(given, "start") else given
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise ValueError(f"{name}={given!r}: give windows as two shares of the run, such as {name}=((0.0, 0.5),)")
    start, stop = map(float, pair)
    if not 0 <= start < stop <= 1:
        raise ValueError(
            f"{name}={given!r}: shares of the run go from 0.0 to 1.0, the first below the second; give such as (0.0, 0.5)"
        )
    return start, stop


def steps_of(shares: Window) -> "interventions.Window | None":
    """What an intervention takes as its steps; None, every step, for the whole run."""
    from workbench.interventions import window  # here: specs are read without torch

    return None if shares == WHOLE else window(*shares)


def window_name(window: Window) -> str:
    """How a window is called in results: "0-0.5"."""
    return f"{window[0]:g}-{window[1]:g}"
