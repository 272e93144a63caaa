"""Which steps of the denoising: whole numbers are steps, `window(0.0, 0.5)` is a share of the run. The one form everywhere.

window(0.0, 0.5)           # the first half of a run of any length
steps=3                    # the fourth step
steps=range(0, 5)          # the first five
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from workbench.inputs import MOST_THINGS, plain, shown


@dataclass(frozen=True)
class Window:
    """A share of a run's steps, from `start` to `stop`; make it with `workbench.window`.

    >>> half = wb.Window(0.0, 0.5)
    >>> str(half), half.steps(4)
    ('0-0.5', (0, 1))
    """

    start: float
    stop: float

    def __post_init__(self):
        ends = tuple(plain(end) for end in (self.start, self.stop))
        if any(isinstance(end, bool) or not isinstance(end, Real) for end in ends) or not 0 <= ends[0] < ends[1] <= 1:
            raise ValueError(
                f"window({shown(self.start)}, {shown(self.stop)}): shares of the run go from 0.0 to 1.0, the smaller first"
            )
        for name, end in zip(("start", "stop"), ends):
            object.__setattr__(self, name, float(end))

    def __str__(self):
        """How a window of the denoising is called in results: "0-0.5"."""
        return f"{self.start:g}-{self.stop:g}"

    @classmethod
    def of_name(cls, name: str) -> "Window":
        """The window that is called so: "0-0.5".

        >>> wb.Window.of_name("0-0.5")
        Window(start=0.0, stop=0.5)
        """
        try:
            low, high = map(float, name.split("-"))
        except ValueError:
            raise ValueError(
                f"{name!r} is no window of the denoising; give two shares of the run, such as 0-0.5"
            ) from None
        return cls(low, high)

    def steps(self, count: int) -> tuple[int, ...]:
        """Numbers of the steps of a run of so many; raises ValueError where it holds none.

        >>> wb.window(0.5, 1.0).steps(4)
        (2, 3)
        """
        chosen = tuple(range(round(self.start * count), round(self.stop * count)))
        if not chosen:
            raise ValueError(
                f"window({self.start:g}, {self.stop:g}) holds none of the run's {count} steps; widen it, or take more steps"
            )
        return chosen


WHOLE = Window(0.0, 1.0)  # every step
Steps = int | Sequence[int] | Window | None


def window(start: float, stop: float) -> Window:
    """A share of a run's steps: `window(0.0, 0.5)` is the first half. Wherever `steps=` is asked, whole numbers are steps.

    >>> wb.window(0.0, 0.5).steps(10)
    (0, 1, 2, 3, 4)
    >>> quiet = wb.scale("unet.mid.cross", 0.0, steps=wb.window(0.0, 0.5))
    """
    return Window(start, stop)


def unless_whole(window: Window) -> Window | None:
    """What an intervention takes as its steps: None for the whole run, which sites outside the denoising take too."""
    return None if window == WHOLE else window


def as_steps(steps: Steps, argument: str = "steps") -> tuple[int, ...] | Window | None:
    """Steps in the one form in which they are kept: whole numbers in order, or a window; None for all.

    Raises ValueError for anything else, a pair of shares among it, with the call that says it.
    """
    if steps is None or isinstance(steps, Window):
        return steps
    listed = plain(steps)
    unordered = isinstance(listed, (str, bytes, dict, set, frozenset))
    given: tuple[Any, ...] = tuple(listed) if isinstance(listed, Iterable) and not unordered else (listed,)
    if unordered or not given:
        raise ValueError(
            f"{argument}={shown(steps)}: give whole numbers, such as {argument}=3 or range(0, 5), or wb.window(0.0, 0.5)"
        )
    if any(isinstance(step, float) for step in given):
        raise ValueError(
            f"{argument}={shown(steps)}: whole numbers are steps; for a share of the run write {argument}={_written(given)}"
        )
    for step in given:
        if isinstance(step, bool) or not isinstance(step, Integral):
            raise ValueError(
                f"{argument}={shown(steps)}: {shown(step)} is no step; give whole numbers from 0 on, or wb.window(0.0, 0.5)"
            )
    if min(given) < 0 or max(given) > MOST_THINGS:
        raise ValueError(f"{argument}={shown(steps)}: steps are counted from 0, and end with the run")
    return tuple(sorted({int(step) for step in given}))


def as_windows(windows: Window | Iterable[Window], argument: str = "steps") -> tuple[Window, ...]:
    """Windows that are taken each in turn: one or several.

    Raises ValueError for anything else, pairs of shares and whole numbers among it, with the call that says it.
    """
    given = (windows,) if isinstance(windows, Window) else windows
    wrong = isinstance(given, (str, bytes, dict, set, frozenset)) or not isinstance(given, Iterable)
    found: tuple[Any, ...] = () if wrong else tuple(given)
    if not found or not all(isinstance(each, Window) for each in found):
        pairs = [each for each in found if isinstance(each, (tuple, list)) and len(each) == 2]
        written = ", ".join(map(_written, pairs)) if pairs and len(pairs) == len(found) else _written(found)
        raise ValueError(
            f"{argument}={shown(windows)}: windows are shares of the run, from 0.0 to 1.0, each taken in turn; write {argument}=[{written}]"
        )
    return found


def _written(given: Sequence[Any]) -> str:
    """The call for a pair of shares; an example for anything else."""
    try:
        low, high = (float(end) for end in given)
        Window(low, high)
    except (TypeError, ValueError):
        low, high = 0.0, 0.5
    return f"wb.window({low}, {high})"
