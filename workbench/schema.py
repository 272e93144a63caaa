"""The one schema of values that come from outside: constructors, JSON and files all pass through these checks.

    number(sigma, "sigma", least=0)                # a finite number, of 0 or more
    wholes(tokens, "tokens")                       # (2, 3): whole numbers, no fractions, no bools
    site_names(sites, "sites")                     # names or globs, at least one
    array(b, "b", axes=("out", "rank"))            # a tensor of finite numbers with these axes
    parsed(text, "Intervention.from_json")         # JSON within the limits, no key twice, no NaN
    fields(found, "an intervention", ("sites",), ("steps",))   # these keys and no others

Each takes the name of the argument, which its errors begin with, and raises ValueError. Limits: `LONGEST_JSON` characters,
`DEEPEST_JSON` levels, `MOST_NUMBERS` of one array, `MOST_PATTERNS` that the braces of one glob may stand for.
"""

import binascii
import json
import re
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import prod
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.inputs import MOST_THINGS, choice, number, shown, strings, text

__all__ = [
    "DEEPEST_JSON",
    "LONGEST_JSON",
    "MOST_NUMBERS",
    "MOST_PATTERNS",
    "array",
    "array_of_base64",
    "choice",
    "fields",
    "listed",
    "mapping",
    "number",
    "parsed",
    "plain",
    "sha256",
    "site_name",
    "site_names",
    "text",
    "tokens",
    "whole",
    "wholes",
    "within_depth",
    "without_braces",
    "words",
]

LONGEST_JSON = 64 * 2**20  # characters; a direction per token of a large model takes a few million
DEEPEST_JSON = 64
MOST_NUMBERS = 2**28  # a GiB in float32
MOST_PATTERNS = 4096
LONGEST_NAME = 1000  # characters of a site's name or of a glob

if TYPE_CHECKING:  # what specs are checked by needs no torch
    import torch

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GLOB = re.compile(r"[*?\[\]{}]")


def whole(value: int, argument: str, *, least: int | None = None, most: int | None = None) -> int:
    """A whole number, numpy's and a tensor's too, but no bool, and no float even where it is whole."""
    plain = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    outside = lambda n: (least is not None and n < least) or (most is not None and n > most)
    if isinstance(plain, bool) or not isinstance(plain, Integral) or outside(plain):
        bounds = [f"{words} {bound}" for words, bound in (("at least", least), ("at most", most)) if bound is not None]
        raise ValueError(
            f"{argument}={shown(value)}: give a whole number{', ' if bounds else ''}{' and '.join(bounds)}"
        )
    return int(plain)


def wholes(
    value: int | Iterable[int], argument: str, *, least: int | None = None, most: int | None = None
) -> tuple[int, ...]:
    """One whole number or several, as a tuple of at least one."""
    given = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(given, (str, bytes, Mapping, set, frozenset)) or not isinstance(given, (Real, Iterable)):
        raise ValueError(f"{argument}={shown(value)}: give a whole number, or a list of them")
    numbers: list[Any] = [given] if isinstance(given, Real) else list(given)
    if not numbers:
        raise ValueError(f"{argument}={shown(value)} holds none: give at least one whole number, or leave it out")
    found = tuple(whole(each, argument, least=least, most=most) for each in numbers)
    if beyond := [each for each in found if abs(each) > MOST_THINGS]:
        raise ValueError(f"{argument}={beyond[0]}: give a whole number, at most {MOST_THINGS}")
    return found


def words(value: str | Iterable[str], argument: str) -> tuple[str, ...]:
    """Words of a prompt or names of its parts, none of them empty."""
    found = strings(value, argument)
    if not all(word.strip() for word in found):
        raise ValueError(f"{argument}={shown(value)} holds an empty text: give words, or parts such as 'subject_last'")
    return found


def tokens(given, argument: str) -> str | tuple[int, ...]:
    """A part of the prompt or a word of it, or positions."""
    try:
        return text(given, argument) if isinstance(given, str) else wholes(given, argument)
    except ValueError as error:
        raise ValueError(f"{error}; or a word of the prompt, or one of its parts, such as 'subject'") from None


