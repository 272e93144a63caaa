"""What attention maps and recordings cost in memory: `python -m workbench.studies.memory`.

Peak resident memory while a run makes one image with all cross-attention maps, over the same run without them, each in a process
of its own: on a random UNet of Stable Diffusion 1.5's size (its public config, 64 x 64 latents; needs 8 GB), and on the
menagerie at 5 and at 50 steps. The same of runs of the menagerie that record the probabilities of all cross-attention layers, in
memory and on disk, by the number of images and of steps; and the peaks of whole experiments, by the number of sites (or strengths),
prompts and seeds. Linux only: the peak is counted from behind the model's loading. Writes `memory.csv`, and `recordings.csv` and
`experiments.csv` beside it.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

SIZES = {"sd15": (2,), "menagerie": (5, 50)}
RECORDINGS = ((4, 10), (16, 10), (48, 10), (4, 40), (4, 120))  # images and steps
BATCH = 4
PLACES = ("nowhere", "memory", "disk")
SWEPT = ((8, 4, 2), (32, 4, 2), (8, 16, 2), (8, 4, 8))  # sites or strengths, prompts, seeds


@dataclass
class MemoryOptions:
    models: tuple[str, ...] = tuple(SIZES)
    out: Path = Path("runs/figures/memory.csv")


def main(options: MemoryOptions):
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(recordings()).to_csv(options.out.with_name("recordings.csv"), index=False)
    pd.DataFrame(experiments()).to_csv(options.out.with_name("experiments.csv"), index=False)
    rows = []
    for model in options.models:
        for steps in SIZES[model]:
            peaks = [peaks_of(f"runs({model!r}, {(steps,)}, {maps})")[0] for maps in (False, True)]
            rows.append(
                dict(model=model, steps=steps, without_mb=peaks[0], with_maps_mb=peaks[1], added_mb=peaks[1] - peaks[0])
            )
            print(rows[-1])
    pd.DataFrame(rows).to_csv(options.out, index=False)


def recordings() -> list[dict[str, int]]:
    """What recording adds to the peak, by images and steps."""
    rows = []
    for images, steps in RECORDINGS:
        nowhere, memory, disk = (peaks_of(f"recording({images}, {steps}, {place!r})")[0] for place in PLACES)
        added = dict(in_memory_adds_mb=memory - nowhere, on_disk_adds_mb=disk - nowhere)
        rows.append(dict(images=images, steps=steps, batch_size=BATCH, recorded_mb=recorded(images, steps)) | added)
        print(rows[-1])
    return rows


def experiments() -> list[dict[str, Any]]:
    """Peaks of whole experiments."""
    rows = []
    for name in ("trace", "sweep"):
        for places, prompts, seeds in SWEPT:
            (peak,) = peaks_of(f"experiment({name!r}, {places}, {prompts}, {seeds})")
            rows.append(
                dict(experiment=name, places=places, prompts=prompts, seeds=seeds, batch_size=BATCH, peak_mb=peak)
            )
            print(rows[-1])
    return rows


def recorded(images: int, steps: int) -> int:
    """Size of what such a run records, in MB."""
    import workbench as wb

    return round(sum(4 * prod(site.sizes) for site in wb.load().sites("unet.*.cross.probs")) * images * steps / 1e6)


def peaks_of(call: str) -> list[int]:
    """Largest resident memory, in MB (10^6 bytes), between each `begin` and `end` of a process that makes a call of this module."""
    script = f"from workbench.studies import memory; memory.{call}"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return list(map(int, done.stdout.split()))


def runs(name: str, numbers: tuple[int, ...], maps: bool):
    """Make an image, guided, in each number of steps, and print this process's peak in each."""
    import workbench as wb

    model = wb.load() if name == "menagerie" else wb.Model(stable_diffusion_15())
    for steps in numbers:
        more = dict(seeds=(0,), num_inference_steps=steps, guidance_scale=3.0)
        begin()
        if maps:
            wb.attention_maps(model, "a zebra in the savanna", **more)
        else:
            model.run([wb.World("clean", "a zebra in the savanna")], **more, progress=False)
        end()


def recording(images: int, steps: int, place: str):
    """Record the probabilities of all cross-attention layers, or (nowhere) make the images alone, and print this process's peak."""
    import workbench as wb

    model = wb.load()
    more = dict(num_inference_steps=steps, batch_size=BATCH, progress=False)
    model.run("a zebra in the savanna", **more | {"num_inference_steps": 1})  # what is made once
    begin()
    with tempfile.TemporaryDirectory() as folder:
        if place != "nowhere":
            more["record"] = "unet.*.cross.probs"
        if place == "disk":
            more["record_to"] = Path(folder) / "values"
        model.run("a zebra in the savanna", seeds=range(images), **more)
    end()


def experiment(name: str, places: int, prompts: int, seeds: int):
    """Trace so many sites, or steer by so many strengths, and print this process's peak."""
    import workbench as wb

    model, chosen, scorer = wb.load(), wb.prompt_set("object")[:prompts], wb.Scorer()
    quick = dict(seeds=tuple(range(seeds)), num_inference_steps=2)
    more = dict(scorer=scorer, batch_size=BATCH)
    model.run("a zebra in the savanna", seeds=range(BATCH), num_inference_steps=1, progress=False)  # what is made once
    scorer.image_embeddings(model.run("a zebra", num_inference_steps=1, progress=False).images[0])
    sites = [site.name for site in model.sites("text_encoder.*.{attention,mlp}", "unet.*.{self,cross,ff}")]
    direction = wb.direction(model, ["a zebra in winter"], ["a zebra in summer"], "text_encoder.0.mlp")
    begin()
    with tempfile.TemporaryDirectory() as folder:
        if name == "trace":
            wb.causal_trace(
                model, chosen, wb.TraceSpec(sites=tuple(sites[:places]), draws=1, **quick), folder=folder, **more
            )
        else:
            strengths = tuple((number + 1) / places for number in range(places))
            spec = wb.SweepSpec(strengths=strengths, **quick)
            wb.steer_sweep(model, chosen, direction, wb.Concept("winter", "summer"), spec, folder=folder, **more)
    end()


def begin():
    """From here on the peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")


def end():
    """Print the peak."""
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
