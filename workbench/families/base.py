"""The words in which families are written: a site, a text encoder, a family."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

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
    denoiser that it shares with its neighbours, "unet.up.1". item: which of the values that its module gives, where it gives
    several. span: first and last (exclusive) of a stream's places in a value that holds both streams, one behind the other.
    from_text: whether the text alone decides it, so that it can be had for another prompt. together: of attention
    probabilities, the kinds of the same place with which a query's sum to one, where these are several (joint attention).
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
    item: int = 0
    span: tuple[int, int] | None = None
    from_text: bool = False
    together: tuple[str, ...] = ()

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
    whether its projected end state reaches the denoiser (so that its last layers act through that alone). optional: whether a
    pipeline may come without it.
    """

    component: str
    tokenizer: str
    skipped: int = 0
    pooled: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Reading:
    """A stretch of the text that the denoiser is given: so many tokens, which these tokenizers find in one prompt; none: zeros."""

    tokenizers: tuple[str, ...]
    length: int


def encode_alone(pipeline, prompts: str | list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a Stable Diffusion's denoiser is given for prompts: states and, in SDXL, pooled vectors."""
    encoded = pipeline.encode_prompt(
        prompts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return encoded[0], encoded[2] if len(encoded) > 2 else None


def read_together(family: "Family", pipeline) -> tuple[Reading, ...]:
    """One stretch: all encoders are given the same positions, and their states are joined on channels."""
    first, *_ = encoders = family.present(pipeline)
    length = getattr(pipeline, first.component).config.max_position_embeddings
    return (Reading(tuple(dict.fromkeys(encoder.tokenizer for encoder in encoders)), length),)


def decoded(pipeline, output) -> tuple[torch.Tensor, Any]:
    """Pictures (row, colour, y, x) in [0, 1] that a pipeline gives as tensors, and its safety checker's flags, if it has one."""
    return output.images, getattr(output, "nsfw_content_detected", None)


def no_keywords(pipeline, steps: int, height: int, width: int) -> dict[str, Any]:
    """Timesteps follow from their number alone."""
    return {}


_LENGTHS: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()


def set_length(pipeline, length: int):
    """Have the workbench call a pipeline with another `max_sequence_length` than its own default."""
    _LENGTHS[pipeline] = length


@dataclass(frozen=True)
class Family:
    """An architecture: its pipelines, encoders, denoiser, sites, and how text reaches the denoiser.

    sites: (pipeline, height, width in pixels) -> all sites in execution order. size: (pipeline) -> height and width in pixels when not
    told. latents: (pipeline, height, width) -> (channel, y, x). check: raises ValueError for a pipeline of the right class that is put
    together as this family's are not. guidance: default of `guidance_scale`; steps: of `num_inference_steps`; length: of
    `max_sequence_length`, None where the pipeline has no such argument. flow: whether its schedulers are of flow matching. encode:
    (pipeline, prompts) -> states (prompt, token, channel) and pooled vectors (prompt, channel) or None, as the denoiser is given them.
    read: (family, pipeline) -> stretches of the denoiser's text. layers: glob of the attention that text enters. keys, values: kinds
    of its sites that hold the text's. maps: glob of what the picture's queries give the text's keys. edited: of the linear layers that
    are given the text's states and nothing else. schedule: (pipeline, steps, height, width) -> keywords with which the pipeline sets
    its scheduler's timesteps. clock: the scheduler's time for one of the denoiser's. packing: how latents (row, channel, y, x) are packed
    between two steps, and unpacked again for a grid of rows and columns; None where they are as they are. halves: whether a pipeline
    that does not say itself whether it doubles its batch does so at a guidance above 1. decoder: the component that makes pictures of
    latents; None where these are pixels. pictures: (pipeline, its output as tensors) -> pictures (row, colour, y, x) in [0, 1] and the
    safety checker's flags or None. given: (pipeline, site, states) -> what a site's module is given for a prompt whose states these are;
    None where that is the states themselves. projection: how the denoiser projects the text's states before its layers are given them, as
    its configuration calls it (`encoder_hid_dim_type`); None: not at all. refused: pipelines of the same models that
    are not supported, and why.
    masked: whether the denoiser does not look at a prompt's padding, so that only a prompt of as many tokens can stand in for another.
    call: keywords that every call of the pipeline is given.
    velocity: of flow matching, (pipeline, noised latents (row, channel, y, x), share of noise (row,), states, pooled) -> the denoiser's
    velocity, as latents.
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
    length: int | None = None
    flow: bool = False
    encode: Callable = encode_alone
    read: Callable = read_together
    schedule: Callable = no_keywords
    layers: str = "unet.*.cross"
    keys: str = "cross.k"
    values: str = "cross.v"
    maps: str = "unet.*.cross.probs"
    edited: str = "unet.*.cross.{k,v}"
    clock: float = 1.0
    packing: tuple[Callable, Callable] | None = None
    halves: bool = False
    decoder: str | None = "vae"
    pictures: Callable = decoded
    given: Callable | None = None
    projection: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    velocity: Callable | None = None
    masked: bool = False
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def joint(self) -> bool:
        """Whether text and picture attend to both, so that the text's states change from layer to layer."""
        return self.keys != "cross.k"

    @property
    def context(self) -> str:
        """Glob of the sites at which the text's states come to the denoiser."""
        return f"{self.denoiser if self.joint else self.layers}.context"

    def model(self, pipeline):
        """The denoiser of a pipeline of this family."""
        return getattr(pipeline, self.denoiser)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Names of its tokenizers, in the order of the encoders."""
        return tuple(dict.fromkeys(encoder.tokenizer for encoder in self.encoders))

    def encoder(self, component: str) -> Encoder:
        return next(encoder for encoder in self.encoders if encoder.component == component)

    def present(self, pipeline) -> tuple[Encoder, ...]:
        """The encoders that a pipeline has: some may be left out."""
        return tuple(each for each in self.encoders if getattr(pipeline, each.component, None) is not None)

    def length_of(self, pipeline) -> int | None:
        """The `max_sequence_length` that a pipeline is called with; None where it has no such argument."""
        return self.length if self.length is None else _LENGTHS.get(pipeline, self.length)

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (row, channel, y, x) as the pipeline keeps them between two steps."""
        return latents if self.packing is None else self.packing[0](latents)

    def unpacked(self, latents: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The pipeline's latents as (row, channel, y, x). grid: their rows and columns."""
        return latents if self.packing is None else self.packing[1](latents, grid)

    def keywords(self, pipeline) -> dict[str, Any]:
        """What the pipeline's call is given besides what every pipeline takes."""
        length = self.length_of(pipeline)
        return dict(self.call) | ({} if length is None else {"max_sequence_length": length})
