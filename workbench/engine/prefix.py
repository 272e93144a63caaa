"""Steps that need not be computed: those before a world's first intervention, which worlds that are alike until then share.

A world whose interventions begin at step s starts from latents at s, taken once from a run of all that it is until then: its prompts
and what is done to its text. Worlds that it reads start with it. The image is that of the whole run to rounding, as in a batch of
another size. Only where a scheduler calls the denoiser once in a step, draws no noise and remembers nothing but its place; under
any other, worlds are run whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps

import torch

from workbench.engine.plan import Plan, batches, closure
from workbench.interventions import World

RESUMABLE = {"DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"}
PIPELINES = {
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
}  # which take latents so
OVERHEAD = 2  # rows that a pipeline call costs besides its own
WORTH = 0.95  # the largest share of the whole run's cost at which stages are taken

Held = dict[tuple[object, int, int], torch.Tensor]


@dataclass(frozen=True)
class Stage:
    """Worlds that go through the same steps.

    worlds: their names. plan: of these steps alone. start: the first of them. drawn: names of the worlds whose images come from here.
    kept: (world, step) -> the key under which its latents at the beginning of that step are kept. begun: world -> the key of those that
    it begins with.
    """

    worlds: tuple[str, ...]
    plan: Plan
    start: int
    drawn: frozenset[str]
    kept: Mapping[tuple[str, int], object] = field(default_factory=dict)
    begun: Mapping[str, object] = field(default_factory=dict)

    def cost(self, known: Mapping[str, World], seeds: Sequence[int], batch_size: int) -> int:
        """In calls of the denoiser by rows, those included that a call costs by itself."""
        layout = batches([known[name] for name in self.worlds], seeds, batch_size, self.plan.reads, known)
        return len(self.plan.calls) * sum(len(group) * len(some) + OVERHEAD for group, some in layout)


def whole(plan: Plan, drawn: Sequence[str]) -> Stage:
    """All worlds through all steps."""
    return Stage(tuple(drawn), plan, 0, frozenset(drawn))


def resumable(pipeline) -> bool:
    """Whether a run may start at any step of the pipeline's scheduler."""
    return type(pipeline).__name__ in PIPELINES and type(pipeline.scheduler).__name__ in RESUMABLE


def stages(
    plan: Plan, known: Mapping[str, World], drawn: Sequence[str], seeds: Sequence[int], batch_size: int, held: Held
) -> list[Stage]:
    """The stages of a run, in their order: one, where nothing is saved. known: all worlds by name. held: latents that there are."""
    single = [whole(plan, drawn)]
    begins = {name: plan.begins(name) for name in known}
    starts = _starts(plan, known, drawn, begins)
    if not starts:
        return single
    keys: dict[tuple[str, int], object] = {}
    for name, step in starts.items():
        for each in closure(name, plan.reads):
            keys[each, step] = _key(plan, known, each) if begins[each] >= step else each
    _join(plan, known, drawn, begins, starts, keys)
    found = [*_whole_stage(plan, known, drawn, starts, keys, begins), *_trunk(plan, seeds, keys, begins, held)]
    for step in sorted(set(starts.values())):
        names = [name for name in drawn if starts.get(name) == step]
        every = dict.fromkeys(each for name in names for each in closure(name, plan.reads))
        begun = {each: keys[each, step] for each in every}
        found.append(Stage(tuple(names), plan.between(step, plan.calls.steps), step, frozenset(names), begun=begun))
    costs = [sum(stage.cost(known, seeds, batch_size) for stage in way) for way in (found, single)]
    return found if costs[0] <= WORTH * costs[1] else single


def _starts(plan: Plan, known: Mapping[str, World], drawn: Sequence[str], begins: Mapping[str, int]) -> dict[str, int]:
    """The worlds that may start late, and at which step."""
    odd = {action.world for action in plan.actions if action.rule.maps or "probs" in action.site.kind}
    odd |= {action.world for action in plan.actions if action.site.part == "text" and not action.rule.written}
    starts = {
        name: begins[name]
        for name in drawn
        if 0 < begins[name] < plan.calls.steps and not odd.intersection(closure(name, plan.reads))
    }
    while early := {  # who is read there from its own interventions on must be run whole
        source
        for name, step in starts.items()
        for source in closure(name, plan.reads)
        if source in starts and starts[source] < step
    }:
        starts = {name: step for name, step in starts.items() if name not in early}
    return starts


