"""What long work shows: a moving bar in a terminal or a notebook, and in a log a line now and then, with the time that is left."""

import importlib.util
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines of a log
QUIET = 10.0  # work that is done sooner says nothing in a log


class Bar:
    """Counts what is done of `total` things; use it in a `with` block. shown: False for silence.

    TQDM_DISABLE=1 in the environment silences it, as it does tqdm's own bars.
    """

    def __init__(self, total: int, name: str, unit: str = "image", *, shown: bool = True):
        self.total, self.name, self.unit = total, name, unit
        self.done = self.skipped = 0
        self.began = time.monotonic()
        self.spoke = self.began - EVERY + QUIET
        self.silent = not shown or os.environ.get("TQDM_DISABLE", "") not in ("", "0")
        self.moving = None if self.silent or not _moves() else _moving_bar(total, name, unit)

    def update(self, count: int = 1):
        """So many more were done."""
        self.done += count
        if self.moving is not None:
            self.moving.update(count)
        elif not self.silent and time.monotonic() - self.spoke >= EVERY:
            self.spoke = time.monotonic()
            self.say(str(self))

    def skip(self, count: int):
        """So many were done before, or elsewhere: they count, but say nothing of how fast this goes."""
        self.done += count
        self.skipped += count
        if self.moving is not None:
            self.moving.n += count
            self.moving.initial += count
            self.moving.last_print_n += count
            self.moving.refresh()

    def say(self, text: str):
        """A line of its own, beside the bar."""
        if self.moving is not None:
            self.moving.write(text, file=sys.stderr)
        elif not self.silent:
            print(text, file=sys.stderr, flush=True)

    def __str__(self):
        """ "causal trace: 120 of 432 images, 2.3 a second, 0:02:14 left"."""
        rate = (self.done - self.skipped) / max(time.monotonic() - self.began, 1e-9)
        said = f"{self.name}: {self.done} of {self.total} {self.unit}s"
        if rate <= 0 or self.done >= self.total:
            return said
        speed = f"{rate:.2g} a second" if rate >= 1 else f"one in {1 / rate:.2g} seconds"
        return f"{said}, {speed}, {_clock((self.total - self.done) / rate)} left"

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any):
        if self.moving is not None:
            self.moving.close()
        elif not self.silent and time.monotonic() - self.began >= QUIET and kind is None:
            self.say(f"{self}, in {_clock(time.monotonic() - self.began)}")


def each(things: Sequence[Any] | Iterable[Any], name: str, unit: str = "step") -> Iterator[Any]:
    """The things in turn, counted by a `Bar`."""
    things = things if isinstance(things, Sequence) else list(things)
    with Bar(len(things), name, unit) as bar:
        for thing in things:
            yield thing
            bar.update()


def _moves() -> bool:
    """Whether what is written can be overwritten: in a terminal, and in a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _moving_bar(total: int, name: str, unit: str) -> tqdm:
    """tqdm's bar: the notebook's widget where there are widgets, else text, which notebooks overwrite as terminals do."""
    with_widgets = _in_notebook() and importlib.util.find_spec("ipywidgets") is not None
    kind = importlib.import_module("tqdm.notebook" if with_widgets else "tqdm.std").tqdm
    return kind(total=total, desc=name, unit=f" {unit}s", disable=False, dynamic_ncols=True)


def _clock(seconds: float) -> str:
    """ "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
