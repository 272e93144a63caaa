"""One pipeline call: worlds and seeds as rows, and what happens at every site while it runs."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoPipelineForImage2Image
from einops import rearrange, repeat
from PIL import Image

from workbench.arguments import fit, function
from workbench.blend import add_maps
from workbench.engine.between import ends_by_itself, latents_passing
from workbench.engine.call import arguments, pictures_of
from workbench.engine.nn import save
from workbench.engine.plan import Action, Plan
from workbench.engine.prefix import cut
from workbench.engine.text import part_of, with_part
from workbench.engine.trace import listening, untouched
from workbench.families.attention import explicit_attention
from workbench.inputs import text
from workbench.interventions import Context, World
from workbench.locks import lock_of
from workbench.schema import words
from workbench.sites import IMAGE, LATENTS, Site, Sites


@dataclass(frozen=True)
class Fold:
    """Something accumulated over the denoiser's calls while they pass, so that no call's values need be kept.

    name: its key in a run's values. sites: names of the sites of the denoiser that it reads, the fewer the faster. axes: of what it
    accumulates, behind the rows. update: (accumulated or None, number of the call, world of each row, the sites' values of
    the conditional half in execution order) -> accumulated, a tensor (row, ...). `Model.calls` says which step a call belongs to.

    >>> def add(total, call, worlds, probs):  # (row, head, pixel, token)
    ...     return probs.mean(1) if total is None else total + probs.mean(1)
    >>> fold = wb.Fold("sum", ("unet.mid.cross.probs",), ("pixel", "token"), add)
    >>> dict(model.run("a zebra", record=fold).values["sum"].sizes)
    {'world': 1, 'seed': 1, 'pixel': 4, 'token': 32}
    """

    name: str
    sites: tuple[str, ...]
    axes: tuple[str, ...]
    update: Callable[..., torch.Tensor]

    def __post_init__(self):
        axes = lambda value, argument: () if isinstance(value, (list, tuple)) and not value else words(value, argument)
        fit(self, name=text, axes=axes, update=function)

    def _updated(
        self, total: torch.Tensor | None, call: int, worlds: Sequence[World], *values: torch.Tensor
    ) -> torch.Tensor | None:
        """What is accumulated with one call more, None for nothing yet; raises ValueError for what does not have these rows and axes."""
        updated = self.update(total, call, worlds, *values)
        if updated is None and total is None:
            return None
        given = tuple(updated.shape) if isinstance(updated, torch.Tensor) else type(updated).__name__
        if not isinstance(updated, torch.Tensor) or (len(updated), updated.ndim) != (len(worlds), 1 + len(self.axes)):
            raise ValueError(
                f"wb.Fold({self.name!r}): update returned {given}; return a tensor (row, {', '.join(self.axes)}) of {len(worlds)} rows, or "
                "name other axes="
            )
        return updated


@dataclass(frozen=True)
class Start:
    """Where a run starts that makes one step only: each world's image, noised to this step of the schedule."""

    images: Mapping[str, Image.Image]
    step: int


@dataclass(frozen=True)
class Settings:
    """How the pipeline is called, the same for every batch of a run."""

    num_inference_steps: int
    guidance_scale: float
    height: int | None = None
    width: int | None = None
    start: Start | None = None
    guidance_rescale: float = 0.0


