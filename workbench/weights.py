"""Which weights can be edited: the ones that a layer computes with, and nothing beside them.

An adapter that is not fused adds to what a layer gives, a fused projection computes with another matrix, a quantized or offloaded
layer holds no numbers of its own: an edit there would be about another function than the model's, or change nothing.
"""

import hashlib

import torch
from diffusers.models.attention_processor import Attention
from peft.tuners.tuners_utils import BaseTunerLayer

# Projections for which one matrix stands in fused attention.
FUSED = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
UNFUSE = "pipeline.unfuse_qkv_projections()"
FUSE_ADAPTER = "pipeline.fuse_lora(), then pipeline.unload_lora_weights(),"


def editable_weight(pipeline, path: str, name: str) -> torch.nn.Parameter:
    """The weight that a linear layer (out, in) or an embedding (token, channel) computes with.

    path: of the layer's module in the pipeline, such as "unet.mid_block...to_k"; "" where no module gives the site. name: of the
    site, for errors. A layer with adapters gives its base layer's weight where these are merged into it, or switched off.

    Raises ValueError, with what to do, for other modules, adapters that are at work beside the weight, attention with fused
    projections, and weights that are quantized, offloaded or computed from others.
    """
    module, attention = (_module(pipeline, each) for each in (path, path.rpartition(".")[0]))
    if isinstance(module, BaseTunerLayer):
        module = _under_adapters(module, name)
    if not isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
        raise ValueError(
            f"{name} has no weight of its own, {type(module).__name__} gives it; name sites that a linear layer or an embedding "
            "gives, such as cross.k, cross.v, text_encoder.0.out, .fc1, .fc2 and text_encoder.embedding"
        )
    last = path.rpartition(".")[2]
    if last in FUSED and fused(attention):
        raise ValueError(
            f"{name}: the attention's projections are fused, so the weight of {last} is not used; call {UNFUSE} first"
        )
    weight = module.weight
    if not isinstance(weight, torch.nn.Parameter):
        raise ValueError(f"{name}: its weight is computed from others at every call; remove the parametrization first")
    if weight.is_meta:
        raise ValueError(f"{name}: its weight is offloaded; load the pipeline without enable_sequential_cpu_offload")
    if weight.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"{name}: its weight is quantized ({weight.dtype}); load the model in float32, float16 or bfloat16"
        )
    return weight


@torch.no_grad()
def acting_weight(projection: torch.nn.Module) -> torch.Tensor:
    """The matrix (out, in) that a projection applies, its adapters' part included; had by calling it where it carries any."""
    if isinstance(projection, torch.nn.Linear):
        return projection.weight
    example = next(projection.parameters())
    eye = torch.eye(projection.in_features, dtype=example.dtype, device=example.device)
    return (projection(eye) - projection(torch.zeros_like(eye))).T


def fused(attention: torch.nn.Module) -> bool:
    """Whether an attention computes with one matrix in place of its projections.

    diffusers' `Attention` tells by its processor alone: the mark that fusing leaves stays when it is taken back.
    """
    if isinstance(attention, Attention):
        return type(attention.processor).__name__.startswith("Fused")
    return getattr(attention, "fused_projections", False)


def check_savable(pipeline):
    """Raise ValueError where a saved folder of the pipeline could not be loaded, or would lose what it draws."""
    for name, part in pipeline.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        for path, module in part.named_modules():
            if isinstance(module, BaseTunerLayer):
                raise ValueError(
                    f"save_pretrained: {name}.{path} carries the adapters {_adapters(module)}, which a saved folder cannot hold; "
                    f"call {FUSE_ADAPTER} and save then; or save the model without the adapter, and the adapter's own file"
                )
            if fused(module):
                raise ValueError(
                    f"save_pretrained: the projections of {name}.{path} are fused, and a saved folder holds them unfused; "
                    f"call {UNFUSE} first"
                )


def weight_hash(weight: torch.Tensor) -> str:
    """SHA-256 of a weight's bytes, in hexadecimal; another dtype is another hash."""
    return hashlib.sha256(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def _module(pipeline, path: str) -> torch.nn.Module | None:
    component, _, inner = path.partition(".")
    try:
        return getattr(pipeline, component).get_submodule(inner)
    except AttributeError:  # attention probabilities have a module only while they are read
        return None


def _under_adapters(module: BaseTunerLayer, name: str) -> torch.nn.Module:
    """The base layer, where it alone computes what the layer gives."""
    off, merged = module.disable_adapters, bool(module.merged_adapters)
    if off == merged:
        state = "merged and switched off, so that the next call takes them out of the weight" if merged else "not fused"
        raise ValueError(
            f"{name} carries the adapters {_adapters(module)}, which are {state}: an edit of the weight beneath would be about "
            f"another layer than the model's; call {FUSE_ADAPTER} first (or pipeline.disable_lora(), to edit the model without it)"
        )
    return module.get_base_layer()


def _adapters(module: BaseTunerLayer) -> str:
    return ", ".join(map(repr, module.active_adapters)) or "of a LoRA"
