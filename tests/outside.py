"""What the tests of pipelines from outside share: fresh tiny pipelines, LoRA files, runs."""

import copy
import warnings
from pathlib import Path

import conftest
import numpy as np
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict

import workbench as wb

ZEBRA, LION = "a zebra in the savanna", "a lion on the beach at night"
STEPS, GUIDANCE = 2, 3.0
SETTINGS = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, progress=False)
TEXT_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]
PROJECTIONS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "text_encoder": TEXT_PROJECTIONS,
    "text_encoder_2": TEXT_PROJECTIONS,
}


def fresh(make=conftest.sd1):
    """A tiny pipeline with the same weights at every call."""
    torch.manual_seed(0)
    pipeline = make()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline, *worlds, **more) -> wb.Run:
    return wb.load(pipeline).run(worlds or [wb.World("plain", ZEBRA)], **dict(seeds=(0, 1)) | SETTINGS | more)


def pictures(pipeline, prompt=ZEBRA, seeds=(0, 1), **more) -> np.ndarray:
    """What the pipeline itself draws, (seed, y, x, colour)."""
    made = pipeline(
        [prompt] * len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=STEPS,
        **dict(guidance_scale=GUIDANCE, output_type="np") | more,
    )
    return made.images


def apart(a, b) -> float:
    """The largest difference of two pictures."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def lora_file(make, folder: Path, name: str, seed: int, rank: int = 2) -> Path:
    """A LoRA of every projection of the denoiser and the text encoders, with random numbers, as diffusers saves one."""
    pipeline = fresh(make)
    torch.manual_seed(seed)
    layers = {}
    for component, projections in PROJECTIONS.items():
        if (module := getattr(pipeline, component, None)) is None:
            continue
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=projections, init_lora_weights=False)
        with_adapter = inject_adapter_in_model(config, copy.deepcopy(module))
        layers[f"{component}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(with_adapter))
    type(pipeline).save_lora_weights(folder, weight_name=f"{name}.safetensors", **layers)
    return folder / f"{name}.safetensors"


def load_lora(pipeline, file: Path):
    """Load a LoRA under its file's name."""
    with warnings.catch_warnings():  # of peft, that a second adapter joins the first
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=file.stem)