class Batch:
    """Some worlds and seeds as the rows of one pipeline call, row = world * number of seeds + seed.

    others: for each prompt that a rule names, at each site, what the site is for it, (1, ...). source_texts: for each world that has no
    row here, of which text states are read, what these are, (1, ...). steps: the first and last (exclusive) that it makes, the plan's;
    all when left out. sinks: what takes the values of recorded sites, in place of lists.
    """

    graph = False  # whether values stay in autograd's graph
    single = False  # whether the run ends behind the first call

    def __init__(
        self,
        model,
        worlds: Sequence[World],
        seeds: Sequence[int],
        plan: Plan,
        recorded: Sequence[Site],
        folds: Sequence[Fold],
        sites: Sites,
        others: Mapping[tuple[str, Site], torch.Tensor],
        source_texts: Mapping[tuple[str, Site], torch.Tensor] = MappingProxyType({}),
        steps: tuple[int, int] | None = None,
        sinks: Mapping[Site, Any] | None = None,
    ):
        self.model, self.worlds, self.seeds, self.plan, self.sites = model, worlds, seeds, plan, sites
        self.others, self.source_texts, self.steps = others, source_texts, steps
        self.boundaries: dict[
            int, torch.Tensor
        ] = {}  # latents at the beginning of a step, as the pipeline has them between two
        self.size = len(worlds) * len(seeds)
        self.index = {world.name: i for i, world in enumerate(worlds)}
        self.actions: dict[Site, list[Action]] = {}
        own = [action for action in plan.actions if action.world in self.index]
        for action in sorted(
            own, key=lambda action: self.index[action.world]
        ):  # a world stands behind those that it reads
            self.actions.setdefault(action.site, []).append(action)
        self.fired: Counter = Counter()
        self.seen: dict[Site, Any] = {site: [] for site in recorded} if sinks is None else dict(sinks)
        self.recorded = [fold.name for fold in folds]
        self.maps = {
            action.rule.maps: Fold(" ".join(action.rule.maps), action.rule.maps, ("pixel", "token"), add_maps)
            for action in own
            if action.rule.maps
        }
        self.folds = {fold: list(sites(*fold.sites)) for fold in (*folds, *self.maps.values())}
        self.folded: dict[str, Any] = {}  # None for nothing yet

    def trace(
        self,
        settings: Settings,
        latents: torch.Tensor | None,
        bar,
        *,
        begun: torch.Tensor | None = None,
        kept: Collection[int] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (row, colour, y, x) in [0, 1] and latents (row, channel, y, x), on the CPU.

        latents: to begin from, (seed, channel, y, x); the seeds' own noise when left out. begun: the same of every row, as the pipeline has
        them between two steps. kept: steps at whose beginning latents are kept.
        """
        images, denoised = self.traced(settings, latents, bar, begun=begun, kept=kept)
        return images.float().cpu(), denoised.float().cpu()

    def traced(
        self,
        settings: Settings,
        latents: torch.Tensor | None,
        bar,
        *,
        begun: torch.Tensor | None = None,
        kept: Collection[int] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same where the model is, in its dtype."""
        pipeline, start = self.model.pipeline, settings.start
        between, final, calls = self.sites[LATENTS], {}, self.plan.calls
        family = self.model.family

        def after_call(pipeline, call, timestep, tensors):
            bar.update()
            later = start is not None or (self.steps is not None and not call)
            if later and abs(float(timestep) - calls.timestep[0]) > 1e-3 * abs(calls.timestep[0]):
                raise RuntimeError(
                    f"the pipeline began at the timestep {float(timestep):g}, step {calls.step[0] if start is None else start.step} is "
                    f"{calls.timestep[0]:g}"
                )
            latents = family.unpacked(tensors["latents"], between.grid)
            final["latents"] = self.passed(latents, between, call) if calls.ends(call) else latents
            if ends_by_itself(pipeline):
                pipeline._interrupt = start is not None or self.single  # diffusers' own way to end the denoising
            if final["latents"] is not latents:
                tensors = tensors | {"latents": family.packed(final["latents"])}
            if calls.step[call] + 1 in kept:
                self.boundaries[calls.step[call] + 1] = tensors["latents"].clone()
            return tensors

        groups = self.groups()
        probs = [site for group in groups for site in group]
        graph = torch.set_grad_enabled(self.graph)
        with (
            lock_of(pipeline),
            untouched(pipeline),
            latents_passing(pipeline, after_call, first_only=self.single) as passing,
            explicit_attention(pipeline, probs),
            listening(pipeline, {site.module for site in probs}) as nn,
            graph,
        ):
            call = self.arguments(settings, latents)
            call |= dict(output_type="pt", grad=self.graph) | passing
            if self.steps is not None:
                cut(pipeline.scheduler, *self.steps)
                call |= {} if begun is None else {"latents": begun}
                call |= {} if self.steps[1] == settings.num_inference_steps else {"output_type": "latent"}
            prompts = call.pop("prompt")
            with nn.trace() as tracer:
                with tracer.invoke(prompts, **call):
                    pass
                for group in groups:
                    with tracer.invoke():
                        self.visit(tracer, nn, group)
                with tracer.invoke():
                    output = save(tracer.result)
        expected: Counter = Counter()
        for action in (action for actions in self.actions.values() for action in actions):
            expected[action.world, action.number] += len(action.calls)
        if self.fired != expected:
            raise RuntimeError(
                f"interventions fired {dict(self.fired)} times, expected {dict(expected)} (by world and number in it): "
                "the pipeline did not call the modules as its site table says"
            )
        images = pictures_of(pipeline, output, [world.name for world in self.worlds for _ in self.seeds])
        return images, final["latents"]

    def arguments(self, settings: Settings, latents: torch.Tensor | None) -> dict:
        """What the pipeline is called with."""
        rows = [(world, seed) for world in self.worlds for seed in self.seeds]
        begin = None if latents is None else repeat(latents, "seed c y x -> (world seed) c y x", world=len(self.worlds))
        call = arguments(
            self.model.pipeline,
            [world.prompt for world, _ in rows],
            [world.negative_prompt for world, _ in rows],
            [seed for _, seed in rows],
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
            height=settings.height,
            width=settings.width,
            latents=begin,
        )
        if settings.start is not None:
            call |= self.image_to_image(settings.start, settings.num_inference_steps)
            takes = signature(type(call["pipeline"]).__call__).parameters
            call = {key: value for key, value in call.items() if key not in ("height", "width") or key in takes}
        return call

    def taken(self) -> dict[str, torch.Tensor]:
        """What was recorded, by site: (row, [call,] ...). Nothing of it stays here, so that no more than one site is held twice."""
        values = {}
        for site in list(self.seen):
            seen = self.seen.pop(site)
            values[site.name] = torch.stack(seen, 1) if site.looped else seen[0]
        return values | {name: self.accumulated(name) for name in self.recorded}

    def accumulated(self, name: str) -> torch.Tensor:
        """What a recorded fold has at the end, (row, ...)."""
        if (value := self.folded[name]) is None:
            raise ValueError(
                f"wb.Fold({name!r}): update returned None in every call, so that nothing was accumulated; return a tensor"
            )
        return value.float().cpu()

    def image_to_image(self, start: Start, steps: int) -> dict:
        """Arguments for diffusers' image-to-image pipeline over the same components, to begin at that step."""
        model = self.model
        # pipelines round the number of steps that strength makes down, those of flow matching the number of those that it leaves out
        rounded = -1e-6 if model.family.flow else 1e-6
        clean = model.encode([start.images[world.name] for world in self.worlds])
        return dict(
            pipeline=AutoPipelineForImage2Image.from_pipe(model.pipeline),
            strength=min(1.0, (steps - start.step) / steps + rounded),
            image=repeat(clean, "world c y x -> (world seed) c y x", seed=len(self.seeds)),
        )

    def groups(self) -> list[list[Site]]:
        """Sites of modules in use: those that a fold reads together in one group, every other by itself; all in execution order.

        Groups too: what changes a module's input comes before what reads that input beside its output, in whichever order they were named.
        """
        together: list[set[Site]] = [{site} for site in (*self.actions, *self.seen) if site.port != "step"]
        together += [set(sites) for sites in self.folds.values()]
        groups: list[set[Site]] = []
        for new in together:
            touching = [group for group in groups if group & new]
            groups = [group for group in groups if not group & new] + [new.union(*touching)]
        place = {site: number for number, site in enumerate(self.sites)}
        return sorted((sorted(group, key=place.__getitem__) for group in groups), key=lambda group: place[group[0]])

    def visit(self, tracer, nn, group: list[Site]):
        """Read, change and record sites; one mediator of NNsight's for each group, whose requests come in execution order."""
        modules = [nn.get(site.module) for site in group]
        folds = [(fold, sites) for fold, sites in self.folds.items() if sites[0] in group]
        read = {site for _, sites in folds for site in sites}.union(self.seen)
        wanted = {site: {call for action in self.actions.get(site, ()) for call in action.calls} for site in group}
        for site in read.intersection(group):
            wanted[site] |= set(range(len(self.plan.calls))) if site.looped else {0}
        if not group[0].looped and wanted[group[0]] == {0}:
            self.touch(modules[0], group[0], 0)
            return
        for call in tracer.iter[sorted(set().union(*wanted.values()))]:
            values = {
                site: self.touch(module, site, call) for site, module in zip(group, modules) if call in wanted[site]
            }
            for fold, sites in folds:
                of = [world for world in self.worlds for _ in self.seeds]
                parts = [values[site][self.rows(site, "cond")].detach() for site in sites]
                self.folded[fold.name] = fold._updated(self.folded.get(fold.name), call, of, *parts)

    def touch(self, module, site: Site, call: int) -> torch.Tensor:
        """A module's value, read and, where an action changes it, given back."""
        actions = self.due(site, call)
        given = (
            module.input if any(action.rule.takes_input for action in actions) else None
        )  # asked for before the output
        if site.port == "context":
            args, kwargs = module.inputs
            value = kwargs["encoder_hidden_states"]
        else:
            whole = module.output if site.port == "output" else module.input
            value = part_of(whole, site)
        rows = self.size * (2 if self.plan.guided and site.part == "denoiser" else 1)
        if tuple(value.shape) != (expected := (rows, *site.sizes)):
            raise RuntimeError(
                f"{site.name} has the value {dict(zip(site.axes, value.shape))}, expected {dict(zip(site.axes, expected))}: the pipeline "
                "does not lay out its batch as this family's do, or something merges or splits tokens in it"
            )
        before, value = value, self.passed(value, site, call, given)
        if value is not before:  # a new tensor, assigned: edits in place are lost
            if site.port == "context":
                module.inputs = (args, {**kwargs, "encoder_hidden_states": value})
            elif site.port == "input":
                module.input = value
            else:
                module.output = with_part(whole, site, value)
        return value

    def due(self, site: Site, call: int) -> list[Action]:
        return [action for action in self.actions.get(site, ()) if call in action.calls]

    def passed(self, value: torch.Tensor, site: Site, call: int, given: torch.Tensor | None = None) -> torch.Tensor:
        """A value as it goes on from a site: changed by what is due there, and recorded."""
        if actions := self.due(site, call):
            value = self.change(value, site, actions, call, given)
        value = self.onward(value, site)
        if site in self.seen and (site.looped or not call):
            self.seen[site].append(self.kept(value, site))
        return value

    def onward(self, value: torch.Tensor, site: Site) -> torch.Tensor:
        """What a site hands on of its value."""
        return value

    def kept(self, value: torch.Tensor, site: Site) -> torch.Tensor:
        """What is recorded of a value: a copy, since a part of it would keep the whole, with the other half."""
        return value[self.rows(site, "cond")].detach().to("cpu", torch.float32, copy=True)

    def rows(self, site: Site, half: str, world: str | None = None) -> slice:
        """Rows of a world (or of all) in one half; a guided denoiser's batch is [uncond..., cond...]."""
        start = self.size if half == "cond" and self.plan.guided and site.part == "denoiser" else 0
        if world is None:
            return slice(start, start + self.size)
        start += self.index[world] * len(self.seeds)
        return slice(start, start + len(self.seeds))

    def change(
        self, value: torch.Tensor, site: Site, actions: list[Action], call: int, given: torch.Tensor | None
    ) -> torch.Tensor:
        """The value with every action's rows changed, in the layout that it came in."""
        image = site.axes == IMAGE
        out = (rearrange(value, "row c y x -> row (y x) c") if image else value).clone()
        for group in self.together(actions):
            action = group[0]
            # of a text encoder, the call says which prompt; of the denoiser, the half of the rows
            halves = ("uncond" if call else "cond",) if site.part == "text" else action.halves
            for half in halves:
                ends = [self.rows(site, half, each.world) for each in (action, group[-1])]
                rows = slice(ends[0].start, ends[1].stop)
                changed = action.rule.apply(out[rows], self.context(out, given, site, half, action, rows))
                mask = addressed(action, half, out[rows])
                out[rows] = changed if mask is None else torch.where(mask, changed, out[rows])
            self.fired.update((each.world, each.number) for each in group)
        if image:  # in the layout that it came in, or other rows would be summed in another order
            return torch.empty_like(value).copy_(rearrange(out, "row (y x) c -> row c y x", y=value.shape[2]))
        return out

    def together(self, actions: Sequence[Action]) -> list[list[Action]]:
        """Actions in their order, those of neighbouring worlds in one group where one rule does the same to all their rows.

        So an edit that is previewed in many worlds costs what it costs in one.
        """
        groups: list[list[Action]] = []
        for action in actions:
            last = groups[-1][-1] if groups else None
            if (
                last is not None
                and action.rule is last.rule
                and action.rule.rowwise
                and self.index[action.world] == self.index[last.world] + 1
                and action.halves == last.halves
                and all(each.addresses_all for each in (last, action))
            ):
                groups[-1].append(action)
            else:
                groups.append([action])
        return groups

    def context(
        self, value: torch.Tensor, given: torch.Tensor | None, site: Site, half: str, action: Action, rows: slice
    ) -> Context:
        """What an action's rule asked for, of some rows."""
        rule, source, other, maps = action.rule, None, None, (None, None)
        if rule.source_world in self.index:
            source = value[self.rows(site, half, rule.source_world)]
        elif rule.source_world is not None:
            source = self.source_texts[rule.source_world, site].to(value).expand_as(value[rows])
        if rule.other_prompt is not None:
            other = self.others[rule.other_prompt, site].to(value)
        if rule.maps:
            summed = self.folded[self.maps[rule.maps].name]
            maps = tuple(summed[self.rows(site, "cond", world)] for world in (action.world, rule.source_world))
        own = None if given is None or not rule.takes_input else given[rows]
        return Context(site, source, own, other, *maps)


def addressed(action: Action, half: str, value: torch.Tensor) -> torch.Tensor | None:
    """Which entries of a value (row, ...) an action addresses; None for all."""
    tokens, site = action.tokens[half], action.site
    if tokens is None and action.heads is None and action.channels is None:
        return None
    axes = ("pixel", "channel") if site.axes == IMAGE else site.axes[1:]
    mask = torch.ones(value.shape[1:], dtype=torch.bool, device=value.device)

    def along(axis: str, numbers: tuple[int, ...], count: int) -> torch.Tensor:
        chosen = torch.zeros(count, dtype=torch.bool, device=value.device)
        chosen[list(numbers)] = True
        return chosen.view([-1 if name == axis else 1 for name in axes])

    if tokens is not None:
        mask &= along("token", tokens, value.shape[1 + axes.index("token")])
    if action.channels is not None:
        mask &= along("channel", action.channels, value.shape[-1])
    if action.heads is not None and "head" in axes:
        mask &= along("head", action.heads, value.shape[1 + axes.index("head")])
    elif action.heads is not None and site.heads is not None:
        width = value.shape[-1] // site.heads
        channels = tuple(head * width + i for head in action.heads for i in range(width))
        mask &= along("channel", channels, value.shape[-1])
    return mask
