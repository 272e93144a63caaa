"""What people type, taken as they mean it or refused by name: texts, seeds, counts, paths.

    strings("a zebra", "prompts")            # ("a zebra",): a string is one text, never its letters
    seeds(np.arange(3), "seeds")             # (0, 1, 2): an int, a range, a list, an array
    user_path("~/runs", "path")              # "~" is the home folder

Each takes the name of the argument, which its errors begin with.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

LARGEST = sys.float_info.max
MOST_THINGS = 2**31 - 1
SEEDS = range(-(2**63), 2**63)  # what a torch generator takes and a 64-bit column of results holds
TEXTS_FIX = 'give a text, or a list of texts such as ["a zebra", "a giraffe"]'
SEEDS_FIX = "give a whole number, or several, such as seeds=3, seeds=range(4) or seeds=[0, 5]"
LOST = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # how an address begins that was made a path
UNORDERED = (Mapping, set, frozenset)


def strings(value: str | Iterable[str], argument: str, *, least: int = 1) -> tuple[str, ...]:
    """One text or several, as a tuple; a string is one.

    value: a string, or a list, tuple, generator, array or column of strings. least: so many at the least.

    Raises ValueError for anything else, such as bytes, numbers, None, a mapping or a set (which has no order), and for too few.
    """
    if isinstance(value, str):
        return (str(value),)
    if isinstance(value, (bytes, *UNORDERED)) or not isinstance(value, Iterable):
        raise ValueError(f"{argument}={shown(value)}: {TEXTS_FIX}")
    texts = list(value)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{argument} holds {shown(wrong[0])}, a {type(wrong[0]).__name__}: {TEXTS_FIX}")
    if len(texts) < least:
        raise ValueError(f"{argument} holds {len(texts)} texts, and needs at least {least}: {TEXTS_FIX}")
    return tuple(str(text) for text in texts)


def seeds(value: int | Iterable[int], argument: str = "seeds", *, once: bool = True) -> tuple[int, ...]:
    """Seeds of the starting noise, as plain integers; a whole number is that one seed, not so many.

    value: a whole number, a range, a list, a numpy or torch array of whole numbers, each from -2**63 to 2**63 - 1. once: whether
    none may stand there twice.

    Raises ValueError for bools, floats, texts, sets and mappings, for none at all, one that stands twice, and one out of range.
    """
    given = plain(value)
    if isinstance(given, (str, bytes, *UNORDERED)) or not isinstance(given, (Integral, Iterable)):
        raise ValueError(f"{argument}={shown(value)}: {SEEDS_FIX}")
    numbers = [given] if isinstance(given, Integral) else given
    found = [whole(number, f"{argument}={shown(value)}", SEEDS_FIX) for number in numbers]
    if not found:
        raise ValueError(f"{argument}={shown(value)} holds no seed: {SEEDS_FIX}")
    if outside := [seed for seed in found if seed not in SEEDS]:
        raise ValueError(f"{argument} holds {outside[0]}: seeds go from -2**63 to 2**63 - 1")
    before: set[int] = set()
    for seed in found:
        if once and seed in before:
            raise ValueError(f"{argument} holds {seed} more than once, which gives equal images: name each seed once")
        before.add(seed)
    return tuple(found)


def count(value: int, argument: str, *, least: int = 1, most: int = MOST_THINGS) -> int:
    """A whole number of things, such as steps; numpy's too.

    Raises ValueError for bools, floats and texts, and for less than the least or more than the most.
    """
    fix = f"give a whole number, at least {least}"
    number = whole(value, f"{argument}={shown(value)}", fix)
    if not least <= number <= most:
        raise ValueError(f"{argument}={number}: {fix}{'' if number < least else f', at most {most}'}")
    return number


def flag(value: bool, argument: str) -> bool:
    """True or False, numpy's too; raises ValueError for anything else, numbers and texts among it."""
    given = plain(value)
    if not isinstance(given, bool):
        raise ValueError(f"{argument}={shown(value)}: give True or False")
    return given


def text(value: str, argument: str, *, empty: bool = False) -> str:
    """A text; empty: whether "" or blanks alone will do."""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ValueError(f"{argument}={shown(value)}: give a text{'' if empty else ' that says something'}")
    return str(value)


def said(value: str, argument: str) -> str:
    """A text, or "" for none; blanks alone are neither."""
    if text(value, argument, empty=True) and not value.strip():
        raise ValueError(f'{argument}={value!r} is blank: give words, or "" for none')
    return str(value)


def number(
    value: float, argument: str, *, least: float | None = None, above: float | None = None, most: float | None = None
) -> float:
    """A finite number, numpy's and a tensor's too, but no bool and no text."""
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (("at least", least), ("above", above), ("at most", most))
        if bound is not None
    ]
    given = plain(value)
    if (
        isinstance(given, bool)
        or not isinstance(given, (int, float))
        or not abs(given) <= LARGEST  # NaN too
        or (least is not None and given < least)
        or (above is not None and given <= above)
        or (most is not None and given > most)
    ):
        raise ValueError(
            f"{argument}={shown(value)}: give a finite number{', ' if bounds else ''}{' and '.join(bounds)}"
        )
    return float(given)


def several(value: Iterable, argument: str, fix: str) -> tuple:
    """The things that a list, tuple, generator or array holds; fix: what to give, for anything else."""
    if isinstance(value, (str, bytes, *UNORDERED)) or not isinstance(value, Iterable):
        raise ValueError(f"{argument}={shown(value)}: {fix}")
    return tuple(value)


def choice(value: str, argument: str, options: Sequence[str]) -> str:
    """One of some texts."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{argument}={shown(value)}: may be {', '.join(map(repr, options))}")
    return value


def is_address(value: str) -> bool:
    """Whether a text is an address, such as s3://bucket/trace, and no path."""
    return "://" in value


def folder_or_address(value: str | Path, argument: str) -> str | Path:
    """A folder's path, as `user_path` has it, or an address as it is; ValueError also for what a Path has left of an address."""
    if isinstance(value, str) and is_address(value):
        return value
    path = user_path(value, argument)
    if lost := LOST.match(str(path)):  # the rest may hold a secret
        raise ValueError(
            f"{argument}={lost[0]}...: an address, of which pathlib.Path has taken a slash; give it as a text, such as s3://bucket/place"
        )
    return path


def folder_here(value: str | Path, argument: str) -> Path:
    """A folder's path; ValueError also for an address."""
    path = folder_or_address(value, argument)
    if isinstance(path, str):
        raise ValueError(
            f"{argument}={path.partition('://')[0]}://...: an address; give the path of a folder of this machine"
        )
    return path


def user_path(value: str | Path, argument: str) -> Path:
    """A path as a shell would take it: "~" is the home folder.

    Raises ValueError for what is no text and no path, and for an empty one.
    """
    if not isinstance(value, (str, Path)):
        raise ValueError(f"{argument}={shown(value)}: give the path of a file or folder, as a text or a pathlib.Path")
    if not str(value).strip():
        raise ValueError(f"{argument}={value!r} is empty: give the path of a file or folder")
    return Path(value).expanduser()


def shown(value: object, most: int = 60) -> str:
    """A value as an error shows it, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy, torch, pandas and xarray as plain numbers and lists."""
    array = value.to_numpy() if hasattr(value, "to_numpy") else value
    return array.tolist() if hasattr(array, "tolist") else array


def whole(value: object, given: str, fix: str) -> int:
    """A plain integer; numpy's too, but no bool and no float. given, fix: what the error begins and ends with."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise ValueError(f"{given}: {shown(number)} is a {type(number).__name__}; {fix}")
    return int(number)