def _join(plan: Plan, known, drawn, begins, starts: dict[str, int], keys: dict[tuple[str, int], object]):
    """Worlds that nothing is done to in the denoiser are drawn on from latents that are kept for others anyway."""
    steps = sorted(set(starts.values()))
    for name in drawn:
        own = closure(name, plan.reads)
        if name in starts or begins[name] < plan.calls.steps or any(begins[each] < plan.calls.steps for each in own):
            continue
        wanted = {each: _key(plan, known, each) for each in own}
        for step in steps:
            if all(key in {kept for (_, at), kept in keys.items() if at == step} for key in wanted.values()):
                starts[name] = step
                keys |= {(each, step): key for each, key in wanted.items()}
                break


def _whole_stage(plan: Plan, known, drawn, starts, keys, begins) -> Iterator[Stage]:
    """What is run whole: the worlds that cannot start late, and those that others read from their own interventions on."""
    kept = {(name, step): key for (name, step), key in keys.items() if begins[name] < step}
    names = [name for name in drawn if name not in starts]
    names += [name for name, _ in kept if name not in names]
    if names:
        yield Stage(tuple(dict.fromkeys(names)), plan, 0, frozenset(name for name in drawn if name not in starts), kept)


def _trunk(
    plan: Plan, seeds: Sequence[int], keys: Mapping[tuple[str, int], object], begins: Mapping[str, int], held: Held
) -> Iterator[Stage]:
    """One world for all that are alike until the last step that is asked of them."""
    last: dict[object, int] = {}
    for (name, step), key in keys.items():
        if begins[name] >= step and any((key, seed, step) not in held for seed in seeds):
            last[key] = max(step, last.get(key, 0))
    if not last:
        return
    of = {key: name for (name, step), key in keys.items() if last.get(key) == step and begins[name] >= step}
    kept = {(of[key], step): key for (name, step), key in keys.items() if step <= last.get(key, 0)}
    yield Stage(tuple(of.values()), plan.of_text().between(0, max(last.values())), 0, frozenset(), kept)


def _key(plan: Plan, known: Mapping[str, World], name: str) -> object:
    """What decides a world's latents until its first intervention inside the denoiser."""
    world = known[name]
    numbers = {each.number for each in plan.actions if each.world == name and each.site.part == "text"}
    own = tuple(world.interventions[number] for number in sorted(numbers))
    sources = [each.rule.source_world for each in own if each.rule.source_world is not None]
    read = tuple(_key(plan, known, source) for source in dict.fromkeys(sources))
    return world.prompt, world.negative_prompt, world.subject if own else None, own, read


def cut(scheduler, first: int, stop: int):
    """Make a scheduler, a copy that nobody else has, go through some of its steps alone, the last excluded, from latents as they are."""
    kind = type(scheduler)

    @wraps(kind.set_timesteps)
    def set_timesteps(self, *args, **keywords):
        kind.set_timesteps(self, *args, **keywords)
        self.timesteps = self.timesteps[first:stop]
        if hasattr(kind, "set_begin_index"):
            kind.set_begin_index(self, first)

    def set_begin_index(self, begin_index: int = 0):
        kind.set_begin_index(self, first + begin_index)

    changed: dict[str, object] = {"set_timesteps": set_timesteps}
    if hasattr(kind, "set_begin_index"):
        changed["set_begin_index"] = set_begin_index
    if first and hasattr(scheduler, "init_noise_sigma"):
        changed["init_noise_sigma"] = 1.0  # latents at a later step are scaled already
    scheduler.__class__ = type(kind.__name__, (kind,), changed)
    if first and "init_noise_sigma" in vars(scheduler):
        scheduler.init_noise_sigma = 1.0
