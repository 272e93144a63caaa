"""What is shown of a run, of an experiment's results, or of a folder of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.engine import Run
from workbench.experiments.results import averages, effects, measured_by
from workbench.experiments.shards import Shards
from workbench.localize.locogen import LocoGen
from workbench.metrics import pixel_distance
from workbench.pictures import data_url
from workbench.steering.sweep import Sweep
from workbench.viewer.sources import Held, unfinished
from workbench.viewer.tables import table_views
from workbench.viewer.views import Axis, Measured, Study, View, axis_of, effect_views, key

LARGEST = 256  # side of a picture in pixels


def study_of(title: str, results: Held) -> Study:
    """What is shown of one of them, without the pictures that a model draws. Of what has no heat-map it says why."""
    if isinstance(results, Run):
        return of_run(title, results)
    if isinstance(results, str):
        return Study(title, [results], [])
    try:
        return of_rows(title, results) if isinstance(results, Shards) else of_results(title, results)
    except ValueError as error:
        return Study(title, [f"Not shown: {error}"], [])


def studies_of(results: Mapping[str, Held]) -> list[Study]:
    """All of them. Raises ValueError where none has a heat-map."""
    studies = [study_of(title, each) for title, each in results.items()]
    if not any(study.views for study in studies):
        said = "; ".join(f"{study.title}: {' '.join(study.about)}" for study in studies[:3])
        raise ValueError(f"results: there is no heat-map to show. {said}")
    return studies


def of_run(title: str, run: Run) -> Study:
    """How far each world is from the first, in its pictures and in what was recorded."""
    first = run.worlds[0].name
    lines = tuple(tuple(_world_lines(world)) for world in run.worlds)
    distances = pixel_distance(run.images, run.images[:1])
    views = [_distance_view(f"pixel distance to {first!r}", "mean absolute difference", run.images, distances, lines)]
    for name, values in run.values.items():
        kept = [axis for axis in ("world", "seed", "step") if axis in values.dims]
        others = tuple(range(len(kept), values.ndim))
        array = np.asarray(values.transpose(*kept, ...).values, np.float64)
        norms = np.sqrt(np.square(array[:1]).sum(others))
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.sqrt(np.square(array - array[:1]).sum(others)) / norms
        relative[~np.isfinite(relative)] = np.nan  # of a norm of zero
        label, unit = f"{name}: distance to {first!r}", f"of the norm in {first!r}"
        views.append(_distance_view(label, unit, values, relative, lines))
    about = [repr(run), f"compared with {first!r}: {'; '.join(lines[0])}"]
    study = Study(title, about, views)
    for w, world in enumerate(run.worlds):
        for s, seed in enumerate(run.images.seed.values.tolist()):
            names = dict.fromkeys([first, world.name])
            study.pictures[key({"world": w, "seed": s})] = [
                (f"{name}, seed {seed}", data_url(run.pil(name, seed)[0], LARGEST)) for name in names
            ]
    return study


def _distance_view(label: str, unit: str, values: xr.DataArray, distances: np.ndarray, lines) -> View:
    kept = [axis for axis in ("world", "seed", "step") if axis in values.dims]
    axes = [axis_of(values, name) for name in kept]
    axes[0] = Axis("world", axes[0].values, ordered=True, about=lines)
    return View(label, unit, tuple(axes), {"value": distances}, signed=False, down="world", across=kept[-1])


def _world_lines(world) -> Iterator[str]:
    yield f"prompt: {world.prompt}"
    if world.negative_prompt is not None:
        yield f"negative prompt: {world.negative_prompt}"
    if world.subject is not None:
        yield f"subject: {world.subject}"
    yield from map(repr, world.interventions)


def of_results(title: str, data: xr.Dataset) -> Study:
    """Heat-maps of every metric of an experiment. Raises ValueError for results without axes beside prompts and seeds."""
    spec = json.loads(data.attrs["spec"])
    texts = [name for name, each in data.coords.items() if each.dims == ("prompt",) and name != "prompt"]
    order = list(spec.get("site_facts", {}))
    views = [view for measured in measured_effects(data.drop_vars(texts)) for view in effect_views(measured, order)]
    if not views:
        said = unfinished(spec, json.loads(data.attrs.get("parts", "[]")))
        raise ValueError(f"its scores have no axis beside prompts and seeds, so there is no heat-map. {said}".strip())
    choices = [axis_of(data, name) for name in ("seed", "draw") if name in data.dims]
    prompts = [spec["prompts"][int(number)] for number in data.prompt.values]
    choices.insert(0, Axis("prompt", tuple(each["prompt"] for each in prompts), about=_of_prompts(prompts)))
    counts = [_counted(data.sizes[axis], axis) for axis in ("prompt", "draw", "seed") if axis in data.dims]
    versions, parts = (json.loads(data.attrs.get(name, "null")) or [] for name in ("versions", "parts"))
    about = _about(spec, " x ".join(counts), dict(versions), parts)
    return Study(title, about, views, choices)


def of_rows(title: str, shards: Shards) -> Study:
    """Heat-maps of every measure of edits, or of edited pairs. Raises ValueError for rows of another form."""
    views, pictures = table_views(shards.table(), shards.spec)
    about = _about(
        shards.spec,
        _counted(len(pictures.values), "pair" if "pairs" in shards.spec else "prompt"),
        shards.versions,
        shards.parts,
    )
    return Study(title, about, views, [pictures])


def _of_prompts(prompts: Sequence[Mapping[str, str]]) -> tuple[tuple[str, ...], ...]:
    """What a prompt set says of each of its prompts."""
    return tuple(
        tuple(f"{name.replace('_', ' ')}: {text}" for name, text in each.items() if name != "prompt" and text)
        for each in prompts
    )


def _about(spec: Mapping[str, Any], counts: str, versions: Mapping[str, str], parts: Sequence[str]) -> list[str]:
    model = spec["model"]
    lines = [
        f"{spec['experiment']} of {model['pipeline']} with {model['scheduler']['class']}, "
        f"{_counted(spec['num_inference_steps'], 'step')}, guidance {spec['guidance_scale']:g}",
        counts if spec["prompt_set"] == "none" else f"prompt set {spec['prompt_set']}: {counts}",
    ]
    if versions:
        lines.append(f"computed with {', '.join(f'{name} {number}' for name, number in versions.items())}")
    if parts and (lacking := unfinished(spec, parts)):
        lines.append(lacking)
    return lines


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _of_prompt(metric: str) -> bool:
    """What measures the prompt comes behind what measures a concept, where there is one."""
    return not metric.startswith("concept")


def measured_effects(data: xr.Dataset) -> Iterator[Measured]:
    """Everything that the scores of an experiment say, metric by metric."""
    worlds = set(data.data_vars)
    for metric in sorted(data.metric.values.tolist(), key=_of_prompt):
        scores = {str(name): each for name, each in measured_by(data, metric).items() if each.notnull().any()}
        name = metric.replace("_", " ")
        if "restored" in worlds:
            if {"clean", "corrupted", "restored"} <= set(scores):
                contrast = scores["restored"] - scores["corrupted"]
                label = f"indirect effect on {name}"
                yield Measured(label, "indirect_effect", effects(data, metric), scores, contrast)
        elif "patched" in worlds:
            if {"clean", "full", "patched"} <= set(scores):
                rises = metric.startswith("target_")
                averaged = LocoGen(data).effects(metric.removeprefix("target_"), "max" if rises else "min")
                contrast = (scores["clean"] - scores["patched"]) * (-1 if rises else 1)
                label = f"direct effect: {'rise' if rises else 'fall'} of {name}"
                yield Measured(label, "direct_effect", averaged, scores, contrast)
        elif worlds == {"unsteered", "steered"}:
            if len(scores) == 2:
                averaged = Sweep(data).effects(metric)
                yield Measured(f"change of {name}", "change", averaged, scores, scores["steered"] - scores["unsteered"])
                yield Measured(name, "value", averaged, scores, scores["steered"], signed=False)
        else:
            for world, each in scores.items():
                if "prompt" in each.dims and set(each.dims) - {"prompt", "seed", "draw"}:
                    averaged = averages({"value": each}, attrs=data.attrs | {"metric": metric})
                    yield Measured(f"{name}, {world}", "value", averaged, {world: each}, each, signed=False)
