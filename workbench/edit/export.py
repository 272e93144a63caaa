"""Edits as LoRA files that plain diffusers loads: `pipeline.load_lora_weights(folder)`."""

import re
from pathlib import Path

import safetensors.torch
import torch.nn.functional as F

from workbench.edit.low_rank import Edit, Update

FILE = "pytorch_lora_weights.safetensors"
TRAVELS = re.compile(
    r"unet\..+|text_encoder(_2)?\.(text_model\.)?encoder\.layers\.\d+\.(self_attn\.out_proj|mlp\.fc[12])"
)


def to_lora(edit: Edit, folder: str | Path) -> Path:
    """Write an edit in the PEFT layout of diffusers, exactly: W + b @ a, with alpha equal to the rank.

    Ranks are padded with zeros to one, since a file without alphas scales all layers alike. Returns the file's path.

    Raises ValueError for what a LoRA cannot hold, such as rows of an embedding.
    """
    if stays := [update.site for update in edit.updates if not TRAVELS.fullmatch(update.module)]:
        raise ValueError(
            f"to_lora: {', '.join(stays)} cannot travel as LoRA, which holds linear layers of the UNet and the text encoders "
            "only; share the edit itself (edit.save), or the whole model (model.save_pretrained)"
        )
    rank = max(update.rank for update in edit.updates)
    tensors = {}
    for update in edit.updates:
        short = rank - update.rank
        # in text encoders diffusers knows lora_A and lora_B of attention alone: a file of mlp layers only would not load
        a, b = ("lora_A", "lora_B") if update.module.startswith("unet.") else ("lora_linear_layer.down", "lora_linear_layer.up")
        tensors[f"{_path(update)}.{a}.weight"] = F.pad(update.a, (0, 0, 0, short)).contiguous()
        tensors[f"{_path(update)}.{b}.weight"] = F.pad(update.b, (0, short)).contiguous()
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, str(path), metadata={"format": "pt"})
    return path


def _path(update: Update) -> str:
    """The module as LoRA files name it, in every version of transformers: with the text encoders' inner `text_model`."""
    return re.sub(r"^(text_encoder(?:_2)?)\.(?!text_model\.)", r"\1.text_model.", update.module)
