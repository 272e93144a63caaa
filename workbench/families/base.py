"""The words in which families are written: a site, a text encoder, a family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

IMAGE = ("row", "channel", "y", "x")
PIXELS = ("row", "pixel", "channel")
TEXT = ("row", "token", "channel")
POOLED = ("row", "channel")
Part = Literal["text", "denoiser", "latents", "decoder"]
LATENTS = "latents"  # what one denoising step hands to the next


@dataclass(frozen=True)
class Site:
    """One addressable value.

    name: stable name. part: of the pipeline's work, "text", "denoiser", "latents" (between two steps) or "decoder".
    component: the pipeline's, "text_encoder", "unet", "vae". place: where in it, "text_encoder.3", "unet.up.1.1". kind: which
    of the values there, "mlp", "cross.v", "resnet". module: path of its module in the pipeline. port: "output" or "input" of
    that module, or "context", the `encoder_hidden_states` it is given; or "step", of no module. axes: names of the value's
    axes. sizes: their lengths behind the first, at the resolution asked. heads: of the attention it belongs to; per_head:
    whether they stand apart in the value. stream: whether it holds all that came before it, not one layer's own part.
    tokenizer: of the pipeline, whose positions its tokens are. grid: rows and columns that its pixels make. paper: the number
    of its cross-attention layer, in execution order from 0, as papers count. read: whether the denoiser reads it. depth: of
    its layer in a text encoder, from 0 for the first to 1 for the last. block: of an attention's site, the part of the
    denoiser that it shares with its neighbours, "unet.up.1".
    """

    name: str
    part: Part
    component: str
    place: str
    kind: str
    module: str
    port: str
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    heads: int | None = None
    tokenizer: str | None = None
    grid: tuple[int, int] | None = None
    paper: int | None = None
    read: bool = True
    depth: float | None = None
    block: str | None = None
    per_head: bool = False
    stream: bool = False

    @property
    def looped(self) -> bool:
        """Whether its module runs at every call of the denoiser, not once before or behind them."""
        return self.part in ("denoiser", "latents")

    def axis(self, name: str) -> int:
        """The length of an axis by name; KeyError for one that it lacks."""
        if name not in self.axes[1:]:
            raise KeyError(f"{self.name} has the axes {self.axes[1:]}, no {name!r}")
        return self.sizes[self.axes.index(name) - 1]


@dataclass(frozen=True)
class Encoder:
    """A text encoder of a family.

    component, tokenizer: names in the pipeline. skipped: so many of its last layers the denoiser does not read as states. pooled:
    whether its projected end state reaches the denoiser (so that its last layers act through that alone).
    """

    component: str
    tokenizer: str
    skipped: int = 0
    pooled: bool = False


@dataclass(frozen=True)
class Family:
    """An architecture: its pipelines, encoders, denoiser, sites, and how text reaches the denoiser.

    sites: (pipeline, height, width in pixels) -> all sites in execution order. size: (pipeline) -> height and width in pixels when not
    told. latents: (pipeline, height, width) -> (channel, y, x). check: raises ValueError for a pipeline of the right class that is put
    together as this family's are not. guidance: default of `guidance_scale`; steps: of `num_inference_steps`.
    """

    name: str
    pipelines: tuple[str, ...]
    encoders: tuple[Encoder, ...]
    denoiser: str
    sites: Callable
    size: Callable
    latents: Callable
    check: Callable
    steps: int
    guidance: float

    def model(self, pipeline):
        """The denoiser of a pipeline of this family."""
        return getattr(pipeline, self.denoiser)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Names of its tokenizers, in the order of the encoders."""
        return tuple(dict.fromkeys(encoder.tokenizer for encoder in self.encoders))

    def encoder(self, component: str) -> Encoder:
        return next(encoder for encoder in self.encoders if encoder.component == component)
