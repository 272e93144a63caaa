"""Ray's workers killed at random moments of a sweep: `make kills`, or `python tests/kill_workers.py --kills 20`.

A trace is done by two workers while one after another gets SIGKILL in the middle of a part. Its results must be those of one process
that nobody disturbed, bit for bit; no part may be begun again that was finished, and none more often than workers died at it.
"""

import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

import workbench as wb
from workbench.experiments.store import Folder
from workbench.experiments.workers import TRIES
from workbench.localize.causal_trace import Tracing
from workbench.metrics import Measures

LEASE = 2.0  # seconds


class Logged(Tracing):
    """A trace whose every part is noted when it is begun, with its process, and when its rows are computed."""

    log: Path

    def measure(self, p, draw, bar):
        part = f"prompt{p:04d}-draw{draw:02d}"
        self.note(f"begun {part} {os.getpid()}")
        rows = super().measure(p, draw, bar)
        self.note(f"computed {part} {os.getpid()}")
        return rows

    def note(self, line: str):
        with open(self.log, "a") as log:
            log.write(f"{line}\n")


def notes(log: Path) -> list[tuple[str, str, int]]:
    """What, which part, which process."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(what, part, int(process)) for what, part, process in map(str.split, lines)]


class Killer(threading.Thread):
    """Kills the process of a part that is begun, as often as asked; no part's so often that the experiment would give it up."""

    def __init__(self, log: Path, kills: int, rng: random.Random):
        super().__init__(daemon=True)
        self.log, self.kills, self.rng = log, kills, rng
        self.killed: list[tuple[str, int]] = []
        self.over = threading.Event()

    def run(self):
        while len(self.killed) < self.kills and not self.over.wait(self.rng.uniform(0.2, 2.0)):
            noted = notes(self.log)
            running = {(part, process) for what, part, process in noted if what == "begun"}
            running -= {(part, process) for what, part, process in noted if what == "computed"}
            running -= set(self.killed)
            often = Counter(part for part, _ in self.killed)
            chosen = sorted(each for each in running if often[each[0]] < TRIES - 1)
            if chosen:
                part, process = self.rng.choice(chosen)
                os.kill(process, signal.SIGKILL)
                self.killed.append((part, process))


@dataclass
class KillOptions:
    kills: int = 20
    workers: int = 2
    prompts: int = 12
    draws: int = 3
    num_inference_steps: int = 8
    seed: int = 0


def main(options: KillOptions):
    model, prompts = wb.load(), wb.prompt_set("object")[: options.prompts]
    spec = wb.TraceSpec(
        sites=("text_encoder.[0123].mlp",),
        draws=options.draws,
        seeds=(0,),
        num_inference_steps=options.num_inference_steps,
    )
    tracing = Logged(model, spec, prompts=prompts, measures=Measures.of(None, model))
    with tempfile.TemporaryDirectory() as folder:
        tracing.log = Path(folder) / "whole"
        whole = tracing.table()
        tracing.log = log = Path(folder) / "log"
        killer = Killer(log, options.kills, random.Random(options.seed))
        killer.start()
        began = time.monotonic()
        with wb.Ray(workers=options.workers) as ray:
            found = tracing.table(Folder(Path(folder) / "f", lease_seconds=LEASE), ray)
        seconds = time.monotonic() - began
        killer.over.set()
        killer.join()
        noted = notes(log)
    pd.testing.assert_frame_equal(found, whole, check_exact=True)
    begun = Counter(part for what, part, _ in noted if what == "begun")
    computed = Counter(part for what, part, _ in noted if what == "computed")
    died = Counter(part for part, _ in killer.killed)
    assert set(begun) == set(tracing.parts()) == set(computed), "parts are missing"
    assert len(killer.killed) == options.kills, f"only {len(killer.killed)} kills: give more prompts or draws"
    again = {part: times for part, times in begun.items() if times > 1 + died[part]}
    assert not again, f"begun more often than workers died at them: {again}"
    print(
        f"{len(begun)} parts, {len(killer.killed)} workers killed at {len(died)} of them, {sum(begun.values())} begun, "
        f"{sum(computed.values())} computed (a worker may die between computing and writing), rows equal; {seconds:.0f} s"
    )


if __name__ == "__main__":
    main(tyro.cli(KillOptions))
