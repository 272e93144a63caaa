"""What nobody can mean, in every argument of every public function: the groups of tests/test_fuzz.py.

A group is a function with arguments that are right, and for each of these arguments what may stand there (its kind). One
argument at a time is replaced by everything of `JUNK` that its kind does not allow.
"""

import linecache
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import workbench as wb

FOLDER = Path(__file__).parent  # a path that is a folder

JUNK: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "-1": lambda: -1,
    "0": lambda: 0,
    "0.5": lambda: 0.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "1e30": lambda: 1e30,
    "10**30": lambda: 10**30,
    "1j": lambda: 1j,
    "''": lambda: "",
    "' '": lambda: " ",
    "'qux'": lambda: "qux",
    "b'zebra'": lambda: b"zebra",
    "folder": lambda: FOLDER,
    "[]": lambda: [],
    "['']": lambda: [""],
    "['qux']": lambda: ["qux"],
    "[None]": lambda: [None],
    "[2, 3]": lambda: [2, 3],
    "[0.5]": lambda: [0.5],
    "[[2]]": lambda: [[2]],
    "(0.0, 0.5)": lambda: (0.0, 0.5),
    "{2}": lambda: {2},
    "{'a': 1}": lambda: {"a": 1},
    "generator": lambda: (None for _ in range(2)),
    "np.float64(0.5)": lambda: np.float64(0.5),
    "np.int64(2)": lambda: np.int64(2),
    "np.bool_": lambda: np.bool_(True),
    "array": lambda: np.ones((2, 3, 7)),
    "array of nan": lambda: np.full((2, 3, 3), np.nan),
    "tensor": lambda: torch.ones(5, 7),
    "object": object,
    "function": lambda: lambda: None,
    "type": lambda: dict,
}

ANY = frozenset(JUNK)


def kind(*names: str) -> frozenset[str]:
    assert set(names) <= ANY, set(names) - ANY
    return frozenset(names)


NONE = kind("None")
NOTHING = kind()
FLAG = kind("True", "np.bool_")
INTEGER = kind("-1", "0", "np.int64(2)")
COUNT = kind("np.int64(2)")  # of at least 1
SEED = INTEGER
SEEDS = SEED | kind("[2, 3]")
NUMBER = INTEGER | kind("0.5", "np.float64(0.5)", "1e30", "10**30")
POSITIVE = NUMBER - kind("-1", "0")
NOT_NEGATIVE = NUMBER - kind("-1")
SHARE = kind("0", "0.5", "np.float64(0.5)")
WORD = kind("'qux'")
TEXT = WORD | kind("''", "' '")
TEXTS = TEXT | kind("['']", "['qux']")
PATH = kind("'qux'", "folder")
STEPS = NONE | kind("0", "np.int64(2)", "[2, 3]")
POSITIONS = NONE | kind("-1", "0", "np.int64(2)", "[2, 3]")
AXIS = NONE | kind("0", "np.int64(2)", "[2, 3]")  # numbers along heads or channels


@dataclass(frozen=True)
class Group:
    """A function with arguments that are right, and of each what else may stand there.

    called: what an error may call an argument, beside its own name.
    """

    name: str
    call: Callable
    right: dict[str, Any]
    kinds: dict[str, frozenset[str]]
    called: dict[str, str] = field(default_factory=dict)

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Argument and junk of every input that must be refused."""
        for argument, allowed in self.kinds.items():
            for junk in JUNK:
                if junk not in allowed:
                    yield argument, junk

    def outcome(self, argument: str, junk: str) -> str | None:
        """What is wrong with what comes of an input; None where it is refused in words of ours that name the argument."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self.call(**self.right | {argument: JUNK[junk]()})
        except (ValueError, TypeError, LookupError, OSError, MemoryError) as error:
            return judged(error, (argument, self.called.get(argument, argument)))
        except Exception as error:
            return f"bare {type(error).__name__}: {error}"
        return f"accepted: {type(found)!s}"


PACKAGE = str(Path(wb.__file__).parent)


def judged(error: Exception, names: tuple[str, ...]) -> str | None:
    """None for an error that the package raised itself, in a sentence with one of these names; else what it is."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    if not frame.filename.startswith(PACKAGE) or not linecache.getline(frame.filename, frame.lineno).strip().startswith(
        "raise"
    ):
        return f"bare {type(error).__name__} at {place}: {text[:150]}"
    if not any(name in text for name in names):
        return f"unnamed {type(error).__name__} at {place}: {text[:200]}"
    return None
