"""Sites: every value inside a model that can be read or changed, under a stable name.

    model.sites                                # the table, in execution order
    model.sites("unet.*.cross.{k,v}")          # a selection by glob; braces hold alternatives
    model.sites("unet.*.cross").window(6, 2)   # two neighbouring cross-attention layers

A name says where a value is and which it is: `text_encoder.3.mlp`, `unet.up.1.1.cross.v`, `unet.mid.cross.probs`,
`unet.up.2.0.resnet`. Where one attention holds several transformer blocks (SDXL), the block's number stands before the
kind: `unet.mid.7.cross.v`.
"""

import difflib
import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from diffusers import DiffusionPipeline

IMAGE = ("row", "channel", "y", "x")
LATENTS = "latents"  # what one denoising step hands to the next
PIXELS = ("row", "pixel", "channel")
TEXT = ("row", "token", "channel")


@dataclass(frozen=True)
class Site:
    """One addressable value.

    name: stable name. module: path of its module in the pipeline. port: "output" or "input" of that module, or "context",
    the `encoder_hidden_states` it is given; or "step", of no module: what a denoising step hands to the next. axes: names of
    the value's axes. sizes: their lengths behind the first, at the model's own resolution. heads: of the attention it belongs
    to. paper: the number of its cross-attention layer, in execution order from 0, as papers count.
    """

    name: str
    module: str
    port: str
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    heads: int | None = None
    paper: int | None = None


class Sites(Sequence[Site]):
    """Sites in execution order; call with globs to select."""

    def __init__(self, sites: Sequence[Site]):
        self._sites = tuple(sites)

    def __call__(self, *patterns: str) -> "Sites":
        """The sites that any of the globs matches, in execution order.

        Raises KeyError with the nearest names for a glob that matches none.
        """
        names, chosen = [site.name for site in self], set()
        for pattern in patterns:
            found = {name for glob in _without_braces(pattern) for name in fnmatch.filter(names, glob)}
            if not found:
                near = difflib.get_close_matches(pattern, names, n=5, cutoff=0) or ["none"]
                raise KeyError(f"no site matches {pattern!r}; of {len(names)} sites the nearest are {', '.join(near)}")
            chosen |= found
        return Sites([site for site in self if site.name in chosen])

    def window(self, start: int, width: int) -> "Sites":
        """`width` neighbours of this selection, from its number `start` on."""
        if width < 1 or not 0 <= start <= len(self) - width:
            raise ValueError(
                f"window(start={start}, width={width}) does not fit {len(self)} sites: start may be 0 to {len(self) - width}"
            )
        return Sites(self._sites[start : start + width])

    def table(self) -> pd.DataFrame:
        """One row per site."""
        rows = [
            asdict(site) | {"axes": " ".join(site.axes), "sizes": " x ".join(map(str, site.sizes))} for site in self
        ]
        return pd.DataFrame(rows, columns=list(Site.__dataclass_fields__)).astype({"heads": "Int64", "paper": "Int64"})

    def __getitem__(self, index):
        return self._sites[index]

    def __len__(self):
        return len(self._sites)

    def __eq__(self, other):
        return isinstance(other, Sites) and self._sites == other._sites

    def __hash__(self):
        return hash(self._sites)

    def __repr__(self):
        return self._shown().to_string()

    def _repr_html_(self):
        return self._shown().to_html()

    def _shown(self) -> pd.DataFrame:
        table = self.table().astype(object)
        return table.where(table.notna(), "")


def layer_and_kind(name: str) -> tuple[str, str]:
    """Where a site is and what: ("text_encoder.3", "mlp"), ("unet.up.1.1", "cross.v")."""
    parts = name.split(".")
    last = 2 if parts[-1] in ("q", "k", "v", "probs", "context") else 1
    return ".".join(parts[:-last]) or name, ".".join(parts[-last:])


def weight_of(pipeline: DiffusionPipeline, site: Site) -> torch.nn.Parameter:
    """The weight of the linear layer (out, in) or embedding (token, channel) whose output a site is.

    Raises ValueError for a site that another kind of module gives, or several.
    """
    component, _, path = site.module.partition(".")
    try:
        module = getattr(pipeline, component).get_submodule(path)
    except AttributeError:  # attention probabilities have a module only while they are read
        module = None
    if site.port != "output" or not isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
        raise ValueError(
            f"{site.name} has no weight of its own, {type(module).__name__} gives it; name sites that a linear layer or an embedding "
            "gives, such as cross.k, cross.v, text_encoder.0.out, .fc1, .fc2 and text_encoder.embedding"
        )
    return module.weight