def site_name(value: str, argument: str) -> str:
    """The name of one site, where a glob will not do."""
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME or _GLOB.search(value):
        raise ValueError(
            f"{argument}={shown(value)}: give a site's name as model.sites shows it, such as 'unet.mid.cross.k'; a glob names none"
        )
    return str(value)


def site_names(value: str | Iterable, argument: str = "sites") -> tuple[str, ...]:
    """Names or globs of sites, or sites, as a tuple of names: one or several, none twice, braces within the limits."""
    name_of = lambda each: each.name if hasattr(each, "axes") else each  # a Site
    named = name_of(value)
    given = (named,) if isinstance(named, str) else named
    if not isinstance(given, Iterable) or isinstance(given, (bytes, Mapping)):
        raise ValueError(f"{argument}={shown(value)}: give names or globs of sites, such as 'unet.*.cross'")
    names = strings([name_of(each) for each in given], argument, least=0)
    if not names or not all(name.strip() for name in names):
        raise ValueError(
            f"{argument}={shown(value)} names nothing: give names or globs of sites, such as 'unet.*.cross'"
        )
    for name in names:
        without_braces(name)
    return tuple(dict.fromkeys(names))


def without_braces(pattern: str) -> list[str]:
    """The globs that one with braces stands for: "a.{b,c}" is "a.b" and "a.c"; at most `MOST_PATTERNS` of them."""
    if len(pattern) > LONGEST_NAME:
        raise ValueError(f"a glob of {len(pattern)} characters, {shown(pattern)}: at most {LONGEST_NAME} are read")
    done: list[str] = []
    open_ones = [pattern]
    while open_ones:
        if len(done) + len(open_ones) > MOST_PATTERNS:
            raise ValueError(
                f"the braces of {shown(pattern)} stand for more than {MOST_PATTERNS} globs; write fewer braces, or a *"
            )
        glob = open_ones.pop()
        if not (braces := re.search(r"\{([^{}]*)\}", glob)):
            done.append(glob)
            continue
        words = braces[1].split(",")
        open_ones += [glob[: braces.start()] + word + glob[braces.end() :] for word in reversed(words)]
    return list(dict.fromkeys(done))


def array(
    value,
    argument: str,
    *,
    axes: Sequence[str] | None = None,
    sizes: Mapping[str, int] | None = None,
    dtype: "torch.dtype | None" = None,
    most: int = MOST_NUMBERS,
) -> "torch.Tensor":
    """Finite numbers as a tensor of their own on the CPU.

    value: a tensor, or what numpy takes. axes: names of its axes, any number of them when left out. sizes: lengths that some
    of these must have. dtype: of the result, float32 when left out; numbers that do not fit it are refused.
    """
    import torch  # here: specs are read without it

    dtype = dtype or torch.float32
    if isinstance(value, (str, bytes, bool, np.bool_)):
        raise ValueError(f"{argument}={shown(value)}: give an array of numbers")
    try:
        found = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value, np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"{argument}={shown(value)}: give an array of numbers") from None
    shape, wanted = tuple(found.shape), ", ".join(axes or ())
    if (axes is not None and len(shape) != len(axes)) or not found.numel() or found.is_complex():
        raise ValueError(f"{argument}= has shape {shape}: give numbers{f' ({wanted})' if wanted else ''}, at least one")
    if found.numel() > most:
        raise ValueError(f"{argument}= has shape {shape}, which is {found.numel()} numbers: at most {most} are read")
    for axis, length in (sizes or {}).items():
        if (have := shape[(axes or ()).index(axis)]) != length:
            raise ValueError(f"{argument}= has shape ({wanted}) = {shape}, {axis} is to be {length}, not {have}")
    found = found.to("cpu", dtype).contiguous().clone()
    if broken := int((~torch.isfinite(found)).sum()):
        raise ValueError(f"{argument}= of shape {shape} holds {broken} numbers that are not finite in {dtype}")
    return found


