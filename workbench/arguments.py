"""What arguments of public functions may be, by their names, and the decorator that sees to it before anything is done.

    @checked(spec=instance_of("workbench.localize.specs:TraceSpec"))
    def causal_trace(model, prompts, spec=None, *, subject="", batch_size=16): ...

Arguments of one name are the same thing everywhere (`ARGUMENTS`); what differs stands in the decorator, by name. A check takes a
value and the argument's name, and returns the value in the form in which the function takes it, or raises ValueError with that
name. Defaults are as they are. A call that does not fit the function at all raises TypeError, which says how it is called.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial, wraps
from importlib import import_module
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar, overload

from workbench.inputs import (
    SEEDS,
    choice,
    count,
    flag,
    folder_here,
    folder_or_address,
    number,
    said,
    seeds,
    shown,
    strings,
    text,
    user_path,
)
from workbench.schema import site_names, whole

Given = ParamSpec("Given")
Returned = TypeVar("Returned")
Check = Callable[[Any, str], Any]

STARS: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
PACKAGE = str(Path(__file__).parent)
CONTEXTLIB = import_module("contextlib").__file__ or ""

# What values of our classes are made by, for errors.
MAKERS = {
    "Model": "a model, as wb.load() returns it",
    "Run": "a run, as model.run(...) returns it",
    "Edit": "an edit, such as wb.edit.uce(model, {'a zebra': 'a giraffe'}); wb.Edit.load(path) reads one from a file",
    "Direction": "a direction, such as wb.direction(model, positive, negative)",
    "Concept": "a concept, such as wb.Concept('winter', 'summer')",
    "Prompt": "a prompt, such as wb.Prompt('a zebra in the savanna', 'zebra')",
    "PreTrainedTokenizerBase": "a tokenizer, such as model.pipeline.tokenizer",
    "DiffusionPipeline": "a diffusers pipeline, or use wb.load",
    "Dataset": "an xarray Dataset, as the experiment returned it",
    "DataArray": "a labelled array (xarray.DataArray)",
    "DataFrame": "a pandas table",
    "Axes": "matplotlib axes, or leave it out",
    "Comparison": "a comparison, as wb.compare_localizers(...) returns it",
}


def instance_of(*kinds: str, fix: str | None = None) -> Check:
    """A check for values of a class, "module:name"; imported when a value is looked at."""

    def check(value: Any, argument: str) -> Any:
        classes = tuple(getattr(import_module(module), name) for module, name in (kind.split(":") for kind in kinds))
        if not isinstance(value, classes):
            wanted = fix or " or ".join(MAKERS.get(each.__name__, f"a wb.{each.__name__}(...)") for each in classes)
            raise ValueError(f"{argument}={shown(value)} is a {type(value).__name__}: give {wanted}")
        return value

    return check


def optional(check: Check) -> Check:
    """The same, or None."""
    return lambda value, argument: None if value is None else check(value, argument)


def one_of(*options: str) -> Check:
    """A check for some texts."""
    return partial(choice, options=options)


def numbers(value: float | Iterable[float], argument: str, **bounds: float) -> tuple[float, ...]:
    """Finite numbers, one or several."""
    single = isinstance(value, (str, bytes, Mapping, set, frozenset)) or not isinstance(value, Iterable)
    held: Any = value
    given = [held] if single or getattr(value, "ndim", 1) == 0 else list(held)
    if not given:
        raise ValueError(f"{argument}={shown(value)} holds none: give at least one number")
    return tuple(number(each, argument, **bounds) for each in given)


def mapping_of(check: Check, example: str) -> Check:
    """A check for a mapping of texts to values that pass one."""

    def checked_mapping(value: Any, argument: str) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{argument}={shown(value)}: give a mapping such as {example}")
        return {key: check(each, f"{argument}[{key!r}]") for key, each in value.items()}

    return checked_mapping


def function(value: Callable, argument: str) -> Callable:
    """Something that can be called."""
    if not callable(value):
        raise ValueError(f"{argument}={shown(value)}: give a function")
    return value


def word(value: str, argument: str) -> str:
    """A text that says something."""
    return text(value, argument)


def store(value: Any, argument: str) -> Any:
    """Where results are kept: a folder's path, an address, or a store."""
    if isinstance(value, (str, Path)):
        return folder_or_address(value, argument)
    fix = "the path of a folder, an address such as s3://bucket/place, or a store"
    return instance_of("workbench.experiments.store:Store", fix=fix)(value, argument)


def executor(value: Any, argument: str) -> Any:
    """Who does the parts of an experiment."""
    return import_module("workbench.experiments.executors").as_executor(value, argument)


def prompt_set(value: Any, argument: str) -> Any:
    """Prompts, as `PromptSet.of` takes them."""
    return import_module("workbench.prompts").PromptSet.of(value)


def level(value: float, argument: str) -> float:
    """Of an interval: a share between 0 and 1."""
    if number(value, argument, above=0, most=1) == 1:
        raise ValueError(f"{argument}={shown(value)}: give a number above 0 and below 1")
    return float(value)


line = partial(text, empty=True)
at_least_zero = partial(number, least=0)
seed = partial(whole, least=SEEDS.start, most=SEEDS.stop - 1)
model = instance_of("workbench.models:Model")
sites = site_names

