"""Pictures from an embedded model with diffusers alone, nothing of the workbench between."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from workbench.loading import DEFAULTS


@dataclass
class Sampler:
    """A pipeline and what it is called with when not told otherwise."""

    pipeline: DiffusionPipeline
    defaults: dict = field(default_factory=dict)
    batch_size: int = 16

    @classmethod
    def of(cls, folder: Path, device: str = "cpu") -> "Sampler":
        """The model of a folder, with the folder's defaults."""
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **absent(folder)).to(device)
        pipeline.set_progress_bar_config(disable=True)
        batch_size = 120 if device.startswith("cuda") else 16
        return cls(pipeline, json.loads((Path(folder) / DEFAULTS).read_text()), batch_size)

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], **changes) -> list[Image.Image]:
        """One picture a prompt, row i of seed i; the same one in any row and batch. `changes`: other than the defaults."""
        images, batch_size = [], self.batch_size
        with tqdm(total=len(prompts), desc="images", disable=len(prompts) <= batch_size, mininterval=5) as bar:
            for at in range(0, len(prompts), batch_size):
                some = list(prompts[at : at + batch_size])
                noise = [torch.Generator().manual_seed(seed) for seed in seeds[at : at + batch_size]]
                images += self.pipeline(some, generator=noise, **self.defaults | changes).images
                bar.update(len(some))
        return images


def absent(folder: Path) -> dict[str, None]:
    """The parts that a folder's pipeline asks for and does not have, as `from_pretrained` wants to be told (SD3's T5)."""
    index = json.loads((Path(folder) / "model_index.json").read_text())
    optional = getattr(diffusers, index["_class_name"])._optional_components
    return {name: None for name, part in index.items() if part == [None, None] and name not in optional}
