"""Options that the commands share."""

from dataclasses import dataclass

from workbench.models import Model, load


@dataclass
class Common:
    model: str | None = None
    """Folder or hub id; the embedded menagerie when left out."""
    device: str = "cpu"

    def load(self) -> Model:
        return load(self.model, device=self.device)
