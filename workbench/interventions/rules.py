"""Rules: what is done to a value, one class each, which says what it needs and checks its own shapes before a run.

A rule is data, and equal ones compare equal. `apply` is pure: it is given the rows of one world (row, ...axes; pictures as
(row, pixel, channel)) and what the rule asked for, and returns a tensor of that shape. Which entries (tokens, heads,
channels) the result is written to is the engine's part.
"""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from einops import rearrange

from workbench.arguments import at_least_zero, fit, function, numbers
from workbench.blend import region
from workbench.families.base import IMAGE, Site
from workbench.inputs import choice, number, plain, shown, text
from workbench.schema import array, array_of_base64, site_names, wholes


@dataclass(frozen=True, repr=False)
class Array:
    """A tensor as a plain value: its shape, and its numbers as float32 in base64."""

    shape: tuple[int, ...]
    data: str

    def __post_init__(self):
        array_of_base64(self.shape, self.data, "Array")
        object.__setattr__(self, "shape", tuple(self.shape))

    @classmethod
    def of(cls, values, argument: str = "values") -> "Array":
        """From anything numpy takes, or a tensor; argument: whose value it is, for errors."""
        if isinstance(values, cls):
            return values
        held = array(values, argument).numpy().astype("<f4")
        return cls(tuple(held.shape), b64encode(held.tobytes()).decode())

    @cached_property
    def tensor(self) -> torch.Tensor:
        return torch.frombuffer(bytearray(b64decode(self.data)), dtype=torch.float32).reshape(self.shape)

    def __repr__(self):
        return f"Array({' x '.join(map(str, self.shape))}, {zlib.crc32(self.data.encode()):08x})"


@dataclass(frozen=True)
class Context:
    """What a rule is told besides the value.

    site: where it acts. source: the value (row, ...) of the world that it reads. given: what the site's module is given (row, ...).
    other: what the site is for the prompt that the rule names (row, ...). own_maps, source_maps: sums of the attention maps that it
    asked for, of both worlds (row, pixel, token).
    """

    site: Site
    source: torch.Tensor | None = None
    given: torch.Tensor | None = None
    other: torch.Tensor | None = None
    own_maps: torch.Tensor | None = None
    source_maps: torch.Tensor | None = None


class Rule:
    """What is done to a value. Subclasses are frozen dataclasses; their fields are what JSON holds."""

    takes_input: ClassVar[bool] = False
    """Whether it needs what the site's module is given."""
    rowwise: ClassVar[bool] = False
    """Whether each row is changed by itself, so that those of several worlds may be given at once."""
    written: ClassVar[bool] = True
    """Whether it can be written as JSON."""

    @property
    def source_world(self) -> str | None:
        """The other world that it reads, if any: its field `world`."""
        return None

    def reading(self, world: str) -> Self:
        """The same rule, which reads a world of another name."""
        return replace(self, world=world)  # type: ignore[type-var, call-arg]

    @property
    def other_prompt(self) -> str | None:
        """The prompt whose value at the site it needs, if any."""
        return None

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the attention probabilities whose sum over the steps so far it needs."""
        return ()

    def check(self, site: Site, pipeline):
        """Raise ValueError, in words that follow "RULE at SITE in world WORLD: ", where it cannot act on a site."""

    def apply(self, value: torch.Tensor, context: Context) -> torch.Tensor:
        """What it makes of a value (row, ...)."""
        raise TypeError(f"{type(self).__name__} defines no apply(value, context)")


def _from_world(value: str, argument: str) -> str:
    """The name of another world of the run."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"from_world={shown(value)}: give the name of a world of the run")
    return value


def _function(value: Any, argument: str) -> Callable:
    """A function of the value."""
    try:
        return function(value, argument)
    except ValueError:
        raise ValueError(f"apply({argument}={shown(value)}): give a function of the value") from None


def _vectors(value: Any, argument: str) -> Array:
    """Numbers with at least one axis."""
    if not (found := Array.of(value, argument)).shape:
        raise ValueError(f"{argument}={shown(value)}: give numbers with an axis, such as (channel,)")
    return found


def _matrix(value: Any, argument: str) -> Array:
    """Numbers with two axes."""
    if len((found := Array.of(value, argument)).shape) != 2:
        raise ValueError(f"{argument}= has shape {found.shape}: give a matrix")
    return found


