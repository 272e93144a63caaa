"""What a second worker saves: `python -m workbench.studies.speed_workers`.

A text-encoder trace of the embedded model by one and by two of Ray's workers of one thread each, on this machine: the seconds of workers
that are ready, and those with their start, which loads torch and the model. Both must find the rows of this process, bit for bit.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import tyro

from workbench.experiments.workers import Ray
from workbench.localize.causal_trace import Tracing
from workbench.localize.specs import TraceSpec
from workbench.metrics import Measures
from workbench.models import Model, load
from workbench.prompts import prompt_set


@dataclass
class WorkersOptions:
    out: Path = Path("runs/figures/speed_workers.csv")
    prompts: int = 16
    draws: int = 1
    sites: tuple[str, ...] = ("text_encoder.*.mlp",)
    num_inference_steps: int = 12
    workers: tuple[int, ...] = (1, 2)
    repeats: int = 1
    """Of each number of workers, in turn; the medians count."""


def two_workers(model: Model, options: WorkersOptions) -> pd.DataFrame:
    """One row for each number of workers: parts, images, seconds of ready workers and with their start, and the ratios to the first row.

    Raises RuntimeError where workers find other rows than this process.
    """
    prompts = prompt_set("object")[: options.prompts]
    spec = TraceSpec(
        sites=options.sites, draws=options.draws, seeds=(0,), num_inference_steps=options.num_inference_steps
    )
    tracing = Tracing(model, spec, prompts=prompts, measures=Measures.of(None, model))
    torch.set_num_threads(1)
    whole, rows = tracing.table(), []
    for repeat in range(options.repeats):
        for workers in options.workers:
            found, ready, started = by_workers(tracing, workers)
            if not found.equals(whole):
                raise RuntimeError(
                    f"{workers} workers find other rows than one process: their times cannot be compared"
                )
            counts = dict(workers=workers, parts=len(tracing.parts()), images=tracing.total(), repeat=repeat)
            rows.append(counts | {"seconds": ready, "seconds_with_start": started + ready})
    table = pd.DataFrame(rows).groupby(["workers", "parts", "images"], as_index=False).median().drop(columns="repeat")
    first = table[table.workers == options.workers[0]].iloc[0]
    for column in ("seconds", "seconds_with_start"):
        table[column.replace("seconds", "ratio")] = first[column] / table[column]
    return table


def by_workers(tracing: Tracing, workers: int) -> tuple[pd.DataFrame, float, float]:
    """Rows; seconds that ready workers take; and seconds until all of them were, by a trace of one prompt for each."""
    few = Tracing(tracing.model, tracing.spec, prompts=tracing.prompts[:workers], measures=tracing.measures)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with Ray(workers=workers) as ray:
            few.table(Path(folder) / "few", ray)
            ray.team.ray.wait(
                list(ray.team.starting), num_returns=len(ray.team.starting)
            ) if ray.team.starting else None
            ready = time.perf_counter()
            found = tracing.table(Path(folder) / "all", ray)
            return found, time.perf_counter() - ready, ready - began


def main(options: WorkersOptions):
    table = two_workers(load(), options).round(3)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out, index=False)
    print(table.to_string(index=False), f"\nrows are those of one process, bit for bit; wrote {options.out}")


if __name__ == "__main__":
    main(tyro.cli(WorkersOptions))
