"""What is shown of a run, of an experiment's results, or of a folder of them."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import xarray as xr
from PIL import Image

from workbench.engine import Run
from workbench.experiments.results import averages, effects, measured_by, open_results
from workbench.experiments.shards import SPEC
from workbench.inputs import shown, user_path
from workbench.localize.locogen import LocoGen
from workbench.metrics import pixel_distance
from workbench.pictures import data_url
from workbench.steering.sweep import Sweep
from workbench.viewer.views import Axis, Study, View, axis_of, effect_views, key

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.steering.direction import Direction
    from workbench.viewer.drawing import Drawing

Results = Union[Run, xr.Dataset, LocoGen, Sweep, str, Path]  # noqa: UP007  some names are texts
LARGEST = 256  # side of a picture in pixels
SCORES = "Results hold scores and no pictures."
KINDS = "a run, what wb.causal_trace, wb.locogen, wb.steer_sweep or wb.open_results return, or a folder of such results"


def studies_of(results: Results | Mapping[str, Results], argument: str = "results") -> dict[str, Run | xr.Dataset]:
    """Runs and results by title. A folder is one experiment's, or holds those of several, which are called by their own folders.

    Raises ValueError for anything else, FileNotFoundError for a folder without results. Experiments in a folder that are no scores
    by world are left out, with a warning.
    """
    if isinstance(results, Mapping) and not isinstance(results, xr.Dataset):
        found: dict[str, Run | xr.Dataset] = {}
        for title, each in results.items():
            inner = studies_of(each, f"{argument}[{title!r}]")
            found |= {title if len(inner) == 1 else f"{title}/{name}": one for name, one in inner.items()}
        if not found:
            raise ValueError(f"{argument} is empty; give {KINDS}")
        return found
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
        spec = json.loads(results.attrs["spec"])
        return {f"{spec['experiment']}: {spec['prompt_set']}": results}
    if isinstance(results, (str, Path)):
        return _in_folder(user_path(results, argument))
    raise ValueError(f"{argument}={shown(results)}, a {type(results).__name__}: give {KINDS}")


def _in_folder(folder: Path) -> dict[str, Run | xr.Dataset]:
    inner = sorted({path.parent for path in folder.rglob(SPEC)} - {folder})
    if not inner or (folder / SPEC).exists():
        return studies_of(open_results(folder))
    found: dict[str, Run | xr.Dataset] = {}
    left_out = []
    for each in inner:
        try:
            found[each.relative_to(folder).as_posix()] = open_results(each)
        except (ValueError, FileNotFoundError) as error:
            left_out.append(str(error))
    if not found:
        raise ValueError(f"{folder}: none of its {len(inner)} experiments can be shown; the first: {left_out[0]}")
    for why in left_out:
        warnings.warn(f"left out: {why}", stacklevel=4)
    return found


def study_of(title: str, results: Run | xr.Dataset) -> Study:
    """What is shown of one of them, without the pictures that a model draws."""
    return of_run(title, results) if isinstance(results, Run) else of_results(title, results)


def drawing_of(results: Run | xr.Dataset, model: "Model", direction: "Direction | None") -> "Drawing":
    """Draws pictures behind the cells. Raises ValueError where this model cannot."""
    from workbench.viewer import drawing

    if isinstance(results, Run):
        return drawing.LatentsDrawing(results, model)
    worlds, axes = set(results.data_vars), set(results.sizes)
    if "restored" in worlds:
        return drawing.TraceDrawing(results, model)
    if "patched" in worlds:
        return drawing.LocoGenDrawing(results, model)
    if "steered" in worlds and {"site", "strength"} <= axes:
        if direction is None:
            raise ValueError(
                "results of a sweep hold no more than a digest of their direction; give direction= to draw their pictures"
            )
        return drawing.SweepDrawing(results, model, direction)
    name = json.loads(results.attrs["spec"])["experiment"]
    raise ValueError(
        f"only pictures of causal traces, LocoGen and sweeps are drawn again, not those of {name!r}; leave the model out"
    )


def drawings_of(
    studies: Sequence[Study], results: Sequence[Run | xr.Dataset], model: "Model", direction: "Direction | None"
) -> list["Drawing | None"]:
    """Of each study what draws its pictures; one that this model cannot draw says why. Raises ValueError where it can draw none."""
    drawings: list[Drawing | None] = []
    for study, each in zip(studies, results):
        try:
            drawings.append(drawing_of(each, model, direction))
        except ValueError as error:
            drawings.append(None)
            study.hint = f"No pictures: {error}"
    if not any(drawings):
        raise ValueError(f"{studies[0].title}: {studies[0].hint.removeprefix('No pictures: ')}")
    return drawings


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
    views = list(_views(data.drop_vars(texts), list(spec.get("site_facts", {}))))
    if not views:
        raise ValueError(f"{title}: its scores have no axis beside prompts and seeds, so there is no heat-map to show")
    choices = [axis_of(data, name) for name in ("seed", "draw") if name in data.dims]
    prompts = [spec["prompts"][int(number)] for number in data.prompt.values]
    choices.insert(0, Axis("prompt", tuple(each["prompt"] for each in prompts), about=_of_prompts(prompts)))
    return Study(title, list(_about(spec, data)), views, choices, hint=SCORES)


def _of_prompts(prompts: Sequence[Mapping[str, str]]) -> tuple[tuple[str, ...], ...]:
    """What a prompt set says of each of its prompts."""
    return tuple(
        tuple(f"{name.replace('_', ' ')}: {text}" for name, text in each.items() if name != "prompt" and text)
        for each in prompts
    )


def _about(spec: Mapping[str, Any], data: xr.Dataset) -> Iterator[str]:
    model, asked = spec["model"], len(spec["prompts"])
    yield (
        f"{spec['experiment']} of {model['pipeline']} with {model['scheduler']['class']}, {spec['num_inference_steps']} steps, "
        f"guidance {spec['guidance_scale']:g}"
    )
    counts = [f"{data.sizes[axis]} {axis}s" for axis in ("prompt", "draw", "seed") if axis in data.dims]
    part = f" ({asked} were asked for; the others are not finished)" if data.sizes["prompt"] < asked else ""
    yield f"prompt set {spec['prompt_set']}: {' x '.join(counts)}{part}"
    versions = json.loads(data.attrs.get("versions", "{}"))
    yield f"computed with {', '.join(f'{name} {number}' for name, number in versions.items())}"


def _of_prompt(metric: str) -> bool:
    """What measures the prompt comes behind what measures a concept, where there is one."""
    return not metric.startswith("concept")


def _views(data: xr.Dataset, order: Sequence[str]) -> Iterator[View]:
    worlds = set(data.data_vars)
    for metric in sorted(data.metric.values.tolist(), key=_of_prompt):
        scores = {name: each for name, each in measured_by(data, metric).items() if each.notnull().any()}
        common = dict(order=order)
        name = metric.replace("_", " ")
        if "restored" in worlds:
            if {"clean", "corrupted", "restored"} <= set(scores):
                contrast = scores["restored"] - scores["corrupted"]
                found = effects(data, metric)
                yield from effect_views(
                    found, scores, contrast, value="indirect_effect", label=f"indirect effect on {name}", signed=True, **common
                )
        elif "patched" in worlds:
            if {"clean", "full", "patched"} <= set(scores):
                rises = metric.startswith("target_")
                found = LocoGen(data).effects(metric.removeprefix("target_"), "max" if rises else "min")
                contrast = (scores["clean"] - scores["patched"]) * (-1 if rises else 1)
                label = f"direct effect: {'rise' if rises else 'fall'} of {name}"
                yield from effect_views(found, scores, contrast, value="direct_effect", label=label, signed=True, **common)
        elif worlds == {"unsteered", "steered"}:
            if len(scores) == 2:
                contrast, found = scores["steered"] - scores["unsteered"], Sweep(data).effects(metric)
                yield from effect_views(
                    found, scores, contrast, value="change", label=f"change of {name}", signed=True, **common
                )
                yield from effect_views(found, scores, scores["steered"], value="value", label=name, signed=False, **common)
        else:
            for world, each in scores.items():
                if set(each.dims) > {"prompt", "seed", "draw"} & set(each.dims) and "prompt" in each.dims:
                    found = averages({"value": each}, attrs=data.attrs | {"metric": metric})
                    yield from effect_views(
                        found, {world: each}, each, value="value", label=f"{name}, {world}", signed=False, **common
                    )


def place_of(results: Run | xr.Dataset, view: View, at: Mapping[str, int]) -> dict[str, Any]:
    """A cell by the values of its axes, as a `Drawing` takes it. at: by their numbers."""
    place = {axis.name: axis.values[at[axis.name]] for axis in view.axes}
    if "kind" in place and isinstance(results, xr.Dataset):
        layer, kind = place.pop("layer"), place.pop("kind")
        place["site"] = results.site.values[(results.layer == layer) & (results.kind == kind)].item()
    return place


def picture_of(results: Run | xr.Dataset, at: Mapping[str, int]) -> tuple[int, int, int]:
    """Prompt, seed and draw, as results call them, of what is chosen among the pictures behind a cell."""
    if isinstance(results, Run):
        return 0, 0, 0
    prompt, seed, draw = (
        int(results[axis].values[at[axis]]) if axis in results.dims else 0 for axis in ("prompt", "seed", "draw")
    )
    return prompt, seed, draw


def as_urls(captioned: Iterable[tuple[str, Image.Image]]) -> list[tuple[str, str]]:
    """Captioned pictures as a page holds them."""
    return [(caption, data_url(picture, LARGEST)) for caption, picture in captioned]
