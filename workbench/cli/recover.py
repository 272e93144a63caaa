"""The command that asks whether an edit's concept is gone, or only hidden: `workbench recover`.

What it needs is imported when it runs, so that its help and mistyped options are answered at once.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

import workbench as wb
from workbench.cli.common import Experimenting, beside
from workbench.inputs import count
from workbench.recovery.specs import RecoverySpec


@dataclass
class Recover(Experimenting):
    """Attack an edited model: is a concept gone, or only hidden? Write OUT.png, OUT.csv and print every attack beside its controls."""

    edit: Path = Path("runs/edit.safetensors")
    """The edit's file, as `workbench edit` and `Edit.save` write it; the model is the one that it was made for."""
    prompts: str = "swap/erase_held_out"
    """A prompt set, or a CSV file, whose prompts all name the concept: columns prompt, subject, value."""
    first: int | None = None
    """Only so many of its prompts."""
    spec: Annotated[RecoverySpec, tyro.conf.arg(name="")] = field(default_factory=RecoverySpec)
    scorer: str | None = None
    """An open_clip model; the embedded grader when left out."""
    pretrained: str | None = None
    """Its weights."""
    batch_size: int = 16
    out: Path = Path("runs/recover")
    """OUT.png and OUT.csv, and OUT_ATTACK.png of attacks that have a curve."""

    def run(self):
        import matplotlib.pyplot as plt

        from workbench.recovery.results import BUDGETS

        model, every = self.load(), wb.prompt_set(self.prompts)
        found = self.asked(
            wb.recover,
            model,
            wb.Edit.load(self.edit, model),
            every if self.first is None else every[: count(self.first, "--first")],
            self.spec,
            scorer=wb.Scorer(self.scorer, pretrained=self.pretrained, device=self.device),
            folder=self.folder,
            executor=self.who(),
            batch_size=self.batch_size,
        )
        if found is None:
            return
        found.table().to_csv(beside(self.out, ".csv"), index=False)
        print(found)
        title = f"{self.edit.stem}: is {found.concept!r} gone?"
        wb.plot.recovery(found, title=title)
        plt.savefig(beside(self.out, ".png"), dpi=120)
        curves = [name for name in found.attacks if name in BUDGETS]
        for name in curves:
            wb.plot.recovery_curve(found, name, title=f"{self.edit.stem}: {name.replace('_', ' ')}")
            plt.savefig(beside(self.out, f"_{name}.png"), dpi=120)
        plt.close("all")
        print(
            f"wrote {', '.join(f'{self.out}{end}.png' for end in ['', *(f'_{name}' for name in curves)])} and {self.out}.csv"
        )
