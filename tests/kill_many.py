"""Studies that are killed at random moments and begun again: `make kills`, or `python tests/kill_many.py --kills 100`.

With --s3 their parts are kept in an S3 server of their own, which lives through all kills.

Every study runs in a process of its own, which gets SIGKILL after a random time, until it finishes in spite of that. Then its
results must be those of a run that nobody disturbed, bit for bit, and no part that was finished may have been begun again.
"""

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import tyro
from s3 import BUCKET, s3_server

import workbench as wb
from workbench.experiments.remote import at_address
from workbench.experiments.results import open_table
from workbench.experiments.shards import Shards
from workbench.experiments.store import Folder, Store
from workbench.inputs import is_address
from workbench.prompts import PromptSet, prompt_set
from workbench.studies.p2p_pairs import swap_pairs
from workbench.studies.prompt_to_prompt import Swapping

FORK = multiprocessing.get_context("fork")  # a child begins with the model loaded
LEASE = 0.5  # seconds, so that nobody waits long for the dead
REMOTE_LEASE = 4.0  # of a server that may answer late: a lease that ends before its renewal is seen is taken, and the part computed twice
Study = Callable[[Store | None], pd.DataFrame]


def studies(model: wb.Model, scorer: wb.Scorer) -> dict[str, Study]:
    """Small studies of every kind, by name: each takes a store and returns what it found."""
    objects = prompt_set("object")[:3]
    steer = PromptSet("tune", tuple(prompt_set("steer/tune"))[:2], objects.labels)
    concept = wb.Concept("winter", "summer", prompt_set("season").labels, "winter")
    direction = wb.direction(model, *(side[:4] for side in wb.prompt_pairs("winter"))).at("text_encoder.[01].mlp")
    quick = dict(seeds=(0,), num_inference_steps=1)
    steered = partial(_steered, model, steer, direction, concept, scorer)
    return {
        "trace": partial(_trace, model, objects, scorer),
        "LocoGen": partial(_locogen, model, objects, scorer),
        "sweep": partial(steered, wb.steer_sweep, wb.SweepSpec(strengths=(0.5, 1.0), **quick)),
        "search": partial(steered, wb.steer_search, wb.SearchSpec(trials=5, **quick)),
        "adaptive": partial(steered, wb.adaptive_strength, wb.AdaptiveSpec(rounds=3, **quick)),
        "Prompt-to-Prompt": partial(_p2p, model, scorer),
    }


def _trace(model: wb.Model, prompts: PromptSet, scorer: wb.Scorer, store: Store | None) -> pd.DataFrame:
    spec = wb.TraceSpec(sites=("text_encoder.[01].mlp",), draws=2, seeds=(0,), num_inference_steps=1)
    return wb.causal_trace(model, prompts, spec, scorer=scorer, folder=store).to_dataframe()


def _locogen(model: wb.Model, prompts: PromptSet, scorer: wb.Scorer, store: Store | None) -> pd.DataFrame:
    spec = wb.LocoGenSpec(windows=((0, 2), (9, 2)), seeds=(0,), num_inference_steps=1)
    return wb.locogen(model, prompts, spec, scorer=scorer, folder=store).data.to_dataframe()


def _steered(model, prompts, direction, concept, scorer, study, spec, store: Store | None) -> pd.DataFrame:
    found = study(model, prompts, direction, concept, spec, scorer=scorer, folder=store)
    if isinstance(found, wb.Search):
        return found.table
    return found if isinstance(found, pd.DataFrame) else found.data.to_dataframe()


def _p2p(model: wb.Model, scorer: wb.Scorer, store: Store | None) -> pd.DataFrame:
    return Swapping(model, swap_pairs(3), scorer, num_inference_steps=3).table(store)


def new_place(within: str) -> str:
    """Where nothing is kept yet."""
    return f"{within}/{uuid.uuid4().hex[:8]}"


def store_at(place: str) -> Store:
    return at_address(place, lease_seconds=REMOTE_LEASE) if is_address(place) else Folder(place, lease_seconds=LEASE)


