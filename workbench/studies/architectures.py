"""Does it hold for another architecture? `python -m workbench.studies.architectures`.

Causal tracing, LocoGen, localizers, swap, winter, erasing and recovery on the three trained models of the menagerie (a small SD 1, SDXL
and SD 3), on the same prompts and seeds: one table of findings, `architectures.csv`, the numbers of each part beside it
(`architectures_PART.csv`), and `architectures.png`. `--only xl swap xl:trace:object` picks models, parts and items. Finished items are
kept in `runs/architectures`: what was stopped goes on with the same command, tables hold what is there. `--redraw` draws from the tables
in `--out`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import tyro

from workbench.drawing import save
from workbench.files import write_bytes
from workbench.processes import worked
from workbench.progress import Bar
from workbench.studies.architectures_figure import figure
from workbench.studies.architectures_findings import FINDINGS, findings, summaries
from workbench.studies.architectures_parts import ARCHITECTURES, PARTS, Measured, Sizes


@dataclass
class ArchitecturesOptions:
    only: tuple[str, ...] = ()
    """Models, parts or items such as "xl", "xl:trace", "xl:trace:object-denoiser", or of all models "trace"; all when left out."""
    sizes: Sizes = field(default_factory=Sizes)
    minutes: float | None = None
    """Begin no item later than this."""
    processes: int = 1
    device: str = "cpu"
    runs: Path = Path("runs/architectures")
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the tables in `out`."""


@dataclass(frozen=True)
class Item:
    """What one process measures at a time."""

    model: str
    part: str
    name: str

    def chosen(self, only: tuple[str, ...]) -> bool:
        called = f"{self.model}:{self.part}:{self.name}"
        return not only or any(f"{called}:".startswith(f"{each}:") or each == self.part for each in only)

    def file(self, runs: Path, table: str) -> Path:
        return runs / f"{self.model}-{self.part}-{self.name}-{table}.csv".replace(" ", "-")

    def finished(self, runs: Path) -> bool:
        return all(self.file(runs, table).exists() for table in PARTS[self.part].tables)


def main(options: ArchitecturesOptions):
    if not options.redraw:
        measure(options)
        measured = summaries({name: kept(options, name) for part in PARTS.values() for name in part.tables})
        options.out.mkdir(parents=True, exist_ok=True)
        for name, table in measured.items():
            if len(table):
                table.round(4).to_csv(options.out / f"{FINDINGS}_{name}.csv", index=False)
        findings(measured).round(4).to_csv(options.out / f"{FINDINGS}.csv", index=False)
    table = pd.read_csv(options.out / f"{FINDINGS}.csv")
    print(
        table.pivot_table(
            index=["finding", "of"], columns="model", values="said", aggfunc="first", sort=False
        ).to_string()
    )
    drawn = [options.out / f"{FINDINGS}_{name}.csv" for name in ("trace", "windows", "locogen")]
    if all(path.exists() for path in drawn):
        save(figure(*map(pd.read_csv, drawn), table), options.out / f"{FINDINGS}.png")


def items(options: ArchitecturesOptions) -> list[Item]:
    """What is asked for, the longest parts first, each of all models before the next."""
    every = [Item(model, part, name) for part, each in PARTS.items() for name in each.items for model in ARCHITECTURES]
    chosen = [item for item in every if item.chosen(options.only)]
    if not chosen:
        raise ValueError(
            f"only={options.only}: nothing is called so; there are the models {', '.join(ARCHITECTURES)} and the parts {', '.join(PARTS)}"
        )
    return chosen


def measure(options: ArchitecturesOptions):
    """Measure what is not finished yet, several items at a time."""
    options.runs.mkdir(parents=True, exist_ok=True)
    due = [item for item in items(options) if not item.finished(options.runs)]
    with Bar(len(due), "architectures", unit="item") as bar:
        for _ in worked(Worker, (options,), due, processes=options.processes, minutes=options.minutes):
            bar.update(1)


class Worker:
    """Measures one item after another; models stay loaded."""

    def __init__(self, options: ArchitecturesOptions):
        self.options = options
        self.loaded: dict[str, Measured] = {}

    def __call__(self, item: Item):
        options = self.options
        if item.model not in self.loaded:
            self.loaded[item.model] = Measured(item.model, options.sizes, options.runs, options.device)
        began = time.monotonic()
        tables = PARTS[item.part].measure(self.loaded[item.model], item.name)
        for name in PARTS[item.part].tables:
            rows = tables[name].assign(model=item.model)
            write_bytes(item.file(options.runs, name), rows.to_csv(index=False).encode())
        print(f"{item.model}:{item.part}:{item.name} took {time.monotonic() - began:.0f} s", flush=True)


def kept(options: ArchitecturesOptions, table: str) -> pd.DataFrame:
    """All rows of a table that there are, in the order of models and items."""
    found = list(_files(options.runs, table))
    return pd.concat([pd.read_csv(path) for path in found], ignore_index=True) if found else pd.DataFrame()


def _files(runs: Path, table: str) -> Iterator[Path]:
    for model in ARCHITECTURES:
        for part, each in PARTS.items():
            for name in each.items if table in each.tables else ():
                path = Item(model, part, name).file(runs, table)
                if (
                    path.exists() and path.read_bytes().count(b"\n") > 1
                ):  # an architecture without cross-attention has no rows
                    yield path


if __name__ == "__main__":
    main(tyro.cli(ArchitecturesOptions))
