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
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from workbench.sites import LATENTS


@dataclass(frozen=True, repr=False)
class Array:
    """A tensor as a plain value: its shape, and its numbers as float32 in base64."""

    shape: tuple[int, ...]
    data: str

    @classmethod
    def of(cls, values) -> "Array":
        """From anything numpy takes, or a tensor."""
        values = (
            values.detach().cpu().float().numpy()
            if isinstance(values, torch.Tensor)
            else np.asarray(values, np.float32)
        )
        return cls(values.shape, b64encode(np.ascontiguousarray(values).tobytes()).decode())

    @cached_property
    def tensor(self) -> torch.Tensor:
        return torch.frombuffer(bytearray(b64decode(self.data)), dtype=torch.float32).reshape(self.shape)

    def __repr__(self):
        return f"Array({' x '.join(map(str, self.shape))}, {zlib.crc32(self.data.encode()):08x})"


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
    """x + alpha * direction, a number per channel or (token, channel); with `keep_norm`, rescaled to the norm of x."""

    direction: Array
    alpha: float = 1.0
    keep_norm: bool = False


@dataclass(frozen=True)
class Remove:
    """x - beta * relu(<x, v>) * v, v the direction at unit norm: only what points along it is taken away (CASteer)."""

    direction: Array
    beta: float = 1.0
    keep_norm: bool = False


@dataclass(frozen=True)
class Ablate:
    """Zero; the mean over the site's tokens or pixels; or, to resample, the value of another world."""

    to: str = "zero"
    world: str | None = None

    def __post_init__(self):
        if self.to not in ("zero", "mean", "resample") or (self.to == "resample") != (self.world is not None):
            raise ValueError(
                f'ablate(to={self.to!r}, world={self.world!r}): to may be "zero", "mean" or "resample", the last with a world'
            )


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
    mapper: Array | None = None


@dataclass(frozen=True)
class SetTo:
    """What is given: values over the site's axes behind the row."""

    values: Array


@dataclass(frozen=True)
class BlendLatents:
    """The source's latents wherever neither world's words look (Hertz et al. 2022, section 3.2, "Local Editing").

    maps: the cross-attention probabilities, all of one resolution, whose mean over layers, heads and the steps so far shows
    where. own, source: positions of each world's words; own_less, source_less: of words whose regions are taken away again.
    threshold: of a region, as a share of its map's maximum. See `workbench.blend`.
    """

    world: str
    maps: tuple[str, ...]
    own: tuple[int, ...]
    source: tuple[int, ...]
    own_less: tuple[int, ...] = ()
    source_less: tuple[int, ...] = ()
    threshold: float = 0.3
    threshold_less: float = 0.3


@dataclass(frozen=True)
class MapInput:
    """y + b @ a @ x: what a linear layer with weight W gives x when its weight is W + b @ a, the preview of an edit.

    b: (out, rank). a: (rank, in). For an embedding, x is the token's number as one-hot vector.
    """

    b: Array
    a: Array


Rule = (
    Restore
    | AddNoise
    | ReplacePrompt
    | Steer
    | Remove
    | Ablate
    | Scale
    | MixAttention
    | SetTo
    | BlendLatents
    | MapInput
)
RULES = {rule.__name__: rule for rule in Rule.__args__}


@dataclass(frozen=True)
class Intervention:
    """One rule at some sites. Make it with `restore`, `add_noise`, `replace_prompt`, `steer`, `remove`, `ablate`, `scale`,
    `mix_attention`, `set_to`, `blend_latents` or `map_input`."""

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
        found = {key: _tuples(item) for key, item in value.items()}
        return Array(**found) if found.keys() == {"shape", "data"} else found
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
        interventions = [
            Intervention.from_json(json.dumps(intervention)) for intervention in found.pop("interventions")
        ]
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
    """Add alpha times a direction: a number per channel, or (token, channel). `Direction.steer` makes these from prompts."""
    return _make(sites, Steer(Array.of(direction), float(alpha), keep_norm), **where)


def remove(sites, direction, beta: float = 1.0, *, keep_norm: bool = False, **where) -> Intervention:
    """Take away beta times what points along a direction: 1 leaves nothing of it, 2 turns it round."""
    return _make(sites, Remove(Array.of(direction), float(beta), keep_norm), **where)