ARGUMENTS: dict[str, Check] = {
    "model": model,
    "seeds": seeds,
    "num_inference_steps": count,
    "guidance_scale": partial(number, least=-1e6, most=1e6),  # at most 1 is without guidance
    "guidance_rescale": partial(number, least=0, most=1),
    "height": count,
    "width": count,
    "max_sequence_length": partial(count, most=512),
    "batch_size": count,
    "workers": count,
    "resamples": partial(count, most=10**6),
    "permutations": partial(count, most=10**6),
    "level": level,
    "prompt": line,
    "subject": said,
    "seed": seed,
    "title": line,
    "path": user_path,
    "folder": store,
    "executor": executor,
    "record_to": folder_here,
    "concept": instance_of("workbench.steering.experiment:Concept"),
    "edit": instance_of("workbench.edit.low_rank:Edit"),
    "ax": instance_of("matplotlib.axes:Axes"),
    "sites": sites,
    "templates": strings,
    "over": strings,
    "metric": word,
    **dict.fromkeys(("progress", "verify", "base", "check", "unit", "keep_norm", "average", "null_text"), flag),
    **dict.fromkeys(("per_head", "every_site", "safety_checker", "together", "joint", "reuse", "timed"), flag),
}


@overload
def checked(function: Callable[Given, Returned], /) -> Callable[Given, Returned]: ...
@overload
def checked(**checks: Check) -> Callable[[Callable[Given, Returned]], Callable[Given, Returned]]: ...
def checked(function: Any = None, /, **checks: Check) -> Any:
    """A function whose arguments are checked by `ARGUMENTS`, and by what is given here by name."""
    if function is None:
        return lambda wrapped: checked_by(wrapped, checks)
    return checked_by(function, checks)


def checked_by(function: Callable, checks: Mapping[str, Check]) -> Callable:
    """The function, with the checks of its arguments before it."""
    own = signature(function)
    if unknown := set(checks) - set(own.parameters):
        raise TypeError(f"{function.__qualname__} has no arguments {sorted(unknown)} to check")
    found = {name: checks.get(name, ARGUMENTS.get(name)) for name in own.parameters}
    wanted = {name: check for name, check in found.items() if check is not None}

    @wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        try:
            bound = own.bind(*args, **keywords)
        except TypeError:
            raise TypeError(misfit(function.__qualname__, own, args, keywords)) from None
        for name, value in bound.arguments.items():
            if name in wanted and value is not own.parameters[name].default:
                bound.arguments[name] = wanted[name](value, name)
        return function(*bound.args, **bound.kwargs)

    return call


def misfit(name: str, own: Signature, args: tuple, keywords: Mapping[str, Any]) -> str:
    """Why a call does not fit a function, and how it is called."""
    parameters = own.parameters
    unknown = [key for key in keywords if key not in parameters]
    positional = [each.name for each in parameters.values() if each.kind is not Parameter.KEYWORD_ONLY]
    required = [each for each in parameters.values() if each.default is Parameter.empty and each.kind not in STARS]
    needed = [each.name for each in required if each.name != "self"]
    missing = [each for each in needed if each not in keywords and each not in positional[: len(args)]]
    how = f"it is called as {written(name, own)}"
    if unknown:
        near = meant(unknown[0], [key for key in parameters if key not in ("self", "cls")])
        return f"{name}({unknown[0]}=...): there is no such argument{f'; did you mean {near}=?' if near else ''}; {how}"
    if len(args) > len(positional):
        extra = ", ".join(shown(each, 30) for each in args[len(positional) :])
        return f"{name}: {extra} stands where no argument does; give the ones behind {positional[-1]} by name: {how}"
    if missing:
        return f"{name}: {', '.join(f'{each}=' for each in missing)} is missing; {how}"
    return f"{name}: an argument is given twice, by place and by name; {how}"


def meant(given: str, known: Iterable[str]) -> str | None:
    """Which of some names another one was meant for, if any."""
    names = list(known)
    inside = [each for each in names if min(len(given), len(each)) > 3 and (given in each or each in given)]
    return next(iter([*inside, *get_close_matches(given, names, 1, 0.6)]), None)


def written(name: str, own: Signature) -> str:
    """How a function is called, without types."""
    parts, starred = [], False
    for each in own.parameters.values():
        if each.name in ("self", "cls"):
            continue
        if each.kind is Parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        mark = STARS.get(each.kind, "")
        starred |= each.kind is Parameter.VAR_POSITIONAL
        parts.append(f"{mark}{each.name}" + ("" if each.default is Parameter.empty else f"={shown(each.default, 30)}"))
    return f"{name}({', '.join(parts)})"


def fit(spec: Any, **checks: Check):
    """Check the fields of a frozen dataclass as `checked` does arguments, and keep them in the form that the checks return."""
    for name, field in spec.__dataclass_fields__.items():
        check, value = checks.get(name, ARGUMENTS.get(name)), getattr(spec, name)
        if check is not None and not (value is None and field.default is None):
            object.__setattr__(spec, name, check(value, name))


def warn(message: str):
    """Warn at the line outside the package that led here."""
    frame: FrameType | None = sys._getframe(1)
    depth = 1
    while frame is not None and frame.f_code.co_filename.startswith((PACKAGE, CONTEXTLIB)):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth + 1)
