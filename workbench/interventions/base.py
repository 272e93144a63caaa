"""Interventions and worlds as values: one rule at some sites, and a prompt with such rules."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from html import escape
from typing import Literal

from workbench import schema
from workbench.arguments import fit
from workbench.inputs import choice, shown
from workbench.interventions.rules import RULES, Array, Rule
from workbench.schema import tokens, wholes
from workbench.steps import Window, as_steps

Rows = Literal["cond", "uncond", "both"]
ROWS = ("cond", "uncond", "both")


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
        if not isinstance(self.rule, Rule):
            raise ValueError(f"rule={shown(self.rule)}: give one of {', '.join(RULES)}")
        axis = partial(wholes, least=0)
        fit(self, tokens=tokens, steps=as_steps, heads=axis, channels=axis, rows=partial(choice, options=ROWS))

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
                raise ValueError(
                    f"World({argument}={shown(value)}): give a string, as in World('edited', 'a zebra', [...])"
                )
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
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping)) and not hasattr(given, "ndim"):
        for each in given:
            yield from _interventions(each)
    else:
        raise ValueError(
            f"World(interventions=...) holds {shown(given)}; give interventions, such as wb.scale('unet.mid.cross', 0.0), a direction or "
            "an edit"
        )


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
    needed = [field.name for field in fields(kind) if field.default is MISSING]
    optional = [field.name for field in fields(kind) if field.default is not MISSING]
    return kind(**{key: _value(item) for key, item in schema.fields(held, what, needed, optional).items()})


def _value(item):
    if isinstance(item, list):
        return tuple(_value(each) for each in item)
    if not isinstance(item, dict):
        return item
    if item.keys() == {"shape", "data"}:
        return Array(tuple(schema.listed(item["shape"], "Array: shape")), item["data"])
    if item.keys() == {"window"}:
        ends = schema.listed(item["window"], "window")
        if len(ends) != 2:
            raise ValueError(f"window={shown(ends)}: give two shares of the run, as [0.0, 0.5]")
        return Window(*ends)
    if "rule" in item:
        return _made(Intervention, item, "an intervention")
    name = item.get("name")
    if not isinstance(name, str) or name not in RULES or not RULES[name].written:
        raise ValueError(
            f"rule {shown(name)} is unknown; known are {', '.join(name for name, rule in RULES.items() if rule.written)}"
        )
    return _made(RULES[name], {key: each for key, each in item.items() if key != "name"}, f"rule {name}")


def _read(text: str, kind: type):
    what = f"{kind.__name__}.from_json"
    held = schema.parsed(text, what)
    try:
        return _made(kind, held, what)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(what) else f"{what}: {error}") from None
