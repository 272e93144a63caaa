"""The pipeline by itself, with plain hooks at every site: is the table of sites true, and what is the schedule?"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from workbench.checks.hooks import watched, zeroed
from workbench.checks.trial import Trial, apart
from workbench.engine.call import guided
from workbench.engine.calls import calls_in
from workbench.families import Site
from workbench.families.attention import attention_of, check_attention, explicit_attention
from workbench.memory import free_bytes

COPIES = 6  # of probabilities, in float32, that the explicit softmax and a change of them hold at once
LISTED = 8  # numbers, or pairs of sites, that a claim shows


def draw(trial: Trial):
    """The plain pipeline's picture."""
    trial.picture = trial.claims.tried("plain picture", "the pipeline runs", trial.plain)


def watch(trial: Trial):
    """The pipeline with hooks at every site and attention in the open."""
    halves = 2 if guided(trial.pipeline, trial.guidance_scale) else 1
    sites = [site for site in trial.sites if _askable(trial, site)]
    # of a site that is of no attention the shape will say so
    probs = [site for site in sites if site.axes[1] == "head" and _has_attention(trial, site)]
    between = next((site for site in trial.sites if site.port == "step"), None)

    def at_step_end(pipeline, call, timestep, tensors):
        if between is None or between.grid is None:
            return tensors
        latents = trial.model.family.unpacked(tensors["latents"], between.grid)
        trial.watch.step_end(between, {"latents": latents})
        return tensors

    def draw_watched() -> np.ndarray:
        with (
            explicit_attention(trial.pipeline, probs),
            watched(trial.pipeline, sites, trial.denoiser, halves, trial.model.family.clock) as trial.watch,
        ):
            return trial.plain(at_step_end)

    trial.explicit = trial.claims.tried("plain picture", "the pipeline runs with hooks", draw_watched)
    if trial.picture is not None and trial.explicit is not None:
        away = apart(trial.picture, trial.explicit)
        expected = "draws the pipeline's own picture"
        trial.claims.say("", "explicit attention", expected, f"{away:.2g} apart", away <= trial.tolerance)
    _schedule(trial)
    _sites(trial, [site.name for site in sites])


def _askable(trial: Trial, site: Site) -> bool:
    """Whether a site can be watched; says why not."""
    why = None
    try:
        check_attention(trial.pipeline, site)
    except ValueError as error:
        why = str(error)
    except AttributeError:  # no such module: its shape will say so
        return True
    size, free = COPIES * 2 * 4 * int(np.prod(site.sizes)), free_bytes(next(trial.denoiser.parameters()).device)
    if site.axes[1] == "head" and size > free:
        why = f"it would take {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; give smaller height= and width="
    if why is not None:
        trial.claims.unasked(site.name, "shape", _shape(site, 1), why)
    return why is None


def _has_attention(trial: Trial, site: Site) -> bool:
    try:
        return site.part == "text" or attention_of(trial.pipeline, site) is not None
    except AttributeError:
        return False


def _schedule(trial: Trial):
    """Calls of the denoiser, and rows of its batch."""
    watch, steps = trial.watch, trial.steps
    trial.scheduled = trial.claims.tried(
        "calls", "each call belongs to a step", lambda: calls_in(trial.pipeline, steps, *trial.size)
    )
    if trial.scheduled is not None:
        expected = f"{len(trial.scheduled)} calls at {_numbers(trial.scheduled.timestep)}"
        seen = f"{len(watch.timesteps)} calls at {_numbers(watch.timesteps)}"
        same = len(watch.timesteps) == len(trial.scheduled.timestep) and np.allclose(
            watch.timesteps,
            trial.scheduled.timestep,
            rtol=0 if trial.model.family.clock == 1 else trial.rounding,
            atol=0,
        )
        trial.claims.say("", "calls", expected, seen, same)
    rows = sorted(set(watch.rows))
    trial.claims.say("", "halves", str(watch.halves), _numbers(rows), rows == [watch.halves])


def _sites(trial: Trial, asked: Sequence[str]):
    """Every site against what the hooks saw there."""
    watch, claims = trial.watch, trial.claims
    for site in trial.sites:
        if site.name not in asked:
            continue
        rows = watch.halves if site.part == "denoiser" else 1
        wrong = _wrong_at(trial, site, rows)
        claims.say_unless(site.name, "shape", _shape(site, rows), wrong)
        if wrong is None:
            trial.good.append(site)
            _attention(trial, site)
    place = {name: i for i, name in enumerate(asked)}
    turned = [f"{a} before {b}" for a, b in pairwise(watch.order) if place[a] > place[b]]
    expected = "sites run as they stand in the table"
    claims.say_unless("", "order", expected, "; ".join(turned[:LISTED]) or None)


def _wrong_at(trial: Trial, site: Site, rows: int) -> str | None:
    """What about a site is not as said; None where all is."""
    watch = trial.watch
    if site.name in watch.missing:
        return watch.missing[site.name]
    if site.name not in watch.sites:
        return "never ran"
    shapes = watch.sites[site.name].shapes
    if wrong := sorted({shape for shape in shapes if shape != (rows, *site.sizes)}):
        return " x ".join(map(str, wrong[0]))
    if len(site.axes) != 1 + len(site.sizes):
        return f"{len(site.sizes) + 1} axes"
    if site.looped and len(shapes) != len(watch.timesteps):
        return f"ran {len(shapes)} times in {len(watch.timesteps)} calls"
    if site.grid is not None and int(np.prod(site.grid)) != int(np.prod([site.axis(a) for a in _pixel_axes(site)])):
        return f"a grid of {_by(site.grid)}"
    return None


def _pixel_axes(site: Site) -> list[str]:
    return [axis for axis in ("pixel", "y", "x") if axis in site.axes]


def _attention(trial: Trial, site: Site):
    """Probabilities and outputs of attention, against what they are made of."""
    seen = trial.watch.sites[site.name]
    if site.axes[1] == "head":
        away = f"sums {seen.sums:.1g} from one"
        trial.claims.say(site.name, "probabilities", "sum to one", away, seen.sums <= trial.rounding)
    if seen.attention is not None:
        expected = f"softmax of q and k at {site.heads} heads, times v"
        if isinstance(seen.attention, str):
            trial.claims.say(site.name, "attention", expected, seen.attention, False)
        else:
            away = f"{seen.attention:.1g} apart"
            trial.claims.say(site.name, "attention", expected, away, seen.attention <= trial.rounding)


def unread(trial: Trial, every_site: bool):
    """Sites that are marked as not read, made zero by plain hooks: together, or one by one."""
    sites = [site for site in trial.good if not site.read]
    picture = trial.picture
    if not sites or picture is None:
        return
    expected = "zeros there, by a plain hook, change nothing"

    def away(some: Sequence[Site]) -> float:
        with zeroed(trial.pipeline, some):
            return apart(trial.plain(), picture)

    together = None if every_site else trial.claims.tried("not read", expected, lambda: away(sites))
    for site in sites:
        alone = together if together == 0 else trial.claims.tried("not read", expected, partial(away, [site]))
        if alone is not None:
            trial.claims.say_unless(site.name, "not read", expected, None if alone == 0 else f"{alone:.2g} apart")


def _shape(site: Site, rows: int) -> str:
    return f"{_by((rows, *site.sizes))}: {' '.join(site.axes)}"


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join([f"{value:g}" for value in values[:LISTED]] + ["..."] * (len(values) > LISTED))
