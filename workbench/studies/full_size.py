"""The engine at full size: `python -m workbench.studies.full_size`.

Stable Diffusion 1.5's topology by its public configuration, with random weights in bfloat16: load, check at 256 x 256, one trace
of three worlds with one step, LocoEdit of two layers, its LoRA out and in again. Pictures mean nothing; times and memory do.
Takes 9 GB and some minutes of two CPU cores.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
import tyro
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import workbench as wb
from workbench.studies import tiny

Result = TypeVar("Result")
UNET = dict(
    sample_size=64,
    layers_per_block=2,
    block_out_channels=(320, 640, 1280, 1280),
    cross_attention_dim=768,
    attention_head_dim=8,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
VAE = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
)
TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
SIDE = 256
PROMPT = "a zebra in the savanna"


@dataclass
class FullSizeOptions:
    out: Path = Path("runs/figures/full_size/full_size.csv")
    folder: Path = Path("runs/full_size")
    """For the LoRA."""


def main(options: FullSizeOptions):
    rows: list[dict] = []

    def timed(name: str, do: Callable[[], Result]) -> Result:
        began = time.perf_counter()
        result = do()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append(dict(stage=name, seconds=round(seconds, 1), peak_gib=round(peak, 2)))
        print(f"{name}: {seconds:.1f} s, peak {peak:.2f} GiB", flush=True)
        return result

    pipeline = timed("made, random weights in bfloat16", random_pipeline)
    model = timed("load", lambda: wb.load(pipeline))
    print(model.calls(1), f"{len(model.sites)} sites")
    timed("identity, first", lambda: model.record)
    timed("identity, again", lambda: model.record)
    report = timed(f"check at {SIDE} x {SIDE}", lambda: wb.check(model, height=SIDE, width=SIDE))
    print(report)
    noise = wb.add_noise("text_encoder.embedding", 0.1, tokens="subject")
    worlds = [
        wb.World("clean", PROMPT, subject="zebra"),
        wb.World("corrupted", PROMPT, [noise], "zebra"),
        wb.World(
            "restored", PROMPT, [noise, wb.restore("text_encoder.0.mlp", "clean", tokens="subject_last")], "zebra"
        ),
    ]
    run = timed(
        "trace of three worlds, one step",
        lambda: model.run(worlds, num_inference_steps=1, height=SIDE, width=SIDE, progress=False),
    )
    print(run, run.fired)
    sites = tuple(site.name for site in model.sites("unet.*.cross")[8:10])
    edit = timed("locoedit of two layers", lambda: wb.edit.locoedit(model, {"a zebra": "a giraffe"}, sites=sites))
    options.folder.mkdir(parents=True, exist_ok=True)
    path = timed("LoRA written", lambda: edit.to_lora(options.folder / "giraffe.safetensors"))
    with model.applied(edit):
        committed = timed("committed edit, one picture of one step", lambda: drawn(model))
    timed("LoRA loaded", lambda: pipeline.load_lora_weights(str(path)))
    loaded = timed("with the LoRA, one picture of one step", lambda: drawn(model))
    pipeline.unload_lora_weights()
    apart = np.abs(loaded - committed)
    print(f"LoRA against commit: mean {255 * apart.mean():.2f}, largest {255 * apart.max():.1f} of 255")
    print(f"{torch.get_num_threads()} threads")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out, index=False)
    if not report.passed:
        raise SystemExit("the check did not pass")


def drawn(model: wb.Model) -> np.ndarray:
    """One picture of the prompt."""
    run = model.run(PROMPT, num_inference_steps=1, height=SIDE, width=SIDE, progress=False)
    return run.images.values


def random_pipeline() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5, untrained; its tokenizer is the embedded model's, of fewer words and 32 tokens."""
    tokenizer = tiny.tokenizer()
    text = CLIPTextConfig(
        vocab_size=49408,
        max_position_embeddings=tokenizer.model_max_length,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **TEXT,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # never 4 GB of float32 beside
    try:
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(text).eval(),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(**UNET).eval(),
            scheduler=PNDMScheduler(**tiny.SCHEDULE, **tiny.SD1, skip_prk_steps=True),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    finally:
        torch.set_default_dtype(before)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(torch.bfloat16)


if __name__ == "__main__":
    main(tyro.cli(FullSizeOptions))
