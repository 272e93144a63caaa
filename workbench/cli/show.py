"""Commands that show results: `workbench gallery`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

import workbench as wb
from workbench.cli.common import Common, beside


@dataclass(kw_only=True)
class Gallery(Common):
    """Write a folder of results as one HTML page to click through, OUT.html: heat-maps with intervals, prompts and pictures."""

    folder: tyro.conf.Positional[str]
    """The folder= of an experiment, a path or an address, or a folder of several such."""
    pictures: int = 0
    """Draw every cell again for so many prompts, with the model; results themselves hold scores alone."""
    direction: Path | None = None
    """Of a sweep, as Direction.save wrote it: its pictures are drawn with it."""
    out: Path = Path("runs/gallery")
    """OUT.html."""

    def run(self):
        page = wb.gallery(
            self.folder,
            beside(self.out, ".html"),
            model=self.load() if self.pictures else None,
            direction=None if self.direction is None else wb.Direction.load(self.direction),
            pictures=self.pictures,
        )
        print(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)")