def _share_of_each(value: Any, argument: str) -> float | tuple[float, ...]:
    """A number, or one for each token."""
    found = numbers(value, argument)
    return found if isinstance(plain(value), (list, tuple)) else found[0]


@dataclass(frozen=True)
class Restore(Rule):
    """The value that another world of the run has at this site."""

    world: str

    def __post_init__(self):
        fit(self, world=_from_world)

    @property
    def source_world(self):
        return self.world

    def apply(self, value, context):
        return context.source


@dataclass(frozen=True)
class AddNoise(Rule):
    """Gaussian noise of standard deviation sigma; `seed` is the draw, the same for all images."""

    sigma: float
    seed: int = 0

    def __post_init__(self):
        fit(self, sigma=at_least_zero)

    def apply(self, value, context):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{context.site.name} {self.seed}".encode()))
        return value + self.sigma * torch.randn(value.shape[1:], generator=generator).to(value)


@dataclass(frozen=True)
class ReplacePrompt(Rule):
    """What the site would be given for another prompt (LocoGen; Basu et al. 2024, arXiv 2405.01008)."""

    prompt: str

    def __post_init__(self):
        fit(self)

    @property
    def other_prompt(self):
        return self.prompt

    def check(self, site, pipeline):
        if not site.from_text:
            raise ValueError(
                "replace_prompt works at cross-attention's context, k and v sites, at a transformer's context and at a pooled "
                "vector, which the text alone decides"
            )

    def apply(self, value, context):
        return context.other.expand_as(value)


class _Directed(Rule):
    """What rules along a direction share: its channels, and tokens if it has them, are the site's."""

    direction: Array

    def check(self, site, pipeline):
        shape = self.direction.shape
        if "channel" not in site.axes:
            raise ValueError(f"the site's axes are {site.axes}, without channels to steer; name other sites")
        if len(shape) not in (1, 2):
            raise ValueError(f"its direction has the shape {shape}; give (channel,) or (token, channel)")
        if shape[-1] != (channels := site.axis("channel")):
            raise ValueError(f"it was made for {shape[-1]} channels, the site has {channels}")
        if len(shape) == 2 and ("token" not in site.axes or shape[0] != site.axis("token")):
            raise ValueError(
                f"it was made for {shape[0]} tokens, the site's axes are {dict(zip(site.axes[1:], site.sizes))}; "
                'make the direction for this model, with pool="positions"'
            )


@dataclass(frozen=True)
class Steer(_Directed):
    """x + alpha * direction, a number per channel or (token, channel); with `keep_norm`, rescaled to the norm of x."""

    direction: Array
    alpha: float = 1.0
    keep_norm: bool = False

    def __post_init__(self):
        fit(self, direction=_vectors, alpha=number)

    def apply(self, value, context):
        return _at_norm(value + self.alpha * self.direction.tensor.to(value), value if self.keep_norm else None)


@dataclass(frozen=True)
class Remove(_Directed):
    """x - beta * relu(<x, v>) * v, v the direction at unit norm: only what points along it is taken away (CASteer)."""

    direction: Array
    beta: float = 1.0
    keep_norm: bool = False

    def __post_init__(self):
        fit(self, direction=_vectors, beta=number)

    def apply(self, value, context):
        v = F.normalize(self.direction.tensor.to(value), dim=-1)
        along = (value * v).sum(-1, keepdim=True).relu()
        return _at_norm(value - self.beta * along * v, value if self.keep_norm else None)


