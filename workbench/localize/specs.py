"""What localizers are asked, as frozen values; the command line reads them before anything heavy is imported."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from workbench.arguments import Check, at_least_zero, numbers, one_of
from workbench.experiments.spec import Spec
from workbench.inputs import count, flag, shown, strings
from workbench.schema import whole, wholes, words
from workbench.steps import WHOLE, Window, as_windows

OVER = ("head", "channel")  # what may be kept apart
PORTS = {"kv": ("context",), "k": ("k",), "v": ("v",)}  # of cross-attention, by what LocoGen replaces


@dataclass(frozen=True, kw_only=True)
class CorruptionSpec(Spec):
    """How the concept is corrupted, of all that compares a clean world with a corrupted one.

    >>> wb.CorruptionSpec(corruption="zero", draws=1).noise_multiple
    3.0
    """

    corruption: Literal["noise", "replace", "zero"] = "noise"
    """Of the subject's token embeddings: noise, zero, or the prompt set's replacement for its words."""
    noise_multiple: float = 3.0
    """Noise in standard deviations of the embeddings of all subject tokens in the set."""
    draws: int = 3
    """Independent draws of the noise, for each prompt; 1 for the other corruptions."""

    def __post_init__(self):
        super().__post_init__()
        if self.corruption != "noise" and self.draws != 1:
            raise ValueError(f"corruption={self.corruption!r} has nothing random, but draws={self.draws}; give draws=1")

    def _checks(self) -> dict[str, Check]:
        return dict(
            corruption=one_of("noise", "replace", "zero"),
            noise_multiple=at_least_zero,
            draws=count,
        )


@dataclass(frozen=True, kw_only=True)
class TraceSpec(CorruptionSpec):
    """What a causal trace asks.

    >>> spec = wb.TraceSpec(sites=("unet.*.cross",), steps=(wb.window(0.0, 0.5), wb.window(0.5, 1.0)))
    >>> spec.steps
    (Window(start=0.0, stop=0.5), Window(start=0.5, stop=1.0))
    """

    sites: tuple[str, ...] = ("text_encoder*.{attention,mlp,hidden}",)
    """Globs; each site is restored by itself, or with its neighbours (see window)."""
    tokens: tuple[str, ...] = ("subject_last",)
    """Where sites with a token axis are restored, each in turn: "subject", "subject_last", "after_subject", "eos", "padding",
    "all", a word, or, for one prompt, "each" position. Sites without that axis are restored whole."""
    steps: tuple[Window, ...] = (WHOLE,)
    """Windows of the denoising, `wb.window(0.0, 0.5)` or 0-0.5 on the command line, in which sites inside the UNet are restored, each
    in turn."""
    rows: Literal["cond", "uncond", "both"] | None = None
    """Halves of the guided batch; left out, the conditional half for what comes from the text, both inside the UNet."""
    window: int = 1
    """So many neighbours of a kind are restored together, around each site, cut at the ends."""
    joint: bool = True
    """Of several text encoders (SDXL), restore the same layer of all of them together too: one alone shows almost nothing, since the
    others still say the corrupted prompt. See `Sites.joint`."""
    over: Literal["head", "channel"] | None = None
    """Kept apart: each head (of q, k, v, probs and z), or each channel, by itself."""

    def __post_init__(self):
        super().__post_init__()
        if self.over and self.window != 1:
            raise ValueError(
                f"over={self.over!r}, window={self.window}: neighbours have heads of their own; leave window at 1"
            )

    def _checks(self) -> dict[str, Check]:
        return super()._checks() | dict(
            tokens=words,
            steps=as_windows,
            rows=one_of("cond", "uncond", "both"),
            window=count,
            over=one_of(*OVER),
        )


@dataclass(frozen=True, kw_only=True)
class LocoGenSpec(Spec):
    """What LocoGen asks.

    >>> wb.LocoGenSpec(windows=((6, 1), (7, 3))).windows
    ((6, 1), (7, 3))
    """

    widths: tuple[int, ...] = (2,)
    """Windows of so many neighbouring cross-attention layers, at every place where they fit whole."""
    windows: tuple[tuple[int, int], ...] | None = None
    """Only these windows, (number of the first layer, width), in place of all of those widths."""
    inputs: tuple[Literal["kv", "k", "v"], ...] = ("kv",)
    """What is computed from the target prompt, each in turn: keys and values, keys only, values only."""
    heads: tuple[int, ...] | None = None
    """Single heads, each in turn; all together when left out."""
    steps: tuple[Window, ...] = (WHOLE,)
    """Windows of the denoising, `wb.window(0.0, 0.5)` or 0-0.5 on the command line, each in turn."""

    def _checks(self) -> dict[str, Check]:
        return dict(
            widths=partial(wholes, least=1),
            windows=windows_of_layers,
            inputs=ports,
            heads=partial(wholes, least=0),
            steps=as_windows,
        )


@dataclass(frozen=True, kw_only=True)
class AttributionSpec(TraceSpec):
    """What an attribution asks; the corruption, sites, tokens and steps are those of a causal trace.

    >>> wb.AttributionSpec(sites=("unet.*.cross.z",), form="step", over="head").points
    1
    """

    sites: tuple[str, ...] = ("text_encoder*.{attention,mlp}",)
    """Globs of components, each by itself. Streams (hidden, resnet, block, final, embedding) are refused."""
    form: Literal["image", "step"] = "image"
    """"image": the gradient of the picture's score through all steps. "step": of single denoising steps at the clean run's latents, by
    the noise that the denoiser predicts: an effect is a share of the difference that the corruption makes there."""
    metric: Literal["log_odds", "similarity"] = "log_odds"
    """Of the picture: log-odds of the prompt's value among the labels, or similarity to the prompt (raw cosine)."""
    points: int = 1
    """Worlds on the way from the corrupted to the clean embedding, the corrupted one first, between which gradients are averaged."""
    checkpointing: bool = False
    """Whether the backward pass computes the denoiser again in place of keeping it: a quarter of the memory for half as much time more."""

    def _checks(self) -> dict[str, Check]:
        return super()._checks() | dict(
            form=one_of("image", "step"),
            metric=one_of("log_odds", "similarity"),
            points=count,
            checkpointing=flag,
        )

    def __post_init__(self):
        super().__post_init__()
        if self.window != 1:
            raise ValueError(
                f"window={self.window}: attributions of neighbours add up, so sum those of single sites; leave it at 1"
            )


