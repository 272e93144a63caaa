"""What people type, taken as they mean it or refused by name: texts, seeds, counts, paths.

    strings("a zebra", "prompts")            # ("a zebra",): a string is one text, never its letters
    seeds(np.arange(3), "seeds")             # (0, 1, 2): an int, a range, a list, an array
    user_path("~/runs", "folder")            # "~" is the home folder

Each takes the name of the argument, which its errors begin with.
"""

from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path

SEEDS = range(-(2**63), 2**63)  # what a torch generator takes and a 64-bit column of results holds
TEXTS_FIX = 'give a text, or a list of texts such as ["a zebra", "a giraffe"]'
SEEDS_FIX = "give a whole number, or several, such as seeds=3, seeds=range(4) or seeds=[0, 5]"
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


def seeds(value: int | Iterable[int], argument: str = "seeds") -> tuple[int, ...]:
    """Seeds of the starting noise, as plain integers; a whole number is that one seed, not so many.

    value: a whole number, a range, a list, a numpy or torch array of whole numbers, each from -2**63 to 2**63 - 1.

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
        if seed in before:
            raise ValueError(f"{argument} holds {seed} more than once, which gives equal images: name each seed once")
        before.add(seed)
    return tuple(found)


def count(value: int, argument: str, *, least: int = 1) -> int:
    """A whole number of things, such as steps; numpy's too.

    Raises ValueError for bools, floats and texts, and for less than the least.
    """
    fix = f"give a whole number, at least {least}"
    number = whole(value, f"{argument}={shown(value)}", fix)
    if number < least:
        raise ValueError(f"{argument}={number}: {fix}")
    return number


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


def plain(value: object) -> object:
    """Numbers and arrays of numpy, torch, pandas and xarray as plain numbers and lists."""
    array = value.to_numpy() if hasattr(value, "to_numpy") else value
    return array.tolist() if hasattr(array, "tolist") else array


def whole(value: object, given: str, fix: str) -> int:
    """A plain integer; numpy's too, but no bool and no float. given, fix: what the error begins and ends with."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise ValueError(f"{given}: {shown(number)} is a {type(number).__name__}; {fix}")
    return int(number)