def child(study: Study, place: str, log: Path, answer: Path):
    """Do a study in this process, and write down which parts it begins to compute, and what it found."""
    torch.set_num_threads(1)
    take_all = Shards.take_all

    def logged(self: Shards, parts: list[str], compute):
        def begin(names: list[str]):
            with open(log, "a") as file:
                file.writelines(f"{name}\n" for name in names)
            return compute(names)

        return take_all(self, parts, begin)

    Shards.take_all = logged
    study(store_at(place)).to_pickle(answer)


def begun(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def finished(place: str) -> set[str]:
    """Names of the shards that are there."""
    return {name for name in store_at(place).names() if name.endswith(".parquet")}


@dataclass
class Killed:
    """What came of a study: kills, runs to the end, parts computed and parts that had to be begun again."""

    kills: int = 0
    ends: int = 0
    parts: int = 0
    interrupted: int = 0


def kill_many(study: Study, kills: int, folder: Path, rng: random.Random, within: str = "") -> Killed:
    """Kill a study so many times at random moments, and see it through each time; raises AssertionError where it suffers.

    folder: for what the processes write down. within: in whose places parts are kept; in the folder's when left out.
    """
    began = time.monotonic()
    whole = study(None)
    duration, found, number = time.monotonic() - began, Killed(), 0
    within = within or str(folder)
    at, answer = new_place(within), folder / "answer"
    while found.kills < kills or number:
        log = folder / f"log {number}"
        before = finished(at)
        process = FORK.Process(target=child, args=(study, at, log, answer))
        process.start()
        process.join(rng.uniform(0, 1.5 * duration) if found.kills < kills else None)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            found.kills += 1
        logs = [begun(folder / f"log {i}") for i in range(number + 1)]
        again = [name for part in logs[-1] for name in before if name.endswith(f"-{part}.parquet")]
        assert not again, f"finished, and begun again: {again}"
        number += 1
        if process.exitcode == 0:
            pd.testing.assert_frame_equal(pd.read_pickle(answer), whole, check_exact=True)
            count = len(finished(at))
            found.ends, found.parts = found.ends + 1, found.parts + count
            found.interrupted += sum(map(len, logs)) - count
            for each in range(number):
                (folder / f"log {each}").unlink(missing_ok=True)
            at, number = new_place(within), 0
        else:
            assert process.exitcode == -signal.SIGKILL, f"the study failed by itself: {process.exitcode}"
            if finished(at):
                assert len(open_table(at))
    return found


def share_out(study: Study, processes: int, folder: Path, within: str = "") -> list[str]:
    """Several processes on one store: which parts they computed, once all have found what one process finds."""
    whole, at = study(None), new_place(within or str(folder))
    files = [(folder / f"log {i}", folder / f"answer {i}") for i in range(processes)]
    children = [FORK.Process(target=child, args=(study, at, *pair)) for pair in files]
    for process in children:
        process.start()
    for process in children:
        process.join()
        assert process.exitcode == 0
    for _, answer in files:
        pd.testing.assert_frame_equal(pd.read_pickle(answer), whole, check_exact=True)
    return [part for log, _ in files for part in begun(log)]


@dataclass
class KillOptions:
    kills: int = 100
    """Of all studies together."""
    processes: int = 4
    """On one folder."""
    s3: bool = False
    """Keep parts in an S3 server."""
    seed: int = 0
    studies: tuple[str, ...] = ()
    """Only these; all when left out."""


def main(options: KillOptions):
    every = studies(wb.load(), wb.Scorer())
    chosen = {name: every[name] for name in options.studies or every}
    rng, rows = random.Random(options.seed), []
    with s3_server() if options.s3 else nullcontext():
        within = f"s3://{BUCKET}" if options.s3 else ""
        for i, (name, study) in enumerate(chosen.items()):
            kills = options.kills // len(chosen) + (i < options.kills % len(chosen))
            with tempfile.TemporaryDirectory() as folder:
                found = kill_many(study, kills, Path(folder), rng, within)
            with tempfile.TemporaryDirectory() as folder:
                parts = share_out(study, options.processes, Path(folder), within)
            assert len(parts) == len(set(parts)), f"{name}: computed twice by {options.processes} processes: {parts}"
            rows.append({"study": name, **vars(found), f"parts of {options.processes} processes": len(parts)})
            print(rows[-1], file=sys.stderr, flush=True)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main(tyro.cli(KillOptions))
