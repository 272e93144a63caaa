"""Options that the commands share."""

from dataclasses import dataclass
from pathlib import Path

import workbench as wb


def beside(out: Path, end: str) -> Path:
    """OUT with an ending, its folder made; dots in OUT's own name stay ("sd1.5" is no suffix)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_name(f"{out.name}{end}")


@dataclass
class Common:
    model: str | None = None
    """Folder or hub id; the embedded menagerie when left out."""
    device: str = "cpu"

    def load(self) -> "wb.Model":
        return wb.load(self.model, device=self.device)