@dataclass(frozen=True, kw_only=True)
class ScreenSpec(AttributionSpec):
    """What a screening asks, beside what it attributes.

    >>> wb.ScreenSpec(best=3, verified=6, controls=2).form
    'step'
    """

    form: Literal["image", "step"] = "step"
    """As for an attribution. Single steps are the default here: on the embedded model they propose better (figures/attribution)."""
    best: int = 3
    """So many sites (or heads, tokens, windows of steps) are looked for: those with the largest indirect effect."""
    verified: int = 6
    """So many, which attribution puts first, are patched exactly."""
    controls: int = 4
    """So many of the others, drawn at random, are patched too: what attribution misses is told by them. 0 for none, and no promise."""
    race: bool = False
    """Whether the proposed sites race: a site is patched in further prompts, draws and seeds only while it may be among the best."""

    def _checks(self) -> dict[str, Check]:
        return super()._checks() | dict(
            best=count, verified=count, controls=partial(whole, least=0, most=10**6), race=flag
        )

    def __post_init__(self):
        super().__post_init__()
        if self.verified < self.best:
            raise ValueError(f"verified={self.verified}, best={self.best}: verify at least as many as are looked for")


@dataclass(frozen=True, kw_only=True)
class FaithfulnessSpec(CorruptionSpec):
    """What a test of faithfulness asks.

    >>> wb.FaithfulnessSpec(shares=(0.1, 0.5)).random_orders
    5
    """

    shares: tuple[float, ...] = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Of the ranking's sites that are kept, the first ones; 0 and 1 are always among them. Shares that come to the same number of sites
    are one."""
    random_orders: int = 5
    """So many random orders of the same sites are the baseline."""

    def _checks(self) -> dict[str, Check]:
        return super()._checks() | dict(shares=partial(numbers, least=0, most=1), random_orders=count)

    def __post_init__(self):
        super().__post_init__()
        if self.corruption == "noise" and self.noise_multiple == 0:
            raise ValueError(
                "noise_multiple=0: the corrupted world is the clean one, so that faithfulness would be 0/0; raise it"
            )

    def counts(self, sites: int) -> tuple[int, ...]:
        """Numbers of sites that the shares come to, of so many.

        >>> wb.FaithfulnessSpec().counts(24)
        (0, 1, 2, 5, 12, 24)
        """
        return tuple(sorted({0, sites, *(round(share * sites) for share in self.shares)}))


def ports(value: Any, argument: str) -> tuple[str, ...]:
    """What is computed from the target prompt."""
    return tuple(one_of(*PORTS)(each, argument) for each in strings(value, argument))


def windows_of_layers(value: Any, argument: str) -> tuple[tuple[int, int], ...]:
    """Pairs of whole numbers, each the first layer and how many."""
    pairs = list(value) if isinstance(value, (list, tuple)) else []
    if not pairs or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            f"{argument}={shown(value)}: give pairs of a first layer and a width, such as ((0, 2), (9, 2))"
        )
    return tuple((whole(start, argument), count(width, argument)) for start, width in pairs)
