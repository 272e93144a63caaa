"""The engine: worlds in, labelled results out. The only module that opens an NNsight trace.

All worlds of a run go through the denoiser as rows of one batch, from the same starting noise per seed, so that "take the
clean world's value" is a read of another row of the same forward pass. A batch that must be split carries the worlds that
are read along.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import nnsight
import torch
import torch.nn.functional as F
import xarray as xr
from diffusers import AutoPipelineForImage2Image
from einops import rearrange, repeat
from PIL import Image
from tqdm.auto import tqdm

from workbench.blend import add_maps, inside
from workbench.interventions import BlendLatents, MapInput, ReplacePrompt, World, source_world, transform
from workbench.pipeline import PipelineRoot, encode, explicit_attention, quiet
from workbench.plan import Action, batches, resolve
from workbench.sites import IMAGE, LATENTS, Site


@dataclass
class Run:
    """What a run returned.

    images: float in [0, 1], (world, seed, y, x, colour). latents: the denoised latents, (world, seed, channel, y, x).
    values: what was recorded, by site: (world, seed, [step,] ...the site's axes), or by fold: (world, seed, ...its axes).
    fired: how often each intervention was carried out, by (world, number in the world).
    """

    worlds: tuple[World, ...]
    images: xr.DataArray
    latents: xr.DataArray
    values: dict[str, xr.DataArray]
    fired: dict[tuple[str, int], int]


@dataclass(frozen=True)
class Fold:
    """Something accumulated over the steps while they pass, so that no step's values need be kept.

    name: its key in a run's values. sites: names of the sites of the UNet that it reads, the fewer the faster. axes: of what it
    accumulates, behind the rows. update: (accumulated or None, number of the step, world of each row, the sites' values of
    the conditional half in execution order) -> accumulated, a tensor (row, ...).
    """

    name: str
    sites: tuple[str, ...]
    axes: tuple[str, ...]
    update: Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Start:
    """Where a run starts that makes one step only: each world's image, noised to this step of the schedule."""

    images: Mapping[str, Image.Image]
    step: int


def run(
    model,
    worlds: Sequence[World],
    *,
    seeds: Sequence[int],
    num_inference_steps: int,
    guidance_scale: float,
    record: Sequence[str | Fold] = (),
    batch_size: int = 16,
    progress: bool = True,
    start: Start | None = None,
    latents: torch.Tensor | None = None,
) -> Run:
    """Generate every world from every seed; see `Model.run`."""
    worlds, seeds = tuple(worlds), list(seeds)
    beginnings = None if latents is None else dict(zip(seeds, latents))
    guided, steps = guidance_scale > 1, 1 if start else num_inference_steps
    actions = resolve(model, worlds, steps, guided)
    folds = [what for what in record if isinstance(what, Fold)]
    globs = [what for what in record if not isinstance(what, Fold)]
    recorded = list(model.sites(*globs)) if globs else []
    plan = list(batches(worlds, seeds, batch_size))
    found, fired = {}, Counter()
    with tqdm(total=len(plan) * steps, desc="denoising", disable=None if progress else True) as bar:
        for group, some in plan:
            names = {world.name for world in group}
            batch = Batch(
                model, group, some, [action for action in actions if action.world in names], recorded, folds, guided
            )
            noise = model.latents(some) if beginnings is None else torch.stack([beginnings[seed] for seed in some])
            images, latents = batch.trace(num_inference_steps, guidance_scale, start or noise, bar)
            recordings = batch.values
            for w, world in enumerate(group):
                for s, seed in enumerate(some):
                    row = w * len(some) + s
                    values = {name: value[row] for name, value in recordings.items()}
                    found.setdefault((world.name, seed), {"image": images[row], "denoised": latents[row]} | values)
            fired.update(batch.fired)
    labels = {"world": [world.name for world in worlds], "seed": seeds}

    def collect(key: str, axes: tuple[str, ...]) -> xr.DataArray:
        stacked = torch.stack([torch.stack([found[world.name, seed].pop(key) for seed in seeds]) for world in worlds])
        return xr.DataArray(stacked.numpy(), dims=("world", "seed", *axes), coords=labels)

    values = {}
    for site in recorded:
        per_step = () if outside_loop(site) else ("step",)
        values[site.name] = collect(site.name, (*per_step, *site.axes[1:]))
    values |= {fold.name: collect(fold.name, fold.axes) for fold in folds}
    images = collect("image", ("colour", "y", "x")).transpose("world", "seed", "y", "x", "colour")
    if not torch.isfinite(torch.from_numpy(images.values)).all():
        broken = [
            name
            for name in labels["world"]
            if not torch.isfinite(torch.from_numpy(images.sel(world=name).values)).all()
        ]
        raise FloatingPointError(
            f"images of worlds {broken} are not finite: weaken their interventions, or load the model in float32"
        )
    return Run(worlds, images, collect("denoised", IMAGE[1:]), values, dict(fired))


def outside_loop(site: Site) -> bool:
    """Whether a site's module runs once, not at every denoising step."""
    return site.name.startswith(("text_encoder", "vae."))


class Batch:
    """Some worlds and seeds as the rows of one pipeline call, row = world * number of seeds + seed."""

    def __init__(
        self, model, worlds, seeds, actions: list[Action], recorded: list[Site], folds: list[Fold], guided: bool
    ):
        self.model, self.worlds, self.seeds, self.guided = model, worlds, seeds, guided
        self.index = {world.name: i for i, world in enumerate(worlds)}
        self.actions: dict[Site, list[Action]] = {}
        for action in sorted(
            actions, key=lambda action: self.index[action.world]
        ):  # a world stands behind those that it reads
            self.actions.setdefault(action.site, []).append(action)
        self.fired: Counter = Counter()
        self.seen: dict[Site, list[torch.Tensor]] = {site: [] for site in recorded}
        self.recorded = [fold.name for fold in folds]
        self.blends = {
            a.rule.maps: Fold(" ".join(a.rule.maps), a.rule.maps, ("pixel", "token"), add_maps)
            for a in actions
            if isinstance(a.rule, BlendLatents)
        }
        self.folds = {fold: list(model.sites(*fold.sites)) for fold in (*folds, *self.blends.values())}
        self.folded: dict[str, torch.Tensor] = {}
        self.prompts = {
            a.rule.prompt: encode(model.pipeline, a.rule.prompt) for a in actions if isinstance(a.rule, ReplacePrompt)
        }

    def trace(self, steps: int, guidance: float, start: Start | torch.Tensor, bar) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (row, colour, y, x) in [0, 1] and latents (row, channel, y, x), on the CPU.

        start: the noise of each seed (seed, channel, y, x), or where a run of one step begins.
        """
        pipeline, wrapped, once = self.model.pipeline, self.model.nn, isinstance(start, Start)
        between, final = self.model.sites(LATENTS)[0], {}

        def after_step(pipeline, step, timestep, tensors):
            bar.update()
            final["latents"] = self.passed(tensors["latents"], between, step)
            pipeline._interrupt = once  # diffusers' own way to end the denoising
            return tensors | final

        call = dict(
            num_inference_steps=steps, guidance_scale=guidance, output_type="pt", callback_on_step_end=after_step
        )
        if once:
            call |= self.image_to_image(start, steps)
        else:
            latents = repeat(start, "seed c y x -> (world seed) c y x", world=len(self.worlds))
            call |= dict(latents=latents.to(pipeline.device, pipeline.unet.dtype))
        prompts = [world.prompt for world in self.worlds for _ in self.seeds]
        groups = self.groups()
        sites = [site for group in groups for site in group]
        with (
            self.model.lock,
            quiet(call.get("pipeline", pipeline)),
            explicit_attention(pipeline, sites),
            torch.no_grad(),
        ):
            with wrapped.trace() as tracer:
                with tracer.invoke(prompts, **call):
                    pass
                for group in groups:
                    with tracer.invoke():
                        self.visit(tracer, wrapped, group, 1 if once else steps)
                with tracer.invoke():
                    output = nnsight.save(tracer.result)
        expected: Counter = Counter()
        for action in (action for actions in self.actions.values() for action in actions):
            expected[action.world, action.number] += len(action.steps)
        if self.fired != expected:
            raise RuntimeError(
                f"interventions fired {dict(self.fired)} times, expected {dict(expected)} (by world and number in it): "
                "the pipeline did not call the modules as its site table says"
            )
        return output.images.float().cpu(), final["latents"].float().cpu()

    @property
    def values(self) -> dict[str, torch.Tensor]:
        """What was recorded, by site: (row, [step,] ...)."""
        found = {site.name: seen[0] if outside_loop(site) else torch.stack(seen, 1) for site, seen in self.seen.items()}
        return found | {name: self.folded[name].float().cpu() for name in self.recorded}

    def image_to_image(self, start: Start, steps: int) -> dict:
        """Arguments for diffusers' image-to-image pipeline over the same components, to begin at that step."""
        model = self.model
        clean = model.encode([start.images[world.name] for world in self.worlds])
        return dict(
            pipeline=AutoPipelineForImage2Image.from_pipe(model.pipeline),
            strength=min(1.0, (steps - start.step) / steps + 1e-6),
            image=repeat(clean, "world c y x -> (world seed) c y x", seed=len(self.seeds)),
            generator=[torch.Generator().manual_seed(seed) for _ in self.worlds for seed in self.seeds],
        )

    def groups(self) -> list[list[Site]]:
        """Sites of modules in use, in execution order: those that a fold reads together in one group, every other by itself."""
        together: list[set[Site]] = [{site} for site in (*self.actions, *self.seen) if site.port != "step"]
        together += [set(sites) for sites in self.folds.values()]
        groups: list[set[Site]] = []
        for new in together:
            touching = [group for group in groups if group & new]
            groups = [group for group in groups if not group & new] + [new.union(*touching)]
        return [[site for site in self.model.sites if site in group] for group in groups]

    def visit(self, tracer, wrapped, group: list[Site], steps: int):
        """Read, change and record sites; one mediator of NNsight's for each group, whose requests come in execution order."""
        modules = [wrapped.get(site.module) for site in group]
        folds = [(fold, sites) for fold, sites in self.folds.items() if sites[0] in group]
        read = {site for _, sites in folds for site in sites}.union(self.seen)
        wanted = {site: {step for action in self.actions.get(site, ()) for step in action.steps} for site in group}
        for site in read.intersection(group):
            wanted[site] |= {0} if outside_loop(site) else set(range(steps))
        if outside_loop(group[0]) and wanted[group[0]] == {0}:
            self.touch(modules[0], group[0], 0)
            return
        for step in tracer.iter[sorted(set().union(*wanted.values()))]:  # of the text encoder: its calls
            values = {
                site: self.touch(module, site, step) for site, module in zip(group, modules) if step in wanted[site]
            }
            for fold, sites in folds:
                of = [world for world in self.worlds for _ in self.seeds]
                parts = [values[site][self.rows(site, "cond")].detach() for site in sites]
                self.folded[fold.name] = fold.update(self.folded.get(fold.name), step, of, *parts)

    def touch(self, module, site: Site, step: int) -> torch.Tensor:
        """A module's value, read and, where an action changes it, given back."""
        actions = self.due(site, step)
        given = (
            module.input if any(isinstance(action.rule, MapInput) for action in actions) else None
        )  # asked for before the output
        if site.port == "context":
            args, kwargs = module.inputs
            value = kwargs["encoder_hidden_states"]
        else:
            whole = module.output if site.port == "output" else module.input
            value = _first(whole)
        value = self.passed(value, site, step, given)
        if actions:  # a new tensor, assigned: edits in place are lost
            if site.port == "context":
                module.inputs = (args, {**kwargs, "encoder_hidden_states": value})
            elif site.port == "input":
                module.input = value
            else:
                module.output = (value, *whole[1:]) if isinstance(whole, tuple) else value
        return value

    def due(self, site: Site, step: int) -> list[Action]:
        return [action for action in self.actions.get(site, ()) if step in action.steps]

    def passed(self, value: torch.Tensor, site: Site, step: int, given: torch.Tensor | None = None) -> torch.Tensor:
        """A value as it goes on from a site: changed by what is due there, and recorded."""
        if actions := self.due(site, step):
            value = self.change(value, site, actions, given)
        if site in self.seen and not (outside_loop(site) and step):
            self.seen[site].append(value[self.rows(site, "cond")].detach().float().cpu())
        return value

    def rows(self, site: Site, half: str, world: str | None = None) -> slice:
        """Rows of a world (or of all) in one half; the UNet's batch is [uncond..., cond...] under guidance."""
        size = len(self.worlds) * len(self.seeds)
        start = size if half == "cond" and self.guided and site.name.startswith("unet.") else 0
        if world is None:
            return slice(start, start + size)
        start += self.index[world] * len(self.seeds)
        return slice(start, start + len(self.seeds))

    def change(
        self, value: torch.Tensor, site: Site, actions: list[Action], given: torch.Tensor | None
    ) -> torch.Tensor:
        image = site.axes == IMAGE
        out = (rearrange(value, "row c y x -> row (y x) c") if image else value).clone()
        for action in actions:
            for half in ("uncond", "cond") if action.rows == "both" else (action.rows,):
                own = out[self.rows(site, half, action.world)]
                source = self.source(out, given, site, half, action)
                changed = transform(action.rule, own, site.name, source=source)
                if isinstance(action.rule, BlendLatents):
                    mask = ~self.blended(action, value.shape[-1])
                else:
                    mask = _mask(action, own)
                if mask is not None:
                    changed = torch.where(mask, changed, own)
                out[self.rows(site, half, action.world)] = changed
            self.fired[action.world, action.number] += 1
        if image:  # in the layout that it came in, or other rows would be summed in another order
            return torch.empty_like(value).copy_(rearrange(out, "row (y x) c -> row c y x", y=value.shape[2]))
        return out

    def blended(self, action: Action, side: int) -> torch.Tensor:
        """Where a local blend lets the edit through: bool (row, pixel, 1)."""
        rule, maps = action.rule, self.folded[self.blends[action.rule.maps].name]
        own, source = (maps[self.rows(action.site, "cond", world)] for world in (action.world, rule.world))
        return rearrange(inside(rule, own, source, side), "row y x -> row (y x) 1")

    def source(
        self, value: torch.Tensor, given: torch.Tensor | None, site: Site, half: str, action: Action
    ) -> torch.Tensor | None:
        if isinstance(action.rule, MapInput):
            return given[self.rows(site, half, action.world)]
        if (world := source_world(action.rule)) is not None:
            return value[self.rows(site, half, world)]
        if isinstance(action.rule, ReplacePrompt):
            states, pooled = (part if part is None else part.to(value) for part in self.prompts[action.rule.prompt])
            if site.port == "context" or outside_loop(site):
                return states if site.port == "context" else pooled
            return F.linear(states, self.model.pipeline.unet.get_submodule(site.module.removeprefix("unet.")).weight)
        return None


def _first(output):
    """The value proper of a module that gives more."""
    return output[0] if isinstance(output, tuple) else output


def _mask(action: Action, value: torch.Tensor) -> torch.Tensor | None:
    """Which entries of a value (row, ...) an action addresses; None for all."""
    if action.tokens is None and action.heads is None:
        return None
    mask = torch.ones(value.shape[1:], dtype=torch.bool, device=value.device)
    axes = action.site.axes[1:]
    if action.tokens is not None:
        chosen = torch.zeros(value.shape[1 + axes.index("token")], dtype=torch.bool, device=value.device)
        chosen[list(action.tokens)] = True
        mask &= chosen.view([-1 if axis == "token" else 1 for axis in axes])
    if action.heads is not None:
        chosen = torch.zeros(action.site.heads, dtype=torch.bool, device=value.device)
        chosen[list(action.heads)] = True
        if "head" in axes:
            mask &= chosen.view([-1 if axis == "head" else 1 for axis in axes])
        else:
            mask &= chosen.repeat_interleave(value.shape[-1] // action.site.heads)
    return mask


def text_values(
    model, prompts: Sequence[str], sites: Sequence[Site], *, inputs: bool = False
) -> dict[Site, torch.Tensor]:
    """Values at text-encoder sites for each prompt, or what the sites' modules are given: (prompt, [token,] channel), on the CPU.

    The denoiser does not run.
    """
    found = {}
    with model.lock, quiet(model.pipeline), torch.no_grad():
        with model.nn.trace() as tracer:
            with tracer.invoke(list(prompts), num_inference_steps=1, guidance_scale=1.0):
                pass
            with tracer.invoke():
                for site in [site for site in model.sites if site in sites]:  # in execution order
                    module = model.nn.get(site.module)
                    found[site] = nnsight.save(
                        module.input if inputs or site.port == "input" else _first(module.output)
                    )
                tracer.stop()
    return {site: value.detach().cpu() for site, value in found.items()}


def wrap(pipeline) -> nnsight.NNsight:
    """NNsight over a whole pipeline."""
    return nnsight.NNsight(PipelineRoot(pipeline))
