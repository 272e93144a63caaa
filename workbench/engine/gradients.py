"""Gradients: how much of a metric each site carries from one world to another, to first order, from one backward pass.

    effect(site) ~ sum over calls, tokens, channels of (clean value - corrupted value) * d metric / d corrupted value

(Nanda 2023, "Attribution patching"; Syed et al. 2023, arXiv 2310.10348, equation 1). What interventions would restore is planned
as for a run, so that an attribution is that of one `restore(...)`, with its tokens, steps, heads, channels and rows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from einops import rearrange, reduce

from workbench.engine.batch import Batch, Settings, addressed
from workbench.engine.plan import Action
from workbench.engine.run import other_values, prepare
from workbench.families.attention import explicit_attention
from workbench.interventions import Intervention, World
from workbench.locks import lock_of
from workbench.progress import Bar
from workbench.sites import IMAGE, LATENTS, Site

ImageMetric = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Attributed:
    """What was attributed.

    clean, corrupted: the metric of both worlds, (seed,). effects: of each intervention, in the metric's unit, (seed,), or (seed,
    head) or (seed, channel) where these are kept apart. unreached: names of sites from which no gradient leads to the metric.
    """

    clean: torch.Tensor
    corrupted: torch.Tensor
    effects: tuple[torch.Tensor, ...]
    unreached: tuple[str, ...]


class Values(Batch):
    """A batch of one world that keeps whole values of sites, all their rows, in autograd's graph where there is one.

    replay: latents that the steps hand on in place of their own, one for each. single: whether the run ends behind the first call.
    """

    def __init__(self, *given, graph: bool, replay: Sequence[torch.Tensor] | None = None, single: bool = False):
        super().__init__(*given)
        self.graph, self.replay, self.single, self.steps_ended = graph, replay, single, 0
        self.at_step: Callable[[], None] | None = None

    def onward(self, value, site):
        if site.port == "step":
            if self.at_step is not None:
                self.at_step()
            if self.replay is not None:
                value = self.replay[self.steps_ended]
            self.steps_ended += 1
        elif self.graph and site.part == "text" and site.kind == "embedding":
            value = value.detach().requires_grad_()  # where gradients end: the only leaves, for weights are frozen
        elif self.graph and (site.port in ("context", "input") or site.span is not None):
            value = value.view_as(value)  # others are given the same tensor: this view's gradient is the module's own
        return value

    def kept(self, value, site):
        return value


def check_apart(site: Site, over: str | None):
    """Raise ValueError for a site of which heads or channels cannot be kept apart."""
    if over == "head" and not site.per_head:
        raise ValueError(f'{site.name}: over="head" asks for sites whose heads stand apart: q, k, v, probs and z')
    if over == "channel" and "channel" not in site.axes:
        raise ValueError(f'{site.name}: over="channel", but its axes are {site.axes[1:]}')


class Attribution:
    """Attributions of interventions on a pair of worlds.

    corrupted: the corrupted world, then any worlds on the way from it to the clean one, over all of which gradients are averaged.
    interventions: restorations of values of the clean world, in the corrupted one. metric: differentiable, images (row, colour, y, x)
    in [0, 1] -> (row,). Without one, that of single steps: both worlds at the clean run's latents, the corrupted world's conditional
    prediction along the difference between both, 1 apart, its mean over calls. over: "head" or "channel", to be kept apart.
    """

    def __init__(
        self,
        model,
        clean: World,
        corrupted: Sequence[World],
        interventions: Sequence[Intervention],
        settings: Settings,
        metric: ImageMetric | None = None,
        *,
        over: str | None = None,
        checkpointing: bool = False,
    ):
        self.model, self.clean, self.corrupted, self.settings = model, clean, tuple(corrupted), settings
        self.metric, self.over, self.checkpointing = metric, over, checkpointing
        self.sites = model.sites_at(settings.height, settings.width)
        asked = replace(self.corrupted[0], name="restored", interventions=tuple(interventions))
        self.plan = prepare(model, [clean, asked], settings)
        self.interventions = tuple(interventions)
        self.actions: dict[Site, list[Action]] = {}
        for action in self.plan.actions:
            if action.world == asked.name:
                self._check(action)
                self.actions.setdefault(action.site, []).append(action)
        self.leaves = [site for site in self.sites if site.part == "text" and site.kind == "embedding"]
        self.noise = next(site for site in self.sites if site.part == "denoiser" and site.kind == "noise")

    def _check(self, action: Action):
        site = action.site
        if site.stream:
            raise ValueError(
                f"{site.name} is a stream: it holds all that came before it, which no gradient tells apart (rank correlation with exact "
                "patching is 0); name components, such as 'text_encoder*.{attention,mlp}' or 'unet.*.cross'"
            )
        check_apart(site, self.over)

    def of(self, seeds: Sequence[int], bar: Bar) -> Attributed:
        """Attributions for some seeds, as the rows of one batch. The bar counts the denoiser's calls."""
        between = [] if self.metric else [self.noise, self.sites[LATENTS]]
        with self._ready():
            clean, images = self._drawn(self.clean, seeds, bar, between)
            replay = None if self.metric else clean.seen[self.sites[LATENTS]]
            sums = [torch.zeros(len(seeds), *self._apart(number)) for number in range(len(self.interventions))]
            reached: set[Site] = set()
            own, drawn = self._drawn(self.corrupted[0], seeds, bar, between[:1], graph=True, replay=replay)
            differences = {
                site: [whole - part.detach() for whole, part in zip(clean.seen[site], own.seen[site])]
                for site in self.actions
            }
            metric = self._metric(clean, own)
            ends = metric(images, clean).detach().float().cpu(), metric(drawn, own).detach().float().cpu()
            for number, world in enumerate(self.corrupted):
                if number:
                    own, drawn = self._drawn(world, seeds, bar, between[:1], graph=True, replay=replay)
                for site in self.actions:
                    for call, value in enumerate(own.seen[site]):
                        if value.requires_grad:
                            value.register_hook(self._hook(own, site, call, differences[site][call], sums, reached))
                value, leaves = metric(drawn, own).sum(), [leaf for site in self.leaves for leaf in own.seen[site]]
                if not value.requires_grad:
                    raise ValueError("the metric does not hang on the images by gradient; give a differentiable one")
                torch.autograd.backward(value, inputs=leaves)
                del own, drawn, value
        effects = tuple(each / len(self.corrupted) for each in sums)
        return Attributed(*ends, effects, tuple(site.name for site in self.actions if site not in reached))

    def bytes_per_image(self) -> int:
        """Memory that the graph of one image takes, told by the first call of the denoiser."""
        held: dict[int, int] = {}
        weights = {
            weight.untyped_storage().data_ptr()
            for part in self.model.pipeline.components.values()
            if isinstance(part, torch.nn.Module)
            for weight in part.parameters()
        }
        steps: list[int] = []

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with self._ready(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            batch = self._batch(self.corrupted[0], [0], self.leaves, graph=True, single=True)
            batch.at_step = lambda: steps.append(sum(held.values()))
            batch.traced(self.settings, None, Bar(1, "memory", "call", shown=False))
        call, decoder = steps[0], sum(held.values()) - steps[0]
        values = sum(4 * math.prod(site.sizes) for site in self.actions if site.looped)
        halves = 2 if self.plan.guided else 1
        return (call + 3 * halves * values) * len(self.plan.calls) + (decoder if self.metric else 0)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The pipeline as the backward pass needs it: weights without gradients, attention in the open where it is asked for.

        Checkpointing calls modules again in the backward pass, so that they must stand as they stood.
        """
        pipeline = self.model.pipeline
        modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        trained = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
        able = [module for module in modules if getattr(module, "_supports_gradient_checkpointing", False)]
        switched = [module for module in able if self.checkpointing and not module.is_gradient_checkpointing]
        with lock_of(pipeline), explicit_attention(pipeline, list(self.actions)):
            try:
                for weight in trained:
                    weight.requires_grad_(False)
                for module in switched:
                    module.enable_gradient_checkpointing()
                yield
            finally:
                for weight in trained:
                    weight.requires_grad_(True)
                for module in switched:
                    module.disable_gradient_checkpointing()

    def _batch(self, world: World, seeds: Sequence[int], kept: Sequence[Site], **how) -> Values:
        prepared = prepare(self.model, [world], self.settings)
        others = other_values(self.model.pipeline, prepared)
        recorded = [site for site in self.sites if site in kept]
        return Values(self.model, [world], seeds, prepared, recorded, (), self.sites, others, **how)

    def _drawn(
        self, world: World, seeds, bar, also: Sequence[Site], *, graph: bool = False, replay=None
    ) -> tuple[Values, torch.Tensor]:
        """A batch that has run, with the values of the sites by call, and its images."""
        batch = self._batch(world, seeds, [*self.leaves, *self.actions, *also], graph=graph, replay=replay)
        images, _ = batch.traced(self.settings, None, bar)
        return batch, images

    def _metric(self, clean: Values, corrupted: Values) -> Callable[[torch.Tensor, Values], torch.Tensor]:
        """The metric of a batch's images and values."""
        if self.metric is not None:
            given = self.metric
            return lambda images, batch: given(images)
        ends = [[value.detach() for value in self._predicted(each)] for each in (clean, corrupted)]
        along = [a - b for a, b in zip(*ends)]
        along = [
            u / reduce(u**2, "row ... -> row", "sum").clamp_min(1e-30).view(-1, *[1] * (u.ndim - 1)) for u in along
        ]
        return lambda images, batch: (
            sum(reduce(value * u, "row ... -> row", "sum") for value, u in zip(self._predicted(batch), along))
            / len(along)
        )

    def _predicted(self, batch: Values) -> list[torch.Tensor]:
        """The conditional half of the predicted noise, (row, channel, y, x) for each call."""
        return [value[batch.rows(self.noise, "cond")].float() for value in batch.seen[self.noise]]

    def _hook(self, batch: Values, site: Site, call: int, difference: torch.Tensor, sums, reached) -> Callable:
        """What adds a call's share to the sums when its gradient comes."""
        image = site.axes == IMAGE

        def add(gradient: torch.Tensor):
            reached.add(site)
            product = difference.float() * gradient.float()
            product = rearrange(product, "row c y x -> row (y x) c") if image else product
            for action in self.actions[site]:
                if call not in action.calls:
                    continue
                # a text encoder's first call is the prompt's; the negative prompt is the same in both worlds
                for half in ("cond",) if site.part == "text" else action.halves:
                    own = product[batch.rows(site, half)]
                    mask = addressed(action, half, own)
                    carried = self._summed(own if mask is None else own * mask, site)
                    # of single steps, a window's effect is the mean over its calls
                    share = len(self.plan.calls) / len(action.calls) if self.metric is None and site.looped else 1
                    sums[action.number] += share * carried.cpu()

        return add

    def _apart(self, number: int) -> tuple[int, ...]:
        """How many heads or channels of an intervention's sites are kept apart."""
        if self.over is None:
            return ()
        site = next(site for site, actions in self.actions.items() if any(each.number == number for each in actions))
        return (site.heads or 0 if self.over == "head" else site.axis("channel"),)

    def _summed(self, product: torch.Tensor, site: Site) -> torch.Tensor:
        """Summed over everything but rows and what is kept apart."""
        axes = ("row", "pixel", "channel") if site.axes == IMAGE else site.axes
        if self.over == "head" and "head" not in axes:
            return reduce(product, "row ... (head c) -> row head", "sum", head=site.heads)
        if self.over is None:
            return reduce(product, "row ... -> row", "sum")
        return product.sum([i for i, axis in enumerate(axes) if axis not in ("row", self.over)])
