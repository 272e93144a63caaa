"""Interventions: what is changed, where and when, as plain values.

    World("corrupted", "a zebra in the savanna", [add_noise("text_encoder.embedding", 0.1, tokens="subject")], subject="zebra")
    restore("text_encoder.0.attention", "clean", tokens="subject_last")

An intervention is data: printable, comparable, and `to_json` / `from_json` bring it back equal. The engine alone carries
it out. `tokens`: see `workbench.text.Tokens.positions`. `steps`: denoising steps, as a list, a slice, or a pair of
fractions of the run (0.2, 0.6). `heads`: numbers of attention heads. `rows`: "cond", "uncond" or "both" halves of the
guided batch (in the text encoder: its calls for the prompt and for the negative prompt); left out, the conditional half
for what comes from the text and both for the UNet's own states.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Restore:
    """The value that another world of the run has at this site."""

    world: str


@dataclass(frozen=True)
class AddNoise:
    """Gaussian noise of standard deviation sigma; `seed` is the draw, the same for all images."""

    sigma: float
    seed: int = 0


@dataclass(frozen=True)
class ReplacePrompt:
    """What the site would be given for another prompt (LocoGen; Basu et al. 2024, arXiv 2405.01008)."""

    prompt: str


@dataclass(frozen=True)
class Steer:
    """x + alpha * direction, a number per channel; with `keep_norm`, rescaled to the norm of x."""

    direction: tuple[float, ...]
    alpha: float = 1.0
    keep_norm: bool = False


@dataclass(frozen=True)
class Ablate:
    """Zero; the mean over the site's tokens or pixels; or, to resample, the value of another world."""

    to: str = "zero"
    world: str | None = None

    def __post_init__(self):
        if self.to not in ("zero", "mean", "resample") or (self.to == "resample") != (self.world is not None):
            raise ValueError(f'ablate(to={self.to!r}, world={self.world!r}): to may be "zero", "mean" or "resample", the last with a world')


@dataclass(frozen=True)
class Scale:
    """factor * x."""

    factor: float


@dataclass(frozen=True)
class MixAttention:
    """alpha * (source's probabilities @ mapper) + (1 - alpha) * own (Hertz et al. 2022, section 3.2).

    mapper: (source token, own token), the identity when left out. alpha: one number, or one per token.
    """

    world: str
    alpha: float | tuple[float, ...] = 1.0
    mapper: Matrix | None = None


@dataclass(frozen=True)
class MapInput:
    """y + b @ a @ x: what a linear layer with weight W gives x when its weight is W + b @ a, the preview of an edit.

    b: (out, rank). a: (rank, in). For an embedding, x is the token's number as one-hot vector.
    """

    b: Matrix
    a: Matrix


RULES = {rule.__name__: rule for rule in (Restore, AddNoise, ReplacePrompt, Steer, Ablate, Scale, MixAttention, MapInput)}
Rule = Restore | AddNoise | ReplacePrompt | Steer | Ablate | Scale | MixAttention | MapInput


@dataclass(frozen=True)
class Intervention:
    """One rule at some sites. Make it with `restore`, `add_noise`, `replace_prompt`, `steer`, `ablate`, `scale`,
    `mix_attention` or `map_input`."""

    sites: tuple[str, ...]
    rule: Rule
    tokens: str | tuple[int, ...] | None = None
    steps: tuple | None = None
    heads: tuple[int, ...] | None = None
    rows: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"rule": {"name": type(self.rule).__name__} | asdict(self.rule)})

    @classmethod
    def from_json(cls, text: str) -> "Intervention":
        found = _tuples(json.loads(text))
        rule = found.pop("rule")
        return cls(rule=RULES[rule.pop("name")](**rule), **found)


def _tuples(value):
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class World:
    """A prompt with interventions, by name. subject: the phrase that tokens="subject" means."""

    name: str
    prompt: str
    interventions: tuple[Intervention, ...] = ()
    subject: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "interventions", tuple(self.interventions))

    def to_json(self) -> str:
        interventions = [json.loads(intervention.to_json()) for intervention in self.interventions]
        return json.dumps(dict(name=self.name, prompt=self.prompt, interventions=interventions, subject=self.subject))

    @classmethod
    def from_json(cls, text: str) -> "World":
        found = json.loads(text)
        interventions = [Intervention.from_json(json.dumps(intervention)) for intervention in found.pop("interventions")]
        return cls(interventions=interventions, **found)


