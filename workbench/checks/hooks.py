"""What happens at a pipeline's sites as plain PyTorch hooks see it: neither the engine nor NNsight has a part in it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange

from workbench.engine.text import part_of, with_part
from workbench.families import Site
from workbench.families.attention import attention_of

SAMPLES = 64  # entries of a value that its digest holds
# Kinds whose values are what attention makes of its queries, keys, values and probabilities.
PARTS = ("q", "k", "v", "probs")
ATTENTION = {kind: tuple(f"{kind}.{part}" for part in PARTS) for kind in ("self", "cross")} | {"attention": PARTS}
ADDED = (
    "self.k",
    "self.v",
    "self.probs",
)  # where the picture's keys and values stand behind the text's, in one softmax


@dataclass
class Seen:
    """What passed at one site: its shapes and, of the conditional half, digests, one for each call of the module.

    sums: largest distance of probabilities' sums from one. attention: largest difference of probabilities from the softmax of queries and
    keys, and of the attention's output from that of probabilities and values, as a share of the output's largest entry; a text where
    they cannot be computed.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    digests: list[torch.Tensor] = field(default_factory=list)
    sums: float = 0.0
    attention: float | str | None = None


@dataclass
class Watch:
    """What hooks saw in one call of a pipeline.

    sites: by name. missing: sites of a module that does not exist, and why. order: names in the order in which values first
    passed. timesteps, rows: of each call of the denoiser. parts: sums of probabilities whose others are still to come.
    """

    halves: int
    sites: dict[str, Seen] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    timesteps: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    parts: dict[tuple, dict[str, torch.Tensor]] = field(default_factory=dict)

    def pass_by(self, site: Site, value: torch.Tensor):
        """Take a value down."""
        if site.name not in self.sites:
            self.sites[site.name] = Seen()
            self.order.append(site.name)
        seen = self.sites[site.name]
        seen.shapes.append(tuple(value.shape))
        if site.looped or not seen.digests:  # a text encoder may be called once more, for the negative prompt
            half = len(value) - len(value) // self.halves if site.part == "denoiser" else 0
            seen.digests.append(digest(value[half:]))
        if site.axes[1:2] == ("head",):
            total = value.float().sum(-1)
            if site.together:  # the rest of each query's probabilities passes at other sites of the place
                self.parts.setdefault((site.place, site.together), {})[site.kind] = total
                parts = self.parts[site.place, site.together]
                total = sum(parts.values()) if len(parts) == len(site.together) else torch.ones(())
                if len(parts) == len(site.together):
                    del self.parts[site.place, site.together]
            seen.sums = max(seen.sums, float((total - 1).abs().max()))

    def step_end(self, site: Site, tensors: dict) -> dict:
        """Take the latents between two steps down."""
        self.pass_by(site, tensors["latents"])
        return tensors


