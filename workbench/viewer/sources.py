"""What may be shown: runs and results as they are given, or found in folders."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import xarray as xr

from workbench.engine import Run
from workbench.experiments.results import dataset, open_results
from workbench.experiments.shards import SPEC, Shards, opened
from workbench.experiments.store import Store, as_store
from workbench.inputs import folder_or_address, shown
from workbench.localize.locogen import LocoGen
from workbench.steering.experiment import UNSTEERED
from workbench.steering.sweep import Sweep

Results = Union[Run, xr.Dataset, LocoGen, Sweep, str, Path]  # noqa: UP007  some names are texts
Held = Run | xr.Dataset | Shards | str
"""Scores by world as labelled arrays, other rows as the shards that hold them; a text says why there is nothing to show."""
KINDS = "a run, what wb.causal_trace, wb.locogen, wb.steer_sweep or wb.open_results return, or a folder of such results"


def sources_of(results: Results | Mapping[str, Results], argument: str = "results") -> dict[str, Held]:
    """Runs and results by title. A folder is one experiment's, or holds those of several, which are called by their own folders.

    Raises ValueError for anything else, FileNotFoundError for a folder without results.
    """
    if isinstance(results, Mapping) and not isinstance(results, xr.Dataset):
        held: dict[str, Held] = {}
        for title, each in results.items():
            inner = sources_of(each, f"{argument}[{title!r}]")
            held |= {title if len(inner) == 1 else f"{title}/{name}": one for name, one in inner.items()}
        if not held:
            raise ValueError(f"{argument} is empty; give {KINDS}")
        return held
    if isinstance(results, (LocoGen, Sweep)):
        results = results.data
    if isinstance(results, Run):
        return {"run": results}
    if isinstance(results, xr.Dataset):
        if "spec" not in results.attrs or "metric" not in results.coords:
            raise ValueError(
                f"{argument}: a Dataset of {list(results.data_vars)[:4]} is no experiment's; give {KINDS}, not yet averaged "
                "by wb.effects"
            )
        return {_title(json.loads(results.attrs["spec"])): results}
    if isinstance(results, (str, Path)):
        folder = folder_or_address(results, argument)
        if isinstance(folder, Path) and folder.is_file():
            raise ValueError(
                f"{argument}={str(folder)!r} is a file; give the folder= of an experiment, or one of several"
            )
        return dict(_in_store(as_store(folder)))
    raise ValueError(f"{argument}={shown(results)}, a {type(results).__name__}: give {KINDS}")


def _title(spec: Mapping[str, Any]) -> str:
    return f"{spec['experiment']}: {spec['prompt_set']}"


def _in_store(store: Store) -> Iterator[tuple[str, Held]]:
    for path in store.holding(SPEC) or [""]:
        inner = store.within(path) if path else store
        shards = opened(inner)
        if shards is not None and len(shards):
            yield path or _title(shards.spec), _read(shards)
        elif path:
            yield path, f"No part is finished in {inner}; the call that it comes from goes on with it."
        else:
            open_results(store)  # says what is there


def _read(shards: Shards) -> xr.Dataset | Shards:
    """Scores by world as a Dataset, other rows as they are."""
    return dataset(shards) if {"world", "metric", "value"} <= set(shards.table()) else shards


def unfinished(spec: Mapping[str, Any], parts: Sequence[str]) -> str:
    """What an experiment was asked for and lacks, in a sentence; nothing where it is whole.

    parts: those that are finished. A search and an edit study do not write down how many parts they have.
    """
    missing = [part for part in _asked(spec) if part not in parts]
    if not missing:
        return ""
    some = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
    return (
        f"Unfinished: {len(missing)} of {len(missing) + len(parts)} parts are missing ({some}); averages are over the others. "
        "The call that it comes from goes on with it."
    )


def _asked(spec: Mapping[str, Any]) -> list[str]:
    """Names of all parts, as far as a specification tells: as each `Experiment.parts` gives them."""
    prompts = [f"prompt{p:04d}" for p in range(len(spec.get("prompts", ())))]
    if spec.get("variants"):
        return [UNSTEERED, *spec["variants"]]
    if spec["experiment"] == "adaptive_strength":
        return [UNSTEERED, *(f"round{number:02d}" for number in range(spec["rounds"] + 1))]
    if spec["experiment"] == "causal trace":
        return [f"{prompt}-draw{draw:02d}" for prompt in prompts for draw in range(spec["draws"])]
    if "arms" in spec:
        return [f"{i:04d}" for i in range(len(spec["pairs"]))]
    return prompts if spec["experiment"] in ("LocoGen", "attention") else []
