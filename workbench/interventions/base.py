"""Interventions and worlds as values: one rule at some sites, and a prompt with such rules."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from html import escape
from typing import Literal

from workbench.interventions.rules import RULES, Array, Rule

Rows = Literal["cond", "uncond", "both"]
ROWS = ("cond", "uncond", "both")
LONGEST_JSON = 64 * 2**20  # characters; a direction per token of a large model takes a few million


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
        ends = (self.start, self.stop)
        if (
            any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in ends)
            or not 0 <= self.start < self.stop <= 1
        ):
            raise ValueError(
                f"window({self.start!r}, {self.stop!r}): shares of the run go from 0.0 to 1.0, the smaller first"
            )
        object.__setattr__(self, "start", float(self.start))
        object.__setattr__(self, "stop", float(self.stop))

    def __str__(self):
        """How a window of the denoising is called: "0-0.5"."""
        return f"{self.start:g}-{self.stop:g}"

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


Steps = int | Sequence[int] | Window | None


def window(start: float, stop: float) -> Window:
    """A share of a run's steps: `window(0.0, 0.5)` is the first half. Wherever `steps=` is asked, whole numbers are steps.

    >>> wb.window(0.0, 0.5).steps(10)
    (0, 1, 2, 3, 4)
    >>> quiet = wb.scale("unet.mid.cross", 0.0, steps=wb.window(0.0, 0.5))
    """
    return Window(start, stop)


def as_steps(steps: Steps, argument: str = "steps") -> tuple[int, ...] | Window | None:
    """Steps in the one form in which they are kept: whole numbers in order, or a window; None for all.

    Raises ValueError for anything else, a pair of shares among it, with the call that says it.
    """
    if steps is None or isinstance(steps, Window):
        return steps
    given = (steps,) if not isinstance(steps, (Sequence, range)) and not hasattr(steps, "__iter__") else tuple(steps)
    if isinstance(steps, str) or not given:
        raise ValueError(
            f"{argument}={steps!r}: give whole numbers, such as {argument}=3 or range(0, 5), or wb.window(0.0, 0.5)"
        )
    if any(isinstance(step, float) for step in given):
        low, high = (given[0], given[-1]) if len(given) == 2 else (0.0, 0.5)
        raise ValueError(
            f"{argument}={steps!r}: whole numbers are steps; for a share of the run write {argument}=wb.window({low}, {high})"
        )
    numbers = []
    for step in given:
        if isinstance(step, bool) or not hasattr(step, "__index__"):
            raise ValueError(
                f"{argument}={steps!r}: {step!r} is no step; give whole numbers from 0 on, or wb.window(0.0, 0.5)"
            )
        numbers.append(step.__index__())
    if min(numbers) < 0:
        raise ValueError(f"{argument}={steps!r}: steps are counted from 0")
    return tuple(sorted(set(numbers)))


@dataclass(frozen=True)
class Intervention:
    """One rule at some sites. Make it with `restore`, `add_noise`, `replace_prompt`, `steer`, `remove`, `ablate`, `scale`,
    `mix_attention`, `set_to`, `blend_latents`, `map_input` or `apply`.

    sites: names or globs. tokens: see `workbench.text.Tokens.positions`. steps: numbers of denoising steps, or a `window`. heads,
    channels: numbers along these axes. rows: "cond", "uncond" or "both" halves of the guided batch (in the text encoder: its calls
    for the prompt and for the negative prompt); left out, the conditional half for what comes from the text and both for the
    denoiser's own states. In the unconditional half tokens are those of the negative prompt.

    >>> wb.scale("unet.mid.cross", 0.5, steps=[0])
    Intervention(sites=('unet.mid.cross',), rule=Scale(factor=0.5), tokens=None, steps=(0,), heads=None, rows=None, channels=None)
    """

    sites: tuple[str, ...]
    rule: Rule
    tokens: str | tuple[int, ...] | None = None
    steps: tuple[int, ...] | Window | None = None
    heads: tuple[int, ...] | None = None
    rows: Rows | None = None
    channels: tuple[int, ...] | None = None

    def __post_init__(self):
        names = (
            (self.sites,) if isinstance(self.sites, str) else tuple(getattr(site, "name", site) for site in self.sites)
        )
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"sites={self.sites!r}: give a name or a glob, or several, such as 'unet.*.cross'")
        if not isinstance(self.rule, Rule):
            raise ValueError(f"rule={self.rule!r}: give one of {', '.join(RULES)}")
        if self.rows not in (None, *ROWS):
            raise ValueError(f'rows={self.rows!r}: may be "cond", "uncond" or "both"')
        object.__setattr__(self, "sites", names)
        object.__setattr__(self, "steps", as_steps(self.steps))
        for name in ("tokens", "heads", "channels"):
            if not (name == "tokens" and isinstance(self.tokens, str)):
                object.__setattr__(self, name, _numbers(name, getattr(self, name)))

    def to_json(self) -> str:
        """The intervention as JSON; ValueError for a function of the user's own.

        >>> wb.scale("unet.mid.cross", 0.5, steps=[0]).to_json()[:64]
        '{"sites": ["unet.mid.cross"], "rule": {"name": "Scale", "factor"'
        """
        return json.dumps(_plain(self))

    @classmethod
    def from_json(cls, text: str) -> "Intervention":
        """What `to_json` wrote; ValueError, with the reason, for anything else.

        >>> text = wb.scale("unet.mid.cross", 0.5).to_json()
        >>> wb.Intervention.from_json(text).sites
        ('unet.mid.cross',)
        """
        return _read(text, cls)


@dataclass(frozen=True)
class World:
    """A prompt with interventions, by name.

    interventions: one or several; a `Direction` stands for its `.steer()`, an `Edit` for its `.preview()`. subject: the phrase that
    tokens="subject" means. negative_prompt: what guidance leads away from; the pipeline's own default
    when left out.

    >>> noise = wb.add_noise("text_encoder.embedding", 1.0, tokens="subject")
    >>> world = wb.World("corrupted", "a zebra in the savanna", noise, subject="zebra")
    >>> [type(intervention.rule).__name__ for intervention in world.interventions]
    ['AddNoise']
    >>> wb.World("edited", "a zebra", edit).interventions == edit.preview()
    True
    """

    name: str
    prompt: str
    interventions: Sequence[Intervention] = ()
    subject: str | None = None
    negative_prompt: str | None = None

    def __post_init__(self):
        for argument in ("name", "prompt", "subject", "negative_prompt"):
            value = getattr(self, argument)
            if not isinstance(value, str) and not (value is None and argument in ("subject", "negative_prompt")):
                raise ValueError(f"World({argument}={value!r}): give a string, as in World('edited', 'a zebra', [...])")
        object.__setattr__(self, "interventions", tuple(_interventions(self.interventions)))

    def _repr_html_(self):
        about = {"subject": self.subject, "negative prompt": self.negative_prompt}
        lines = [f"{name}: {text!r}" for name, text in about.items() if text is not None]
        lines += [repr(intervention) for intervention in self.interventions]
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        return f"<p><b>{escape(self.name)}</b>: {escape(self.prompt)}</p><ul>{items}</ul>"

    def to_json(self) -> str:
        """The world as JSON; ValueError for interventions that are functions.

        >>> wb.World("plain", "a zebra").to_json()
        '{"name": "plain", "prompt": "a zebra", "interventions": [], "subject": null, "negative_prompt": null}'
        """
        return json.dumps(_plain(self))

    @classmethod
    def from_json(cls, text: str) -> "World":
        """What `to_json` wrote; ValueError, with the reason, for anything else.

        >>> world = wb.World("off", "a zebra", wb.scale("unet.mid.cross", 0.0))
        >>> wb.World.from_json(world.to_json()) == world
        True
        """
        return _read(text, cls)


def _interventions(given) -> Iterator[Intervention]:
    """Interventions of whatever holds them: one, several, what `.steer()` or `.preview()` returns, a direction or an edit itself."""
    if isinstance(given, Intervention):
        yield given
    elif hasattr(given, "as_interventions"):
        yield from given.as_interventions()
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping)):
        for each in given:
            yield from _interventions(each)
    else:
        raise ValueError(
            f"World(interventions=...) holds {given!r}; give interventions, such as wb.scale('unet.mid.cross', 0.0), a direction or an edit"
        )


def _numbers(name: str, given) -> tuple[int, ...] | None:
    """Whole numbers of an axis; ValueError names the argument."""
    if given is None:
        return None
    numbers = (given,) if hasattr(given, "__index__") else given
    try:
        chosen = tuple(number.__index__() for number in numbers if not isinstance(number, bool))
    except (AttributeError, TypeError):
        chosen = ()
    if not chosen or len(chosen) != len(tuple(numbers)):
        raise ValueError(
            f"{name}={given!r}: give whole numbers, at least one{', or words' if name == 'tokens' else ''}"
        )
    return chosen


def _plain(value):
    """As JSON holds it: rules by their class's name."""
    if isinstance(value, Rule) and is_dataclass(value):
        if not value.written:
            raise ValueError(f"{type(value).__name__} holds a function, which has no JSON; write it as a rule that has")
        return {"name": type(value).__name__} | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Window):
        return {"window": [value.start, value.stop]}
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _made(kind: type, held, what: str):
    """An object of a dataclass from its plain form, every field known."""
    if not isinstance(held, Mapping):
        raise ValueError(
            f"{what} is {type(held).__name__}, expected an object with {', '.join(f.name for f in fields(kind))}"
        )
    if unknown := sorted(set(held) - {field.name for field in fields(kind)}):
        raise ValueError(f"{what} has the fields {unknown}, known are {', '.join(f.name for f in fields(kind))}")
    try:
        return kind(**{key: _value(item) for key, item in held.items()})
    except TypeError as error:
        raise ValueError(f"{what} does not hold what a {kind.__name__} needs ({error})") from None


def _value(item):
    if isinstance(item, list):
        return tuple(_value(each) for each in item)
    if not isinstance(item, dict):
        return item
    if item.keys() == {"shape", "data"}:
        return Array(tuple(item["shape"]), item["data"])
    if item.keys() == {"window"}:
        return Window(*item["window"])
    if "rule" in item:
        return _made(Intervention, item, "intervention")
    name = item.get("name")
    if name not in RULES or not RULES[name].written:
        raise ValueError(
            f"rule {name!r} is unknown; known are {', '.join(name for name, rule in RULES.items() if rule.written)}"
        )
    return _made(RULES[name], {key: each for key, each in item.items() if key != "name"}, f"rule {name}")


def _read(text: str, kind: type):
    if len(text) > LONGEST_JSON:
        raise ValueError(f"{kind.__name__}.from_json: {len(text)} characters, at most {LONGEST_JSON} are read")
    try:
        return _made(kind, json.loads(text), kind.__name__)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{kind.__name__}.from_json: not the JSON of a {kind.__name__} ({error})") from None
