"""The engine on the model: does it give the plain picture, read what hooks saw, and change what it is told to?"""

from functools import partial

import torch

from workbench.checks.hooks import digest
from workbench.checks.trial import Trial, apart
from workbench.families import Site
from workbench.interventions import Intervention, World, apply, replace_prompt, restore, scale

# These remember earlier steps, so that latents alone do not say how a run goes on.
REMEMBERING = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
ZEROS = "zeros there change the picture"
LEAST = 1e-6  # change of a picture that is no rounding, where equal rows do not differ


def plain_picture(trial: Trial):
    """A world without interventions."""
    expected = "the plain pipeline's, bit by bit"
    run = trial.claims.tried("picture", expected, lambda: trial.run(World("plain", trial.prompt)))
    if run is not None and trial.picture is not None:
        away = apart(run.images.values[0, 0], trial.picture)
        trial.claims.say_unless("", "picture", expected, None if away == 0 else f"{away:.2g} apart")


def worlds_of_laws(trial: Trial):
    """Twins, all layers replaced, latents given back."""
    prompt, target, claims = trial.prompt, trial.target, trial.claims
    contexts = [site.name for kind in ("cross.context", "context") for site in trial.sites.where(kind=kind)]
    pooled = [site.name for site in trial.sites.where(kind="pooled", read=True)]
    everywhere = replace_prompt([*contexts, *pooled], target)
    first = (replace_prompt(contexts, target, steps=0), restore("latents", "clean", steps=0))
    run = claims.tried(
        "twins, replaced, latents",
        "the engine runs",
        lambda: trial.run(
            World("clean", prompt),
            World("twin", prompt),
            World("target", target),
            World("replaced", prompt, (everywhere,)),
            World("given back", prompt, first),
        ),
    )
    if run is None:
        return

    def away(a: str, b: str) -> float:
        return apart(run[a].values, run[b].values)

    twins = away("clean", "twin")
    claims.say("", "twins", "equal", f"{twins:.2g} apart", twins <= trial.rounding)

    expected = f"{len(contexts)} layers{' and the pooled vector' if pooled else ''} draw the target"
    prompts, replaced = away("clean", "target"), away("replaced", "target")
    if prompts <= 4 * trial.tolerance:
        why = f"the pictures of prompt= and target= are {prompts:.2g} apart; give prompts whose pictures differ"
        claims.unasked("", "replaced", expected, why)
    else:
        seen = f"{replaced:.2g} apart, the prompts' pictures {prompts:.2g}"
        claims.say("", "replaced", expected, seen, replaced <= min(trial.tolerance, prompts / 20))

    expected = "given back after a step, they give the picture back"
    scheduler = type(trial.pipeline.scheduler).__name__
    if scheduler in REMEMBERING:
        claims.unasked("", "latents", expected, f"{scheduler} remembers earlier steps")
    elif trial.steps == 1:
        claims.unasked("", "latents", expected, "the run has one step")
    else:
        back = away("given back", "clean")
        claims.say("", "latents", expected, f"{back:.2g} apart", back <= trial.rounding)


def reading(trial: Trial):
    """What the engine reads at every site, against what the hooks saw there."""
    sites = [site for site in trial.good if site.read]
    values: dict[str, list[torch.Tensor]] = {site.name: [] for site in sites}

    def reader(site: Site) -> Intervention:
        def look(value: torch.Tensor) -> torch.Tensor:
            values[site.name].append(digest(value))
            return value

        return apply(site.name, look, rows=None if site.part in ("latents", "decoder") else "cond")

    world = World("read", trial.prompt, tuple(reader(site) for site in sites))
    run = trial.claims.tried("read", "the engine runs with every site in use", lambda: trial.run(world))
    if run is None:
        return
    for site in sites:
        seen, own = trial.watch.sites[site.name].digests, values[site.name]
        if site.port == "step" and trial.scheduled is not None:
            seen = [value for call, value in enumerate(seen) if trial.scheduled.ends(call)]
        expected = f"what a hook saw, {len(seen)} values"
        if len(own) != len(seen):
            trial.claims.say(site.name, "read", expected, f"{len(own)} values", False)
            continue
        away = max(float(((a - b).abs() / (1 + b.abs())).max()) for a, b in zip(own, seen))
        trial.claims.say(site.name, "read", expected, f"{away:.1g} apart", away <= trial.rounding)
    if trial.explicit is not None:
        away = apart(run.images.values[0, 0], trial.explicit)
        expected = "functions that return what they are given change nothing"
        trial.claims.say("", "identity", expected, f"{away:.2g} apart", away <= trial.tolerance)


def overwriting(trial: Trial, every_site: bool):
    """Zeros at sites: each must change the picture, by more than equal rows of its batch differ."""
    sites = _overwritten(trial, every_site)
    count, clean, twin = trial.batch_size - 2, World("clean", trial.prompt), World("twin", trial.prompt)
    for some in (sites[at : at + count] for at in range(0, len(sites), count)):
        worlds = [World(site.name, trial.prompt, (scale(site.name, 0.0),)) for site in some]
        run = trial.claims.tried("overwrite", ZEROS, partial(trial.run, clean, *worlds, twin))
        if run is None:
            continue
        rounding = apart(run["twin"].values, run["clean"].values)
        for site in some:
            away = apart(run[site.name].values, run["clean"].values)
            trial.claims.say(site.name, "overwrite", ZEROS, f"{away:.2g} apart", away > 4 * rounding + LEAST)


def _overwritten(trial: Trial, every_site: bool) -> list[Site]:
    """Sites that are read and as said: all of them, or of each component and kind the middle one."""
    kinds: dict[tuple[str, str], list[Site]] = {}
    for site in trial.sites:
        if site.read:
            kinds.setdefault((site.component, site.kind), []).append(site)
    chosen: list[Site] = []
    for (component, kind), sites in kinds.items():
        good = [site for site in sites if site in trial.good]
        # over a single position the softmax is one, whatever its queries and keys
        single = [site for site in good if kind in ("self.q", "self.k") and site.axis("pixel") == 1]
        askable = [site for site in good if site not in single]
        chosen += askable if every_site else askable[len(askable) // 2 :][:1]
        for site in single if every_site or not askable else ():
            trial.claims.unasked(site.name, "overwrite", ZEROS, "the layer has one pixel, which attends to itself")
        if not good:
            trial.claims.unasked("", "overwrite", ZEROS, f"no site {kind} of {component} is as said")
    return chosen