def _without_braces(pattern: str) -> list[str]:
    """ "a.{b,c}" is "a.b" and "a.c"."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    return [
        glob
        for word in found[1].split(",")
        for glob in _without_braces(pattern[: found.start()] + word + pattern[found.end() :])
    ]


def find_sites(pipeline: DiffusionPipeline) -> Sites:
    """All sites of a Stable Diffusion pipeline (1.x, 2.x or XL), in execution order."""
    encoders = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipeline, name, None) is not None]
    sites = [site for name in encoders for site in _text_sites(name, getattr(pipeline, name))]
    length = getattr(pipeline, encoders[0]).config.max_position_embeddings
    sites += _unet_sites(pipeline.unet, length)
    latents = (pipeline.unet.config.in_channels, pipeline.unet.config.sample_size, pipeline.unet.config.sample_size)
    return Sites(
        [
            *sites,
            Site(LATENTS, "", "step", IMAGE, latents),
            Site("vae.latents", "vae.post_quant_conv", "input", IMAGE, latents),
        ]
    )


def _text_sites(name: str, encoder: torch.nn.Module) -> Iterator[Site]:
    nested = "text_model" in dict(encoder.named_children())  # differs between versions and classes of transformers
    inner, path = (encoder.text_model, f"{name}.text_model") if nested else (encoder, name)
    sizes, heads = (
        (encoder.config.max_position_embeddings, encoder.config.hidden_size),
        encoder.config.num_attention_heads,
    )
    yield Site(f"{name}.embedding", f"{path}.embeddings.token_embedding", "output", TEXT, sizes)
    for i in range(len(inner.encoder.layers)):
        layer = f"{path}.encoder.layers.{i}"
        yield Site(f"{name}.{i}.out", f"{layer}.self_attn.out_proj", "output", TEXT, sizes)
        yield Site(f"{name}.{i}.attention", f"{layer}.self_attn", "output", TEXT, sizes, heads)
        yield Site(f"{name}.{i}.fc1", f"{layer}.mlp.fc1", "output", TEXT, (sizes[0], encoder.config.intermediate_size))
        yield Site(f"{name}.{i}.fc2", f"{layer}.mlp.fc2", "output", TEXT, sizes)
        yield Site(f"{name}.{i}.mlp", f"{layer}.mlp", "output", TEXT, sizes)
        yield Site(f"{name}.{i}.hidden", layer, "output", TEXT, sizes)
    yield Site(f"{name}.final", f"{path}.final_layer_norm", "output", TEXT, sizes)
    if hasattr(encoder, "text_projection"):
        yield Site(
            f"{name}.pooled",
            f"{name}.text_projection",
            "output",
            ("row", "channel"),
            (encoder.text_projection.out_features,),
        )


def _unet_sites(unet: torch.nn.Module, length: int) -> list[Site]:
    sites: list[Site] = []
    sides = [unet.config.sample_size]  # of the picture, pushed on the way down and popped on the way up

    def add(name: str, path: str, block: torch.nn.Module, sampler: str | None):
        attentions = list(getattr(block, "attentions", []))
        side = sides[-1]
        for j, resnet in enumerate(block.resnets):
            sites.append(
                Site(f"{name}.{j}.resnet", f"{path}.resnets.{j}", "output", IMAGE, (resnet.out_channels, side, side))
            )
            if j < len(attentions):  # the mid block has one resnet more than attentions
                transformers = attentions[j].transformer_blocks
                for b, transformer in enumerate(transformers):
                    place = [
                        name,
                        *([] if name == "unet.mid" else [str(j)]),
                        *([str(b)] if len(transformers) > 1 else []),
                    ]
                    paper = sum(site.name.endswith(".cross") for site in sites)
                    module = f"{path}.attentions.{j}.transformer_blocks.{b}"
                    sites.extend(_transformer_sites(".".join(place), module, transformer, side * side, length, paper))
        if sampler and getattr(block, sampler):
            if sampler == "downsamplers":
                sides.append((side + 1) // 2)
            else:
                sides.pop()
            shape = (getattr(block, sampler)[0].out_channels, sides[-1], sides[-1])
            sites.append(Site(f"{name}.sampler", f"{path}.{sampler}.0", "output", IMAGE, shape))

    for i, block in enumerate(unet.down_blocks):
        add(f"unet.down.{i}", f"unet.down_blocks.{i}", block, "downsamplers")
    add("unet.mid", "unet.mid_block", unet.mid_block, None)
    for i, block in enumerate(unet.up_blocks):
        add(f"unet.up.{i}", f"unet.up_blocks.{i}", block, "upsamplers")
    return [
        *sites,
        Site("unet.noise", "unet.conv_out", "output", IMAGE, (unet.config.out_channels, sides[0], sides[0])),
    ]


def _transformer_sites(
    name: str, path: str, block: torch.nn.Module, pixels: int, length: int, paper: int
) -> Iterator[Site]:
    channels = block.attn1.to_q.in_features
    for kind, child, keys, axes, number in (
        ("self", "attn1", pixels, PIXELS, None),
        ("cross", "attn2", length, TEXT, paper),
    ):
        attention, module = getattr(block, child), f"{path}.{child}"
        heads, inner = attention.heads, attention.to_q.out_features
        if kind == "cross":
            yield Site(
                f"{name}.cross.context", module, "context", TEXT, (length, attention.to_k.in_features), heads, number
            )
        yield Site(f"{name}.{kind}.q", f"{module}.to_q", "output", PIXELS, (pixels, inner), heads, number)
        yield Site(f"{name}.{kind}.k", f"{module}.to_k", "output", axes, (keys, inner), heads, number)
        yield Site(f"{name}.{kind}.v", f"{module}.to_v", "output", axes, (keys, inner), heads, number)
        probs = ("row", "head", "pixel", "token" if kind == "cross" else "key")
        yield Site(f"{name}.{kind}.probs", f"{module}.probs", "output", probs, (heads, pixels, keys), heads, number)
        yield Site(f"{name}.{kind}", module, "output", PIXELS, (pixels, channels), heads, number)
    yield Site(f"{name}.ff", f"{path}.ff", "output", PIXELS, (pixels, channels))
    yield Site(f"{name}.block", path, "output", PIXELS, (pixels, channels))
