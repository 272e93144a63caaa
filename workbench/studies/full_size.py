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

import workbench as wb
from workbench.studies.full_models import random_pipeline

Result = TypeVar("Result")
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

    pipeline = timed("made, random weights in bfloat16", lambda: random_pipeline("SD 1.5", "cpu", torch.bfloat16))
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


if __name__ == "__main__":
    main(tyro.cli(FullSizeOptions))
