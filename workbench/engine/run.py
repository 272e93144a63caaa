"""Worlds in, labelled results out: a run in batches.

All worlds of a run go through the denoiser as rows of one batch, from the same noise per seed, so that "take the clean world's
value" is a read of another row of the same forward pass. A batch that must be split carries the worlds that are read along.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.engine.batch import Batch, Fold, Settings
from workbench.engine.between import ends_by_itself
from workbench.engine.call import guided
from workbench.engine.calls import Calls, calls_in
from workbench.engine.disk import OnDisk
from workbench.engine.plan import Plan, batches, check_reach, plan
from workbench.engine.prefix import OVERHEAD, Held, Stage, resumable, stages, whole
from workbench.engine.result import Run, not_finite
from workbench.engine.switches import check_switches
from workbench.engine.text import encode, text_values
from workbench.families import family_of
from workbench.interventions import World
from workbench.locks import lock_of
from workbench.memory import free_bytes
from workbench.progress import Bar
from workbench.sites import IMAGE, Site


def prepare(model, worlds: Sequence[World], settings: Settings) -> Plan:
    """What a run would do, checked: raises for whatever does not fit, before anything is computed."""
    pipeline = model.pipeline
    check_switches(pipeline)
    calls = calls_in(pipeline, settings.num_inference_steps, settings.height, settings.width)
    if settings.start is not None:
        if not ends_by_itself(pipeline):
            raise ValueError(
                f"run_once: a {type(pipeline).__name__} cannot be told to end behind one step, nor to begin with a picture; look at a run"
            )
        if len(calls) != calls.steps:
            raise ValueError(
                f"run_once: {type(pipeline.scheduler).__name__} takes several calls of the denoiser in a step; set a scheduler of one, "
                "such as DDIMScheduler"
            )
        calls = Calls((0,), (calls.timestep[settings.start.step],))
    return plan(model, worlds, calls, guided(pipeline, settings.guidance_scale), (settings.height, settings.width))


def run(
    model,
    worlds: Sequence[World],
    seeds: Sequence[int],
    settings: Settings,
    *,
    record: Sequence[str | Fold] = (),
    batch_size: int = 16,
    progress: bool = True,
    latents: torch.Tensor | None = None,
    reuse: bool = True,
    read: Sequence[World] = (),
    held: Held | None = None,
    record_to: Path | None = None,
) -> Run:
    """Generate every world from every seed; see `Model.run`.

    read: further worlds that these read, of which no images are returned. held: latents that other runs of this model, alike in all but
    their worlds, have kept, and that this one adds to; see `workbench.engine.prefix`. record_to: a folder for what is recorded.
    """
    with lock_of(model.pipeline):
        held = {} if held is None else held
        return _run(
            model,
            tuple(worlds),
            list(seeds),
            settings,
            record,
            batch_size,
            progress,
            latents,
            reuse,
            tuple(read),
            held,
            record_to,
        )


def _run(model, worlds, seeds, settings, record, batch_size, progress, latents, reuse, read, held, record_to) -> Run:
    prepared = prepare(model, [*read, *worlds], settings)
    known = {world.name: world for world in (*read, *worlds)}
    drawn = [world.name for world in worlds]
    sites = model.sites_at(settings.height, settings.width)
    folds = [each for each in record if isinstance(each, Fold)]
    globs = [each for each in record if not isinstance(each, Fold)]
    recorded = list(sites(*globs)) if globs else []
    _check_names(recorded, folds)
    for site in (*recorded, *(site for fold in folds for site in sites(*fold.sites))):
        _check_recorded(model.pipeline, site)
    rows = min(batch_size, len(known) * len(seeds))
    disk = _disk(record_to, recorded, folds, drawn, seeds, prepared.calls, rows)
    beginnings = None if latents is None else dict(zip(seeds, latents))
    reusing = reuse and not record and settings.start is None
    layout = laid_out(model.pipeline, prepared, known, drawn, seeds, batch_size, held if reusing else None)
    others, source_texts = other_values(model.pipeline, prepared), texts_read(model, known, layout)
    kept: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
    fired: Counter[tuple[str, int]] = Counter()
    shown = Bar(sum(len(stage.plan.calls) for stage, _, _ in layout), "denoising", "call", shown=progress)
    with nullcontext() if disk is None else disk.writing(), shown as bar:
        for stage, group, some in layout:
            steps = None
            if len(stage.plan.calls) < len(prepared.calls):
                steps = (stage.start, stage.start + len(stage.plan.calls))  # one call a step
            rows = [(world.name, seed) for world in group for seed in some]
            new = {row: key for row, key in enumerate(rows) if key[0] in stage.drawn and key not in kept}
            places = {row: (drawn.index(name), seeds.index(seed)) for row, (name, seed) in new.items()}
            sinks = None if disk is None else disk.sinks(places)
            batch = Batch(model, group, some, stage.plan, recorded, folds, sites, others, source_texts, steps, sinks)
            begin = None if beginnings is None else torch.stack([beginnings[seed] for seed in some])
            begun = None
            if stage.start:
                begun = torch.stack([held[stage.begun[name], seed, stage.start] for name, seed in rows])
            wanted = {(name, step): key for (name, step), key in stage.kept.items() if name in batch.index}
            images, denoised = batch.trace(settings, begin, bar, begun=begun, kept={step for _, step in wanted})
            if disk is not None:
                disk.finish(batch, places)
            kept |= rows_of(new, {"image": images, "denoised": denoised} | (batch.taken() if disk is None else {}))
            for row, (name, seed) in enumerate(rows):
                for step in [step for each, step in wanted if each == name]:
                    held[wanted[name, step], seed, step] = batch.boundaries[step][row]
            fired.update(batch.fired)
        return _labelled(worlds, seeds, kept, recorded, folds, prepared.calls, dict(fired), disk)


def rows_of(
    keys: Mapping[int, tuple[str, int]], values: Mapping[str, torch.Tensor]
) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    """Values (row, ...) by the rows' keys."""
    return {key: {name: value[row] for name, value in values.items()} for row, key in keys.items()}