@dataclass(frozen=True)
class Ablate(Rule):
    """Zero; the mean over a named axis; or, to resample, the value of another world.

    over: the axis of the mean; left out, the site's tokens or pixels (of a picture, all of them), where it has one such axis.
    """

    to: str = "zero"
    world: str | None = None
    over: str | None = None

    def __post_init__(self):
        fit(self, to=partial(choice, options=("zero", "mean", "resample")), world=_from_world, over=text)
        if (self.to == "resample") != (self.world is not None):
            raise ValueError(
                f'ablate(to={self.to!r}, world={self.world!r}): to may be "zero", "mean" or "resample", the last with a world'
            )
        if self.over is not None and self.to != "mean":
            raise ValueError(
                f"ablate(to={self.to!r}, over={self.over!r}): only a mean goes over an axis; leave over out"
            )

    @property
    def source_world(self):
        return self.world

    def _axis(self, site: Site) -> int:
        axes = _flat_axes(site)
        if self.over is not None:
            wanted = "pixel" if site.axes == IMAGE and self.over in ("y", "x") else self.over
            if wanted not in axes[1:]:
                raise ValueError(f"over={self.over!r}, but the site's axes are {site.axes[1:]}; name one of them")
            return axes.index(wanted)
        positions = [axis for axis in axes if axis in ("token", "pixel", "key")]
        if len(positions) != 1:
            raise ValueError(
                f'to="mean" over which axis? The site has {site.axes[1:]}; give over="token", for instance'
            )
        return axes.index(positions[0])

    def check(self, site, pipeline):
        if self.to == "mean":
            self._axis(site)

    def apply(self, value, context):
        if self.to == "resample":
            return context.source
        if self.to == "zero":
            return torch.zeros_like(value)
        return value.mean(dim=self._axis(context.site), keepdim=True).expand_as(value)


@dataclass(frozen=True)
class Scale(Rule):
    """factor * x."""

    factor: float

    def __post_init__(self):
        fit(self, factor=number)

    def apply(self, value, context):
        return self.factor * value


@dataclass(frozen=True)
class MixAttention(Rule):
    """alpha * (source's probabilities @ mapper) + (1 - alpha) * own (Hertz et al. 2022, section 3.2).

    mapper: (source token, own token), the identity when left out. alpha: one number, or one per token.
    """

    world: str
    alpha: float | tuple[float, ...] = 1.0
    mapper: Array | None = None

    def __post_init__(self):
        fit(self, world=_from_world, alpha=_share_of_each, mapper=_matrix)

    @property
    def source_world(self):
        return self.world

    def check(self, site, pipeline):
        if site.axes[1] != "head":
            raise ValueError("mix_attention works at probs sites")
        keys = site.sizes[-1]
        if isinstance(self.alpha, tuple) and len(self.alpha) != keys:
            raise ValueError(
                f"alpha= has {len(self.alpha)} numbers, the site {keys} {site.axes[-1]}s; give one for each, or one number"
            )
        if self.mapper is not None and self.mapper.shape != (keys, keys):
            raise ValueError(
                f"mapper= has the shape {self.mapper.shape}, the site needs {(keys, keys)}: (source token, own token)"
            )

    def apply(self, value, context):
        alpha = torch.tensor(self.alpha, dtype=value.dtype, device=value.device)
        mixed = context.source if self.mapper is None else context.source @ self.mapper.tensor.to(value)
        return alpha * mixed + (1 - alpha) * value


@dataclass(frozen=True)
class SetTo(Rule):
    """What is given: values over the site's axes behind the row."""

    values: Array

    def __post_init__(self):
        fit(self, values=Array.of)

    def check(self, site, pipeline):
        if self.values.shape != site.sizes:
            raise ValueError(
                f"it was given values of shape {self.values.shape}, the site's axes behind the row are {site.axes[1:]} of {site.sizes}"
            )

    def apply(self, value, context):
        values = self.values.tensor
        values = rearrange(values, "c y x -> (y x) c") if context.site.axes == IMAGE else values
        return values.to(value).expand_as(value)


@dataclass(frozen=True)
class BlendLatents(Rule):
    """The source's latents wherever neither world's words look (Hertz et al. 2022, section 3.2, "Local Editing").

    maps: the cross-attention probabilities, all of one resolution, whose mean over layers, heads and the steps so far shows
    where. own, source: positions of each world's words; own_less, source_less: of words whose regions are taken away again.
    threshold: of a region, as a share of its map's maximum. See `workbench.blend`.
    """

    world: str
    sites: tuple[str, ...]
    own: tuple[int, ...]
    source: tuple[int, ...]
    own_less: tuple[int, ...] = ()
    source_less: tuple[int, ...] = ()
    threshold: float = 0.3
    threshold_less: float = 0.3

    def __post_init__(self):
        positions = dict.fromkeys(("own", "source"), wholes)
        less = dict.fromkeys(("own_less", "source_less"), _wholes_or_none)
        maps = lambda value, argument: site_names(value, "maps")
        fit(self, world=_from_world, sites=maps, threshold=number, threshold_less=number, **positions, **less)

    @property
    def source_world(self):
        return self.world

    @property
    def maps(self):
        return self.sites

    def check(self, site, pipeline):
        if site.part != "latents":
            raise ValueError("blend_latents works at the site latents")

    def apply(self, value, context):
        grid, maps = context.site.grid, (context.own_maps, context.source_maps)
        kept = [region(m, words, self.threshold, grid, pool=True) for m, words in zip(maps, (self.own, self.source))]
        inside = kept[0] | kept[1]
        for m, words in zip(maps, (self.own_less, self.source_less)):
            if words:
                inside &= ~region(m, words, self.threshold_less, grid, pool=False)
        return torch.where(rearrange(inside, "row y x -> row (y x) 1"), value, context.source)


