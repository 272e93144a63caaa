"""What attention maps cost in memory: `python -m workbench.studies.memory`.

Peak resident memory while a run makes one image with all cross-attention maps, over the same run without them, each in a process
of its own: on a random UNet of Stable Diffusion 1.5's size (its public config, 64 x 64 latents; needs 8 GB), and on the
menagerie at 5 and at 50 steps. Linux only: the peak is counted from behind the model's loading. Writes `memory.csv`.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

SIZES = {"sd15": (2,), "menagerie": (5, 50)}


@dataclass
class MemoryOptions:
    models: tuple[str, ...] = tuple(SIZES)
    out: Path = Path("runs/figures/memory.csv")


def main(options: MemoryOptions):
    rows = []
    for model in options.models:
        for steps in SIZES[model]:
            peaks = [peaks_of(model, (steps,), maps)[0] for maps in (False, True)]
            rows.append(
                dict(model=model, steps=steps, without_mb=peaks[0], with_maps_mb=peaks[1], added_mb=peaks[1] - peaks[0])
            )
            print(rows[-1])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out, index=False)


def peaks_of(model: str, steps: tuple[int, ...], maps: bool) -> list[int]:
    """Largest resident memory, in MB (10^6 bytes), of a process that makes one image in so many steps, then one in so many, ..."""
    script = f"from workbench.studies import memory; memory.runs({model!r}, {steps}, {maps})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return list(map(int, done.stdout.split()))


def runs(name: str, numbers: tuple[int, ...], maps: bool):
    """Make an image, guided, in each number of steps, and print this process's peak in each."""
    import workbench as wb

    model = wb.load() if name == "menagerie" else wb.Model(stable_diffusion_15())
    for steps in numbers:
        more = dict(seeds=(0,), num_inference_steps=steps, guidance_scale=3.0)
        Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is counted anew
        if maps:
            wb.attention_maps(model, "a zebra in the savanna", **more)
        else:
            model.run([wb.World("clean", "a zebra in the savanna")], **more, progress=False)
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(round(int(status["VmHWM"].split()[0]) * 1024 / 1e6))


def stable_diffusion_15():
    """A pipeline of Stable Diffusion 1.5's UNet, with random weights, between the menagerie's tokenizer and small random parts."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from workbench.models import MENAGERIE

    tokenizer = CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer", model_max_length=77)
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=8,
        cross_attention_dim=768,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=2,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=512,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


if __name__ == "__main__":
    main(tyro.cli(MemoryOptions))