def laid_out(
    pipeline,
    prepared: Plan,
    known: Mapping[str, World],
    drawn: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    held: Held | None,
) -> list[tuple[Stage, list[World], list[int]]]:
    """The batches of a run, in their order. held: latents that there are; None where every step is to be run."""
    every = [known[name] for name in drawn]
    list(batches(every, seeds, batch_size, prepared.reads, known))  # raises for what does not fit a batch
    found = [whole(prepared, drawn)]
    if held is not None and resumable(pipeline):
        found = stages(prepared, known, drawn, seeds, batch_size, held)
    return [
        (stage, group, some)
        for stage in found
        for group, some in batches([known[name] for name in stage.worlds], seeds, batch_size, stage.plan.reads, known)
    ]


@dataclass
class Work:
    """What a run takes: pipeline calls (batches), calls of the denoiser, and rows through it (of one half), in all of these calls."""

    batches: int = 0
    calls: int = 0
    rows: int = 0
    largest: int = 0

    def add(self, rows: int, calls: int):
        """A batch of so many rows, with so many calls."""
        self.batches += 1
        self.calls += calls
        self.rows += rows * calls
        self.largest = max(self.largest, rows)

    def begun_late(self, largest: int) -> "Work":
        """The most that is left of a run's work where worlds may start late, which they do where that costs less by `Stage.cost`. largest:
        rows that a batch may have."""
        cost = self.rows + OVERHEAD * self.calls
        calls = max(self.calls, cost // (1 + OVERHEAD))  # no call has less than a row
        return Work(calls, calls, cost, largest)

    def __iadd__(self, other: "Work") -> "Work":
        self.batches, self.calls, self.rows = (
            self.batches + other.batches,
            self.calls + other.calls,
            self.rows + other.rows,
        )
        self.largest = max(self.largest, other.largest)
        return self


def count_work(
    model,
    worlds: Sequence[World],
    seeds: Sequence[int],
    settings: Settings,
    work: Work,
    *,
    batch_size: int = 16,
    read: Sequence[World] = (),
    held: Held | None = None,
    reuse: bool = True,
    at_most: bool = False,
):
    """Add to `work` what `run` would do, and to `held` what it would keep; nothing is computed, and errors are those of the run.

    reuse: False counts all steps of all worlds, as of a run in which something is recorded. at_most: counts the most that other worlds
    may take that read as many, wherever in the steps their interventions begin, if those of these begin late.
    """
    prepared = prepare(model, [*read, *worlds], settings)
    known = {world.name: world for world in (*read, *worlds)}
    names, seeds = [world.name for world in worlds], list(seeds)
    held = {} if held is None else held
    own, resumed = Work(), held if reuse and not at_most else None
    for stage, group, some in laid_out(model.pipeline, prepared, known, names, seeds, batch_size, resumed):
        own.add(len(group) * len(some), len(stage.plan.calls))
        held |= {(key, seed, step): torch.empty(0) for (_, step), key in stage.kept.items() for seed in some}
    late = resumable(model.pipeline) and any(0 < prepared.begins(name) < prepared.calls.steps for name in names)
    work += own.begun_late(min(batch_size, len(known) * len(seeds))) if at_most and late else own


def other_values(pipeline, prepared: Plan) -> dict[tuple[str, Site], torch.Tensor]:
    """What sites are for the prompts that rules name: (1, ...) each; a prompt is encoded once in a run.

    A projection's is had by calling its module, so that adapters act as they do in the run.
    """
    values: dict[tuple[str, Site], torch.Tensor] = {}
    encoded: dict[str, tuple] = {}
    family = family_of(pipeline)
    dtype = family.model(pipeline).dtype  # asked once: with adapters the answer takes milliseconds
    with torch.no_grad():
        for action in prepared.actions:
            prompt, site = action.rule.other_prompt, action.site
            if prompt is None or (prompt, site) in values:
                continue
            if prompt not in encoded:
                encoded[prompt] = encode(pipeline, prompt)
            states, pooled = encoded[prompt]
            if site.kind == "pooled":
                values[prompt, site] = pooled if site.part == "denoiser" else _own_pooled(pipeline, site, pooled)
                continue
            given = states.to(dtype) if family.given is None else family.given(pipeline, site, states.to(dtype))
            if site.port in ("context", "input"):
                values[prompt, site] = given
            else:
                module = getattr(pipeline, site.component).get_submodule(site.module.partition(".")[2])
                values[prompt, site] = module(given)
    return values


def texts_read(
    model, known: Mapping[str, World], layout: Sequence[tuple[Stage, Sequence[World], Sequence[int]]]
) -> dict[tuple[str, Site], torch.Tensor]:
    """Text states (1, ...) that worlds of a batch read of others without a row in it, by the other's name and the site."""
    needed: dict[str, list[Site]] = {}
    for stage, group, _ in layout:
        names = {world.name for world in group}
        for action in stage.plan.actions:
            source = action.rule.source_world
            if (
                source is None
                or source in names
                or action.world not in names
                or not stage.plan.reads_text_alone(action)
            ):
                continue
            if action.site not in needed.setdefault(source, []):
                needed[source].append(action.site)
    return {
        (name, site): value
        for name, sites in needed.items()
        for site, value in text_values(model, [known[name].prompt], sites).items()
    }


def _own_pooled(pipeline, site: Site, pooled: torch.Tensor) -> torch.Tensor:
    """A text encoder's part of the pooled vector: they stand side by side on channels."""
    family = family_of(pipeline)
    names = [encoder.component for encoder in family.present(pipeline) if encoder.pooled]
    widths = [getattr(pipeline, name).config.projection_dim for name in names]
    return pooled.split(widths, -1)[names.index(site.component)]


def _labelled(
    worlds: tuple[World, ...],
    seeds: list[int],
    kept: Mapping[tuple[str, int], dict[str, torch.Tensor]],
    recorded: Sequence[Site],
    folds: Sequence[Fold],
    calls: Calls,
    fired: dict[tuple[str, int], int],
    disk: OnDisk | None,
) -> Run:
    names = [world.name for world in worlds]

    def collect(key: str, axes: tuple[str, ...]) -> xr.DataArray:
        stacked = torch.stack([torch.stack([kept[world.name, seed].pop(key) for seed in seeds]) for world in worlds])
        return xr.DataArray(stacked.numpy(), dims=("world", "seed", *axes), coords={"world": names, "seed": seeds})

    axes = {site.name: (("step",) if site.looped else ()) + site.axes[1:] for site in recorded}
    axes |= {fold.name: fold.axes for fold in folds}
    values = {name: collect(name, own) if disk is None else disk.array(name) for name, own in axes.items()}
    for site in recorded:
        values[site.name] = values[site.name].assign_coords(step_labels(site, calls))
    images = collect("image", ("colour", "y", "x")).transpose("world", "seed", "y", "x", "colour")
    if not_finite(images.values):
        broken = [name for name in names if not_finite(images.sel(world=name).values)]
        raise FloatingPointError(
            f"images of worlds {broken} are not finite: weaken their interventions, or load the model in float32"
        )
    return Run(worlds, images, collect("denoised", IMAGE[1:]), values, fired)


def step_labels(site: Site, calls: Calls) -> dict[str, Any]:
    """Labels of a site's values along `step`, one for each call of the denoiser (between steps: for each step)."""
    if not site.looped:
        return {}
    own = [call for call in range(len(calls)) if site.port != "step" or calls.ends(call)]
    return {
        "step": [calls.step[call] for call in own],
        "timestep": ("step", [calls.timestep[call] for call in own]),
    }


def _check_names(recorded: Sequence[Site], folds: Sequence[Fold]):
    """Raise ValueError where two recordings would have one name."""
    times = Counter([*(site.name for site in recorded), *(fold.name for fold in folds)])
    if repeated := [name for name, number in times.items() if number > 1]:
        raise ValueError(f"record: {repeated} are recorded more than once; give each wb.Fold a name of its own")


def _check_recorded(pipeline, site: Site):
    try:
        check_reach(pipeline, site)
    except ValueError as error:
        raise ValueError(f"record: {site.name}: {error}") from None


def _disk(
    folder: Path | None,
    recorded: Sequence[Site],
    folds: Sequence[Fold],
    worlds: list[str],
    seeds: list[int],
    calls: Calls,
    rows: int,
) -> OnDisk | None:
    """Where recordings go; None is memory. Raises, before anything runs, MemoryError for what would not fit. rows: of a batch."""
    free = free_bytes(torch.device("cpu"))  # where they are kept
    if folder is None:
        images = len(worlds) * len(seeds)
        size = sum(4 * images * int(np.prod(site.sizes)) * (len(calls) if site.looped else 1) for site in recorded)
        if 2 * size > free:  # once as rows, once stacked
            raise MemoryError(
                f"recording {len(recorded)} sites for {images} images would take {2 * size / 2**30:.1f} GiB, "
                f"{free / 2**30:.1f} GiB are free; record fewer sites, images or steps, accumulate with a wb.Fold, or "
                "keep them in a folder: record_to="
            )
        return None
    disk = OnDisk(folder, recorded, folds, worlds, seeds, {site: step_labels(site, calls) for site in recorded})
    if (size := disk.held(rows)) > free:
        raise MemoryError(
            f"record_to=: what is held of a batch of {rows} images would take {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
            "give a smaller batch_size, or record fewer sites"
        )
    return disk
