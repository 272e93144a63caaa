"""`workbench check`: is a model as the workbench takes it to be?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import workbench as wb
from workbench.cli.common import Common, check_out


@dataclass
class CheckModel(Common):
    """Prove on a model of your own what the workbench takes for granted; print what does not hold, exit with 1 if anything does not."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    every_site: bool = False
    """Put zeros at every site, not at one of each kind."""
    height: int | None = None
    """In pixels; the model's own when left out. Small ones are quick."""
    width: int | None = None
    num_inference_steps: int | None = None
    """The fewest that the scheduler allows, from 2 on, when left out."""
    guidance_scale: float = 2.0
    prompt: str = "a photo of a zebra"
    target: str = "a painting of a lion on the beach"
    """Another prompt, whose picture differs."""
    seed: int = 0
    batch_size: int = 16
    out: Path | None = None
    """A CSV file for the table of all claims."""

    def run(self):
        if self.out is not None:
            check_out(self.out)
        found = wb.check(
            wb.load(self.model, device=self.device, dtype=self.dtype),
            every_site=self.every_site,
            height=self.height,
            width=self.width,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            prompt=self.prompt,
            target=self.target,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        print(f"{found.counts().to_string()}\n\n{found!r}")
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            found.table.to_csv(self.out, index=False)
            print(f"wrote {self.out}")
        if not found.passed:
            raise SystemExit(1)