def ablate(sites, to: str = "zero", world: str | None = None, **where) -> Intervention:
    """Replace by zero, by the mean over tokens or pixels, or ("resample") by another world's value."""
    return _make(sites, Ablate(to, world), **where)


def scale(sites, factor: float, **where) -> Intervention:
    """Multiply by a factor."""
    return _make(sites, Scale(float(factor)), **where)


def mix_attention(sites, from_world: str, alpha=1.0, mapper=None, **where) -> Intervention:
    """Blend another world's attention probabilities in, at "probs" sites."""
    alpha = float(alpha) if isinstance(alpha, (int, float)) else tuple(float(a) for a in alpha)
    return _make(sites, MixAttention(from_world, alpha, None if mapper is None else Array.of(mapper)), **where)


def set_to(sites, values, **where) -> Intervention:
    """Put given values there: an array over the site's axes behind the row, the same for all images."""
    return _make(sites, SetTo(Array.of(values)), **where)


def blend_latents(
    from_world: str,
    maps,
    own,
    source,
    *,
    own_less=(),
    source_less=(),
    threshold: float = 0.3,
    threshold_less: float = 0.3,
    **where,
) -> Intervention:
    """Keep another world's latents outside the words' regions, at the end of each step; `workbench.LocalBlend` finds the arguments."""
    rule = BlendLatents(
        from_world, tuple(maps), *map(tuple, (own, source, own_less, source_less)), threshold, threshold_less
    )
    return _make(LATENTS, rule, **where)


def map_input(sites, b, a, **where) -> Intervention:
    """Add b @ a @ x, with b (out, rank), a (rank, in) and x the input of the linear layer or embedding that gives the site."""
    return _make(sites, MapInput(Array.of(b), Array.of(a)), **where)


def source_world(rule: Rule) -> str | None:
    """The other world that a rule reads, if any."""
    return getattr(rule, "world", None)


def transform(rule: Rule, value: torch.Tensor, site: str, *, source: torch.Tensor | None = None) -> torch.Tensor:
    """What a rule makes of a value; pure, of the value's shape.

    value: (row, ...). source: the same of the world that the rule reads, what ReplacePrompt's prompt gives, or for
    MapInput the module's input. Which entries a BlendLatents restores is the engine's to know, as it knows tokens and heads.
    """
    number = lambda x: torch.tensor(x, dtype=value.dtype, device=value.device)
    match rule:
        case Restore() | ReplacePrompt() | Ablate(to="resample") | BlendLatents():
            return source.expand_as(value)
        case SetTo(values):
            return values.tensor.to(value).expand_as(value)
        case AddNoise(sigma, seed):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{site} {seed}".encode()))
            return value + sigma * torch.randn(value.shape[1:], generator=generator).to(value)
        case Steer(direction, alpha, keep_norm):
            return _at_norm(value + alpha * direction.tensor.to(value), value if keep_norm else None)
        case Remove(direction, beta, keep_norm):
            v = F.normalize(direction.tensor.to(value), dim=-1)
            along = (value * v).sum(-1, keepdim=True).relu()
            return _at_norm(value - beta * along * v, value if keep_norm else None)
        case Ablate(to="zero"):
            return torch.zeros_like(value)
        case Ablate(to="mean"):
            return value.mean(dim=1, keepdim=True).expand_as(value)
        case Scale(factor):
            return factor * value
        case MixAttention(_, alpha, mapper):
            mixed = source if mapper is None else source @ mapper.tensor.to(value)
            return number(alpha) * mixed + (1 - number(alpha)) * value
        case MapInput(b, a):
            b, a = b.tensor.to(value), a.tensor.to(value)
            of_input = b[source] @ a if not source.is_floating_point() else source @ a.T @ b.T
            return value + of_input


def _at_norm(moved: torch.Tensor, value: torch.Tensor | None) -> torch.Tensor:
    """Rescaled to the norms of a value, where one is given."""
    if value is None:
        return moved
    old, new = (x.norm(dim=-1, keepdim=True) for x in (value, moved))
    return moved * torch.where(new > 0, old / new, 1.0)
