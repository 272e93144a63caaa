"""A second worker of Ray's, of `workbench.studies.speed`: rows of workers must be those of one process, bit for bit."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from workbench.experiments.workers import Ray
from workbench.localize.causal_trace import Tracing
from workbench.localize.specs import TraceSpec
from workbench.metrics import Measures
from workbench.models import Model
from workbench.prompts import prompt_set

SPEC = TraceSpec(sites=("text_encoder.*.mlp",), draws=1, seeds=(0,), num_inference_steps=12)


def by_workers(model: Model, counts: Sequence[int], *, prompts: int, turns: int) -> tuple[dict[int, float], int]:
    """Median seconds of a trace by so many ready workers of one thread each, in turn; and its images.

    Raises RuntimeError where workers find other rows than this process.
    """
    tracing = Tracing(model, SPEC, prompts=prompt_set("object")[:prompts], measures=Measures.of(None, model))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = tracing.table()
        times: dict[int, list[float]] = {workers: [] for workers in counts}
        for _ in range(turns):
            for workers in counts:
                rows, seconds = timed(tracing, workers)
                if not rows.equals(whole):
                    raise RuntimeError(
                        f"{workers} workers find other rows than one process: their times cannot be compared"
                    )
                times[workers].append(seconds)
    finally:
        torch.set_num_threads(before)
    return {workers: median(seconds) for workers, seconds in times.items()}, tracing.total()


def timed(tracing: Tracing, workers: int) -> tuple[pd.DataFrame, float]:
    """Rows, and the seconds that workers take which have loaded the model: a trace of one prompt for each comes before."""
    few = Tracing(tracing.model, tracing.spec, prompts=tracing.prompts[:workers], measures=tracing.measures)
    with tempfile.TemporaryDirectory() as folder, Ray(workers=workers) as ray:
        few.table(Path(folder) / "few", ray)
        if ray.team.starting:
            ray.team.ray.wait(list(ray.team.starting), num_returns=len(ray.team.starting))
        began = time.perf_counter()
        rows = tracing.table(Path(folder) / "all", ray)
        return rows, time.perf_counter() - began
