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
from typing import NamedTuple

import pandas as pd
import tyro

import workbench as wb
from workbench.experiments.store import Folder
from workbench.experiments.workers import TRIES
from workbench.localize.causal_trace import Tracing
from workbench.metrics import Measures

LEASE = 2.0  # seconds


class Logged(Tracing):
    """A trace that notes which parts are begun, in which group and process, and which are computed."""

    log: Path

    def measure_all(self, group, names, bar):
        self.note("begun", group, names)
        rows = super().measure_all(group, names, bar)
        self.note("computed", group, names)
        return rows

    def note(self, what: str, group, names):
        with open(self.log, "a") as log:
            log.writelines(f"{what} {next(iter(group))} {name} {os.getpid()}\n" for name in names)


class Note(NamedTuple):
    """What happened to a part, in which group, which is called by its first part, and in which process."""

    what: str
    group: str
    part: str
    process: int


def notes(log: Path) -> list[Note]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [Note(*own, int(process)) for *own, process in map(str.split, lines)]


class Killer(threading.Thread):
    """Kills the process of a group that is begun, as often as asked; none so often that the experiment would give it up."""

    def __init__(self, log: Path, kills: int, rng: random.Random):
        super().__init__(daemon=True)
        self.log, self.kills, self.rng = log, kills, rng
        self.killed: list[tuple[str, int]] = []
        self.over = threading.Event()

    def run(self):
        while len(self.killed) < self.kills and not self.over.wait(self.rng.uniform(0.2, 2.0)):
            running = {(each.group, each.process) for each in notes(self.log) if each.what == "begun"}
            running -= {(each.group, each.process) for each in notes(self.log) if each.what == "computed"}
            running -= set(self.killed)
            often = Counter(group for group, _ in self.killed)
            chosen = sorted(each for each in running if often[each[0]] < TRIES - 1)
            if chosen:
                group, process = self.rng.choice(chosen)
                os.kill(process, signal.SIGKILL)
                self.killed.append((group, process))


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
    begun = Counter(each.part for each in noted if each.what == "begun")
    computed = Counter(each.part for each in noted if each.what == "computed")
    group_of = {each.part: each.group for each in noted}
    died = Counter(group for group, _ in killer.killed)
    assert set(begun) == set(tracing.parts()) == set(computed), "parts are missing"
    assert len(killer.killed) == options.kills, f"only {len(killer.killed)} kills: give more prompts or draws"
    again = {part: times for part, times in begun.items() if times > 1 + died[group_of[part]]}
    assert not again, f"begun more often than workers died at them: {again}"
    print(
        f"{len(begun)} parts in {len(set(group_of.values()))} groups, {len(killer.killed)} workers killed at {len(died)} of them, "
        f"{sum(begun.values())} begun, {sum(computed.values())} computed (a worker may die between computing and writing), rows equal; "
        f"{seconds:.0f} s"
    )


if __name__ == "__main__":
    main(tyro.cli(KillOptions))