def digest(value: torch.Tensor) -> torch.Tensor:
    """A few numbers that tell one value from another: its sum, its absolute sum, entries all over it. On the CPU."""
    flat = value.detach().flatten().float()
    return torch.cat([flat.sum()[None], flat.abs().sum()[None], flat[:: max(1, len(flat) // SAMPLES)]]).cpu()


def module_of(pipeline, site: Site) -> torch.nn.Module:
    """The module that a site is a value of; AttributeError where there is none."""
    component, _, path = site.module.partition(".")
    return getattr(pipeline, component).get_submodule(path)


@contextmanager
def watched(
    pipeline, sites: Sequence[Site], denoiser: torch.nn.Module, halves: int, clock: float = 1.0
) -> Iterator[Watch]:
    """See what passes at sites, for as long as the block lasts; the denoiser's batch is of so many halves.

    clock: the scheduler's time for one of the denoiser's.

    Latents between steps have no module: hand them to `Watch.step_end`.
    """
    watch = Watch(halves)
    parts = {(site.place, site.kind): site for site in sites}
    latest: dict[str, torch.Tensor] = {}  # queries, keys, values and probabilities of the attention that runs

    def called(module, args, kwargs):
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        watch.timesteps.append(clock * float(torch.as_tensor(timestep).flatten()[0]))
        watch.rows.append(len(args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))))

    def hook_at(module: torch.nn.Module, site: Site):
        kinds = list(ATTENTION.get(site.kind, ()))
        if site.kind == "cross" and any(parts[key].together for key in parts if key == (site.place, "cross.probs")):
            kinds += ADDED
        names = [parts[site.place, kind].name for kind in kinds if (site.place, kind) in parts]

        def before(module, args, kwargs):
            watch.pass_by(site, args[0] if site.port == "input" else kwargs["encoder_hidden_states"])

        def behind(module, args, kwargs, output):
            value = part_of(output, site)
            watch.pass_by(site, value)
            if site.per_head:
                latest[site.name] = value
            if len(names) in (len(PARTS), len(PARTS) + len(ADDED)) and all(name in latest for name in names):
                seen = watch.sites[site.name]
                attention = module if site.part == "text" else attention_of(pipeline, site)
                mask = kwargs.get("attention_mask") if site.part == "denoiser" else None
                error = attention_error(attention, site, [latest.pop(name) for name in names], value, mask)
                seen.attention = max(seen.attention or 0.0, error) if not isinstance(error, str) else error

        if site.port == "output":
            return module.register_forward_hook(behind, with_kwargs=True)
        return module.register_forward_pre_hook(before, with_kwargs=True)

    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(called, with_kwargs=True).remove)
        for site in sites:
            if site.port == "step":
                continue
            try:
                module = module_of(pipeline, site)
            except AttributeError as error:
                watch.missing[site.name] = f"no module {site.module}: {error}"
                continue
            stack.callback(hook_at(module, site).remove)
        yield watch


def attention_error(
    module: torch.nn.Module,
    site: Site,
    parts: Sequence[torch.Tensor],
    output: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> float | str:
    """How far probabilities and output are from what queries, keys and values at the site's heads give; see `Seen`.

    parts: these, and where there are two kinds of keys, keys, values and probabilities of the second. mask: added to the scores of
    a prompt's padding, (row, 1, token).
    """
    query, *others = parts
    key, value = (torch.cat(others[number::3], 1) for number in (0, 1))
    probs = torch.cat(others[2::3], -1)
    try:
        query, key, value = (
            rearrange(x, "row i (head c) -> row head i c", head=site.heads) for x in (query, key, value)
        )
        scores = query.float() @ key.float().transpose(-1, -2) * module.scale
        if mask is not None:
            scores = scores + mask[:, None].float()
        if site.part == "text":  # tokens do not see those behind them
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        weights = scores.softmax(-1)
        mixed = rearrange(weights.to(value.dtype) @ value, "row head i c -> row i (head c)")
        project = module.out_proj if site.part == "text" else module.to_out[0]
        expected = project.forward(mixed)  # without hooks: this is no call of the pipeline's
        away = float((expected - output).abs().max() / output.abs().max().clamp(min=1e-12))
        return max(away, float((weights - probs.float()).abs().max()))
    except (RuntimeError, AttributeError) as error:  # einops' errors are of the former kind
        return f"cannot be computed: {str(error).strip().splitlines()[0]}"


@contextmanager
def zeroed(pipeline, sites: Iterable[Site]) -> Iterator[None]:
    """Make sites zero by plain hooks, for as long as the block lasts.

    They go before others, or those of transformers, which collect a text encoder's states, would see the outputs first.
    """

    def zero(site, module, args, output):
        return with_part(output, site, torch.zeros_like(part_of(output, site)))

    def zero_input(module, args):
        return (torch.zeros_like(args[0]), *args[1:])

    with ExitStack() as stack:
        for site in sites:
            module = module_of(pipeline, site)
            hook = (
                module.register_forward_pre_hook(zero_input, prepend=True)
                if site.port == "input"
                else module.register_forward_hook(partial(zero, site), prepend=True)
            )
            stack.callback(hook.remove)
        yield