@dataclass(frozen=True)
class MapInput(Rule):
    """y + b @ a @ x: what a linear layer with weight W gives x when its weight is W + b @ a, the preview of an edit.

    b: (out, rank). a: (rank, in). For an embedding, x is the token's number as one-hot vector.
    """

    b: Array
    a: Array

    takes_input: ClassVar[bool] = True
    rowwise: ClassVar[bool] = True

    def __post_init__(self):
        fit(self, b=_matrix, a=_matrix)
        if self.b.shape[1] != self.a.shape[0]:
            raise ValueError(f"b is {_by(self.b.shape)} and a {_by(self.a.shape)}: their ranks must agree")

    def check(self, site, pipeline):
        from workbench.sites import weight_of

        b, a, weight = self.b.shape, self.a.shape, tuple(weight_of(pipeline, site).shape)
        if (b[0], a[1]) != weight:
            raise ValueError(f"b is {_by(b)} and a {_by(a)}, the site's weight {_by(weight)}")

    def apply(self, value, context):
        b, a = self.b.tensor.to(value), self.a.tensor.to(value)
        given = context.given
        return value + (b[given] @ a if not given.is_floating_point() else given @ a.T @ b.T)


@dataclass(frozen=True)
class Apply(Rule):
    """A user's own function of the value at a site, (row, ...the site's axes), and, where one is named, of another world's value there.

    It must return a tensor of the value's shape. It has no JSON.
    """

    function: Callable[..., torch.Tensor]
    world: str | None = None

    written: ClassVar[bool] = False

    def __post_init__(self):
        fit(self, function=_function, world=_from_world)

    @property
    def source_world(self):
        return self.world

    def apply(self, value, context):
        site = context.site
        image = site.axes == IMAGE
        # copies: what a function writes in place must reach neither the entries that are masked nor another world
        values = [each.clone() for each in ([value] if context.source is None else [value, context.source])]
        if image:
            values = [rearrange(each, "row (y x) c -> row c y x", y=site.grid[0]) for each in values]
        result = self.function(*values)
        if not isinstance(result, torch.Tensor) or result.shape != values[0].shape:
            got = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise ValueError(
                f"apply at {site.name}: the function returned {got}, the value is {tuple(values[0].shape)} with the axes {site.axes}"
            )
        return rearrange(result, "row c y x -> row (y x) c") if image else result


RULES = {
    rule.__name__: rule
    for rule in (
        Restore,
        AddNoise,
        ReplacePrompt,
        Steer,
        Remove,
        Ablate,
        Scale,
        MixAttention,
        SetTo,
        BlendLatents,
        MapInput,
        Apply,
    )
}


def _wholes_or_none(value: Any, argument: str) -> tuple[int, ...]:
    """Whole numbers, none at all too."""
    return () if isinstance(value, (list, tuple)) and not value else wholes(value, argument)


def _flat_axes(site: Site) -> tuple[str, ...]:
    """The axes of a value as rules are given it: pictures as rows of pixels."""
    return ("row", "pixel", "channel") if site.axes == IMAGE else site.axes


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _at_norm(moved: torch.Tensor, value: torch.Tensor | None) -> torch.Tensor:
    """Rescaled to the norms of a value, where one is given."""
    if value is None:
        return moved
    old, new = (x.norm(dim=-1, keepdim=True) for x in (value, moved))
    return moved * torch.where(new > 0, old / new, 1.0)
