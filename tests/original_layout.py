"""A Stable Diffusion pipeline's tensors under the names of the original code, as single files (.safetensors) hold them."""

import re

import torch
from diffusers import StableDiffusionPipeline

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original(pipeline: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """Names of Stable Diffusion 1.x's own code: "model.diffusion_model.", "first_stage_model.", "cond_stage_model."."""
    text = {
        f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}": value
        for key, value in pipeline.text_encoder.state_dict().items()
    }
    unet = {f"model.diffusion_model.{name}": value for name, value in _unet(pipeline.unet).items()}
    vae = {f"first_stage_model.{name}": value for name, value in _vae(pipeline.vae).items()}
    return {name: value.contiguous() for name, value in (text | unet | vae).items()}


def _unet(unet) -> dict[str, torch.Tensor]:
    places, per = dict(UNET), unet.config.layers_per_block
    for i in range(len(unet.down_blocks)):
        for j in range(per):
            at = f"input_blocks.{1 + i * (per + 1) + j}"
            places |= {f"down_blocks.{i}.resnets.{j}": f"{at}.0", f"down_blocks.{i}.attentions.{j}": f"{at}.1"}
        places[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(i + 1) * (per + 1)}.0.op"
    for i, block in enumerate(unet.up_blocks):
        attends = bool(getattr(block, "attentions", None))
        for j in range(per + 1):
            at = f"output_blocks.{i * (per + 1) + j}"
            places |= {f"up_blocks.{i}.resnets.{j}": f"{at}.0", f"up_blocks.{i}.attentions.{j}": f"{at}.1"}
        places[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{i * (per + 1) + per}.{1 + attends}.conv"
    return {_renamed(name, places, RESNET): value for name, value in unet.state_dict().items()}


def _vae(vae) -> dict[str, torch.Tensor]:
    places, count = {}, len(vae.decoder.up_blocks)
    for i, block in enumerate(vae.encoder.down_blocks):
        places |= {
            f"encoder.down_blocks.{i}.resnets.{j}": f"encoder.down.{i}.block.{j}" for j in range(len(block.resnets))
        }
        places[f"encoder.down_blocks.{i}.downsamplers.0.conv"] = f"encoder.down.{i}.downsample.conv"
    for i, block in enumerate(vae.decoder.up_blocks):
        up = count - 1 - i
        places |= {
            f"decoder.up_blocks.{i}.resnets.{j}": f"decoder.up.{up}.block.{j}" for j in range(len(block.resnets))
        }
        places[f"decoder.up_blocks.{i}.upsamplers.0.conv"] = f"decoder.up.{up}.upsample.conv"
    for side in ("encoder", "decoder"):
        places |= {f"{side}.mid_block.resnets.{j}": f"{side}.mid.block_{j + 1}" for j in range(2)}
        places |= {f"{side}.mid_block.attentions.0": f"{side}.mid.attn_1", f"{side}.conv_norm_out": f"{side}.norm_out"}
    found = {}
    for name, value in vae.state_dict().items():
        renamed = _renamed(name, places, {"conv_shortcut": "nin_shortcut"} | VAE_ATTENTION)
        convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", renamed)  # of one pixel, there
        found[renamed] = value[:, :, None, None] if convolution else value
    return found


def _renamed(name: str, places: dict[str, str], parts: dict[str, str]) -> str:
    """The longest place that a name begins with, then the part behind it."""
    place = max((each for each in places if name.startswith(f"{each}.")), key=len, default="")
    rest = name.removeprefix(f"{place}.") if place else name
    part = next((each for each in parts if rest.startswith(f"{each}.")), "")
    rest = f"{parts[part]}.{rest.removeprefix(f'{part}.')}" if part else rest
    return f"{places[place]}.{rest}" if place else rest