def _make(sites: str | Sequence, rule: Rule, tokens=None, steps=None, heads=None, rows=None) -> Intervention:
    names = (sites,) if isinstance(sites, str) else tuple(getattr(site, "name", site) for site in sites)
    if rows not in (None, "cond", "uncond", "both"):
        raise ValueError(f'rows={rows!r}: may be "cond", "uncond" or "both"')
    if isinstance(steps, slice):
        steps = ("slice", steps.start, steps.stop, steps.step)
    as_tuple = lambda value: (value,) if isinstance(value, int) else tuple(value)
    return Intervention(
        names,
        rule,
        tokens if tokens is None or isinstance(tokens, str) else as_tuple(tokens),
        None if steps is None else as_tuple(steps),
        None if heads is None else as_tuple(heads),
        rows,
    )


def restore(sites, from_world: str, **where) -> Intervention:
    """Give sites the value that `from_world` has there."""
    return _make(sites, Restore(from_world), **where)


def add_noise(sites, sigma: float, seed: int = 0, **where) -> Intervention:
    """Add Gaussian noise of standard deviation sigma."""
    return _make(sites, AddNoise(float(sigma), seed), **where)


def replace_prompt(sites, prompt: str, **where) -> Intervention:
    """Give "context", "k" or "v" sites of cross-attention, or a "pooled" vector, what they would be for another prompt."""
    return _make(sites, ReplacePrompt(prompt), **where)


def steer(sites, direction, alpha: float = 1.0, *, keep_norm: bool = False, **where) -> Intervention:
    """Add alpha times a direction (one number per channel)."""
    return _make(sites, Steer(tuple(float(x) for x in direction), float(alpha), keep_norm), **where)


def ablate(sites, to: str = "zero", world: str | None = None, **where) -> Intervention:
    """Replace by zero, by the mean over tokens or pixels, or ("resample") by another world's value."""
    return _make(sites, Ablate(to, world), **where)


def scale(sites, factor: float, **where) -> Intervention:
    """Multiply by a factor."""
    return _make(sites, Scale(float(factor)), **where)


def mix_attention(sites, from_world: str, alpha=1.0, mapper=None, **where) -> Intervention:
    """Blend another world's attention probabilities in, at "probs" sites."""
    alpha = float(alpha) if isinstance(alpha, (int, float)) else tuple(float(a) for a in alpha)
    return _make(sites, MixAttention(from_world, alpha, None if mapper is None else _matrix(mapper)), **where)


def map_input(sites, b, a, **where) -> Intervention:
    """Add b @ a @ x, with b (out, rank), a (rank, in) and x the input of the linear layer or embedding that gives the site."""
    return _make(sites, MapInput(_matrix(b), _matrix(a)), **where)


def _matrix(rows) -> Matrix:
    return tuple(tuple(float(x) for x in row) for row in rows)


def source_world(rule: Rule) -> str | None:
    """The other world that a rule reads, if any."""
    return getattr(rule, "world", None)


def transform(rule: Rule, value: torch.Tensor, site: str, *, source: torch.Tensor | None = None) -> torch.Tensor:
    """What a rule makes of a value; pure, of the value's shape.

    value: (row, ...). source: the same of the world that the rule reads, what ReplacePrompt's prompt gives, or for
    MapInput the module's input.
    """
    number = lambda x: torch.tensor(x, dtype=value.dtype, device=value.device)
    match rule:
        case Restore() | ReplacePrompt() | Ablate(to="resample"):
            return source.expand_as(value)
        case AddNoise(sigma, seed):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{site} {seed}".encode()))
            return value + sigma * torch.randn(value.shape[1:], generator=generator).to(value)
        case Steer(direction, alpha, keep_norm):
            moved = value + alpha * number(direction)
            return moved * (value.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)) if keep_norm else moved
        case Ablate(to="zero"):
            return torch.zeros_like(value)
        case Ablate(to="mean"):
            return value.mean(dim=1, keepdim=True).expand_as(value)
        case Scale(factor):
            return factor * value
        case MixAttention(_, alpha, mapper):
            mixed = source if mapper is None else source @ number(mapper)
            return number(alpha) * mixed + (1 - number(alpha)) * value
        case MapInput(b, a):
            of_input = number(b)[source] @ number(a) if not source.is_floating_point() else source @ number(a).T @ number(b).T
            return value + of_input