def array_of_base64(shape: Sequence[int], data: str, argument: str) -> "torch.Tensor":
    """The float32 numbers that JSON carries: lengths of the axes, and the little-endian bytes in base64."""
    lengths = tuple(whole(length, f"{argument}: length of an axis", least=0) for length in shape)
    if len(lengths) > DEEPEST_JSON or prod(lengths) > MOST_NUMBERS:
        raise ValueError(
            f"{argument}: shape {shown(lengths)} is of {prod(lengths)} numbers; at most {MOST_NUMBERS} are read"
        )
    try:
        found = b64decode(text(data, f"{argument}: data", empty=True), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{argument}: its data is no base64 ({error})") from None
    if len(found) != 4 * prod(lengths):
        raise ValueError(f"{argument}: {len(found)} bytes, but shape {lengths} needs {4 * prod(lengths)}")
    return array(np.frombuffer(found, "<f4").reshape(lengths), argument)


def sha256(value: str, argument: str) -> str:
    """A SHA-256 in hexadecimal."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{argument}={shown(value)}: give a SHA-256, 64 digits of 0-9 and a-f")
    return value


def parsed(content: str, what: str) -> Any:
    """The value of a JSON text; what: the name of what is read, for errors.

    Raises ValueError for a text that is no JSON, is longer or deeper than the limits, has a key twice, or holds NaN or infinity.
    """
    if not isinstance(content, str):
        raise ValueError(f"{what}: {shown(content)} is a {type(content).__name__}; give a JSON text")
    if len(content) > LONGEST_JSON:
        raise ValueError(f"{what}: JSON of {len(content)} characters; at most {LONGEST_JSON} are read")
    try:
        found = json.loads(content, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(f"{what}: JSON of more than {DEEPEST_JSON} levels, which is the most that is read") from None
    except ValueError as error:
        raise ValueError(f"{what}: {shown(content)} is not JSON as it should be ({error})") from None
    return within_depth(found, what)


def plain(value, argument: str) -> Any:
    """What a value is as JSON holds it: tuples as lists, numpy's numbers as plain ones; within the limits of `parsed`."""
    try:
        content = json.dumps(value, allow_nan=False, default=_plain_number)
    except RecursionError:
        raise ValueError(f"{argument}= is deeper than {DEEPEST_JSON} levels, which is the most that is kept") from None
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{argument}={shown(value)}: give what JSON holds, texts, finite numbers, lists, mappings ({error})"
        ) from None
    return parsed(content, argument)


def mapping(value: Mapping, argument: str) -> dict:
    """A JSON object, in the form of `plain`."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{argument}={shown(value)}: give a mapping of texts to what JSON holds")
    return plain(dict(value), argument)


def listed(value: Sequence, argument: str) -> list:
    """A list or a tuple, as a list."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{argument}={shown(value)}: expected a list")
    return list(value)


def fields(value: Mapping, what: str, needed: Iterable[str], optional: Iterable[str] = ()) -> dict:
    """A mapping that has all the needed keys, and no others but the optional ones."""
    needed, optional = tuple(needed), tuple(optional)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{what}: {shown(value)} is a {type(value).__name__}; expected an object with {', '.join(needed)}"
        )
    missing, unknown = (
        [key for key in needed if key not in value],
        [key for key in value if key not in needed + optional],
    )
    if missing or unknown:
        wrong = [*(f"lacks {shown(key)}" for key in missing), *(f"has an unknown {shown(key)}" for key in unknown)]
        raise ValueError(f"{what} {' and '.join(wrong)}; its keys are {', '.join(needed + optional)}")
    return dict(value)


def within_depth(value, what: str) -> Any:
    """The value, where its lists and mappings are at most `DEEPEST_JSON` levels deep."""
    level, depth = [value], 0
    while holders := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        if depth > DEEPEST_JSON:
            raise ValueError(f"{what}: JSON of more than {DEEPEST_JSON} levels, which is the most that is read")
        level = [inner for each in holders for inner in (each.values() if isinstance(each, dict) else each)]
    return value


def _once(pairs: list[tuple[str, object]]) -> dict:
    for (key, _), (after, _) in pairwise(sorted(pairs, key=lambda pair: pair[0])):
        if key == after:
            raise ValueError(f"the key {shown(key)} stands twice")
    return dict(pairs)


def _no_constant(name: str):
    raise ValueError(f"{name} is no number")


def _plain_number(value):
    if hasattr(value, "tolist"):  # numpy's and torch's
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is none of them")
