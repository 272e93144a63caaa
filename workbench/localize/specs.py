"""What localizers are asked, as frozen values; the command line reads them before anything heavy is imported."""

from dataclasses import dataclass
from typing import Literal

from workbench.experiments.spec import WHOLE, Spec, Window

OVER = ("head", "channel")  # what an attribution may keep apart
PORTS = {"kv": ("context",), "k": ("k",), "v": ("v",)}  # of cross-attention, by what LocoGen replaces


@dataclass(frozen=True, kw_only=True)
class TraceSpec(Spec):
    """What a causal trace asks.

    >>> spec = wb.TraceSpec(sites=("unet.*.cross",), steps=(wb.window(0.0, 0.5), wb.window(0.5, 1.0)))
    >>> spec.steps
    ((0.0, 0.5), (0.5, 1.0))
    """

    sites: tuple[str, ...] = ("text_encoder*.{attention,mlp,hidden}",)
    """Globs; each site is restored by itself, or with its neighbours (see window)."""
    tokens: tuple[str, ...] = ("subject_last",)
    """Where sites with a token axis are restored, each in turn: "subject", "subject_last", "after_subject", "eos", "padding",
    "all", a word, or, for one prompt, "each" position. Sites without that axis are restored whole."""
    steps: tuple[Window, ...] = (WHOLE,)
    """Windows of the denoising, as shares of the run, in which sites inside the UNet are restored, each in turn."""
    rows: Literal["cond", "uncond", "both"] | None = None
    """Halves of the guided batch; left out, the conditional half for what comes from the text, both inside the UNet."""
    window: int = 1
    """So many neighbours of a kind are restored together, around each site, cut at the ends."""
    joint: bool = True
    """Of several text encoders (SDXL), restore the same layer of all of them together too: one alone shows almost nothing, since the
    others still say the corrupted prompt. See `Sites.joint`."""
    corruption: Literal["noise", "replace", "zero"] = "noise"
    """Of the subject's token embeddings: noise, zero, or the prompt set's replacement for its words."""
    noise_multiple: float = 3.0
    """Noise in standard deviations of the embeddings of all subject tokens in the set."""
    draws: int = 3
    """Independent draws of the noise, for each prompt; 1 for the other corruptions."""

    def __post_init__(self):
        super().__post_init__()
        if self.corruption not in ("noise", "replace", "zero"):
            raise ValueError(f'corruption={self.corruption!r}: may be "noise", "replace" or "zero"')
        if self.corruption != "noise" and self.draws != 1:
            raise ValueError(f"corruption={self.corruption!r} has nothing random, but draws={self.draws}; give draws=1")
        self.keep_tuples("sites", "tokens")
        self.keep_windows("steps")
        if self.draws < 1 or self.window < 1:
            raise ValueError(f"draws={self.draws}, window={self.window}: both are at least 1")


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
    """Windows of the denoising, as shares of the run, each in turn."""

    def __post_init__(self):
        super().__post_init__()
        self.keep_tuples("widths", "inputs", *(["windows"] if self.windows is not None else []))
        self.keep_windows("steps")
        if unknown := [name for name in self.inputs if name not in PORTS]:
            raise ValueError(f'inputs={tuple(unknown)}: may be "kv", "k" and "v"')


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
    over: Literal["head", "channel"] | None = None
    """Kept apart: heads (of q, k, v, probs and z), or channels."""
    checkpointing: bool = False
    """Whether the backward pass computes the denoiser again in place of keeping it: a quarter of the memory for half as much time more."""

    def __post_init__(self):
        super().__post_init__()
        for name, known in (
            ("form", ("image", "step")),
            ("metric", ("log_odds", "similarity")),
            ("over", (None, *OVER)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: may be {', '.join(map(repr, known))}")
        if isinstance(self.points, bool) or not isinstance(self.points, int) or self.points < 1:
            raise ValueError(f"points={self.points!r}: give a whole number of at least 1")
        if self.window != 1:
            raise ValueError(
                f"window={self.window}: attributions of neighbours add up, so sum those of single sites; leave it at 1"
            )
