"""What the engine needs of a diffusers pipeline: to be one module, to encode prompts, to be quiet, to show attention probabilities."""

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from einops import rearrange

from workbench.sites import Site


class PipelineRoot(torch.nn.Module):
    """A diffusers pipeline as a module: its components are children, its forward is the pipeline's call."""

    def __init__(self, pipeline):
        super().__init__()
        object.__setattr__(self, "pipeline", pipeline)
        for module in pipeline.unet.modules():  # where attention probabilities pass by when they are in use
            if type(module).__name__ == "BasicTransformerBlock":
                for attention in (module.attn1, module.attn2):
                    attention.probs = torch.nn.Identity()
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                self.add_module(name, part)

    def forward(self, *args, pipeline=None, **kwargs):
        """Call the pipeline, or another that is made of the same components."""
        pipeline = pipeline or self.pipeline
        return type(pipeline).__call__(pipeline, *args, **kwargs)


class ExplicitAttention:
    """Attention whose probabilities exist as a tensor, for diffusers' transformer blocks."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **ignored):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        split = lambda x: rearrange(x, "row i (head c) -> row head i c", head=attn.heads)
        query, key, value = split(attn.to_q(hidden_states)), split(attn.to_k(context)), split(attn.to_v(context))
        probs = attn.probs((query @ key.transpose(-1, -2) * attn.scale).softmax(-1))
        return attn.to_out[1](attn.to_out[0](rearrange(probs @ value, "row head i c -> row i (head c)")))


def encode(pipeline, prompts: str | Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompts as the UNet is given them: states (prompt, token, channel) and, in SDXL, pooled vectors (prompt, channel)."""
    with torch.no_grad():
        found = pipeline.encode_prompt(
            prompts, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return found[0], found[2] if len(found) > 2 else None


@contextmanager
def quiet(pipeline):
    """Without the pipeline's own progress bar, for as long as the block lasts."""
    before = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(**(before or {}) | {"disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = before


@contextmanager
def explicit_attention(pipeline, sites: Sequence[Site]):
    """Give the attentions of these "probs" sites an explicit softmax, for as long as the block lasts."""
    paths = {site.module.removesuffix(".probs") for site in sites if site.name.endswith(".probs")}
    attentions = [pipeline.unet.get_submodule(path.removeprefix("unet.")) for path in sorted(paths)]
    before = [attention.processor for attention in attentions]
    try:
        for attention in attentions:
            attention.processor = ExplicitAttention()
        yield
    finally:
        for attention, processor in zip(attentions, before):
            attention.processor = processor
