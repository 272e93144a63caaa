"""Planning a run: every intervention resolved, checked and counted, and every batch laid out, before anything is computed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil

from workbench.engine.calls import Calls
from workbench.families import family_of
from workbench.families.attention import check_attention
from workbench.interventions import Intervention, MixAttention, Rule, Window, World
from workbench.sites import Site
from workbench.text import Tokens, text_of, tokens_of

HALVES = {"cond": ("cond",), "uncond": ("uncond",), "both": ("uncond", "cond")}


@dataclass(frozen=True)
class Action:
    """One intervention at one site, resolved.

    world: whose. number: which of its interventions. tokens: positions in each half that it touches, None for all of them. calls: of
    the site's module at which it acts, numbered from 0; of a text encoder, 0 is the prompt's and 1 the negative prompt's.
    """

    world: str
    number: int
    site: Site
    rule: Rule
    tokens: dict[str, tuple[int, ...] | None] = field(hash=False)
    calls: tuple[int, ...]
    heads: tuple[int, ...] | None
    channels: tuple[int, ...] | None

    @property
    def halves(self) -> tuple[str, ...]:
        return tuple(self.tokens)

    @property
    def addresses_all(self) -> bool:
        """Whether it touches all entries of its rows."""
        return all(chosen is None for chosen in (self.heads, self.channels, *self.tokens.values()))


@dataclass(frozen=True)
class Plan:
    """What a run does: its calls, its halves, every action."""

    calls: Calls
    guided: bool
    actions: tuple[Action, ...]

    @cached_property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Names of the worlds whose rows each world needs beside its own, by its name."""
        sources: dict[str, dict[str, None]] = {}
        for action in self.actions:
            if (source := action.rule.source_world) is not None and not self.reads_text_alone(action):
                sources.setdefault(action.world, {})[source] = None
        return {name: tuple(own) for name, own in sources.items()}

    def reads_text_alone(self, action: Action) -> bool:
        """Whether all that it reads is a text state of another world's prompt, to which nothing is done: no row of the denoiser is
        needed for that."""
        source = action.rule.source_world
        own = action.site.part == "text" and action.halves == ("cond",)
        return own and source is not None and source not in self._changed_in_text

    @cached_property
    def _changed_in_text(self) -> frozenset[str]:
        return frozenset(action.world for action in self.actions if action.site.part == "text")

    def begins(self, world: str) -> int:
        """The first step in which something is done to a world in the denoising; the number of steps if nothing is."""
        own = [action.calls for action in self.actions if action.world == world and action.site.looped]
        return min((self.calls.step[call] for calls in own for call in calls), default=self.calls.steps)

    def of_text(self) -> "Plan":
        """What is done to the text alone."""
        return replace(self, actions=tuple(action for action in self.actions if action.site.part == "text"))

    def between(self, start: int, stop: int) -> "Plan":
        """What is done in steps from start to stop, the last excluded; their calls are numbered from 0."""
        own = self.calls.of(range(start, stop))
        calls = Calls(tuple(self.calls.step[call] for call in own), tuple(self.calls.timestep[call] for call in own))
        actions = []
        for action in self.actions:
            if action.site.looped:
                chosen = tuple(call - own[0] for call in action.calls if call in own)
                actions += [replace(action, calls=chosen)] if chosen else []
            elif action.site.part == "text" or stop == self.calls.steps:
                actions.append(action)
        return Plan(calls, self.guided, tuple(actions))


def resolve_steps(steps: tuple[int, ...] | Window | None, count: int) -> tuple[int, ...]:
    """Numbers of the denoising steps that an intervention's `steps` names; raises ValueError outside the run."""
    if steps is None:
        return tuple(range(count))
    if isinstance(steps, Window):
        return steps.steps(count)
    if outside := [step for step in steps if step >= count]:
        raise ValueError(
            f"steps={outside}: the run has steps 0 to {count - 1}; raise num_inference_steps or name others"
        )
    return steps


def plan(
    model, worlds: Sequence[World], calls: Calls, guided: bool, size: tuple[int | None, int | None] = (None, None)
) -> Plan:
    """Every intervention at every site, checked; raises KeyError and ValueError before anything runs."""
    names = [world.name for world in worlds]
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"worlds named {repeated} more than once; give each its own name")
    if not worlds:
        raise ValueError("worlds=[]: give at least one world, such as wb.World('plain', 'a zebra')")
    sites = model.sites_at(*size)
    negative = any(world.negative_prompt is not None for world in worlds)
    actions: list[Action] = []
    resolved: dict[tuple[int, str], Action] = {}  # what asks for no tokens is the same in every world that has it
    for world in worlds:
        for number, intervention in enumerate(world.interventions):
            source = intervention.rule.source_world
            if source is not None and source not in names:
                raise ValueError(
                    f"world {world.name!r} reads world {source!r}, which the run lacks; its worlds are {names}"
                )
            for site in sites(*intervention.sites):
                if (known := resolved.get((id(intervention), site.name))) is not None:
                    actions.append(replace(known, world=world.name, number=number))
                    continue
                rule = f"{type(intervention.rule).__name__} at {site.name} in world {world.name!r}"
                try:
                    actions.append(_action(model, world, number, intervention, site, calls, guided, negative))
                    _check_maps(sites, intervention.rule)
                    mapped = isinstance(intervention.rule, MixAttention) and intervention.rule.mapper is not None
                    if model.family.masked and "token" in site.axes and not mapped:  # a mapper tells tokens itself
                        _check_lengths(model.pipeline, intervention.rule, world, worlds)
                except ValueError as error:
                    raise ValueError(f"{rule}: {error}") from None
                if intervention.tokens is None:
                    resolved[id(intervention), site.name] = actions[-1]
    return Plan(calls, guided, tuple(actions))


def _check_lengths(pipeline, rule: Rule, world: World, worlds: Sequence[World]):
    """Raise ValueError for text of another prompt with more or fewer tokens than the row's own, whose padding alone is masked."""
    pairs = [(world.prompt, rule.other_prompt)] if rule.other_prompt is not None else []
    for other in worlds:
        if other.name == rule.source_world:
            pairs += [(world.prompt, other.prompt), (world.negative_prompt or "", other.negative_prompt or "")]
    for own, given in pairs:
        counts = [tokens.end + tokens.ended for tokens in (text_of(pipeline, text) for text in (own, given))]
        if counts[0] != counts[1]:
            raise ValueError(
                f"{given!r} is {counts[1]} tokens, {own!r} {counts[0]}, and a {type(pipeline).__name__} masks what is behind a "
                "prompt's own; give a prompt of as many tokens, or act where the text has been read, at cross.z or cross"
            )


def check_reach(pipeline, site: Site):
    """Raise ValueError for a site whose module the pipeline, as it is set, does not run once for all rows."""
    vae = getattr(pipeline, "vae", None)
    if site.part == "decoder" and (getattr(vae, "use_slicing", False) or getattr(vae, "use_tiling", False)):
        raise ValueError(
            "the VAE decodes image by image or tile by tile (enable_slicing, enable_tiling), out of the engine's sight; call "
            "vae.disable_slicing() and vae.disable_tiling()"
        )
    check_attention(pipeline, site)


def _action(
    model, world: World, number: int, intervention: Intervention, site: Site, calls: Calls, guided: bool, negative: bool
) -> Action:
    pipeline = model.pipeline
    if not site.read:
        raise ValueError(
            f"the denoiser never reads it in a {type(pipeline).__name__}: nothing would change; name an earlier layer"
        )
    check_reach(pipeline, site)
    intervention.rule.check(site, pipeline)
    for name, one in (("heads", "attention"), ("channels", "site")):
        chosen = getattr(intervention, name)
        if chosen is None:
            continue
        if name == "heads" and not site.per_head:
            raise ValueError(f"heads={chosen}, but heads are apart only at q, k, v, probs and z sites")
        if name == "channels" and "channel" not in site.axes:
            raise ValueError(f"channels={chosen}, but the site's axes are {site.axes}; leave channels out")
        count = (site.heads or 0) if name == "heads" else site.axis("channel")
        if outside := [number for number in chosen if not 0 <= number < count]:
            raise ValueError(f"{name}={outside}, the {one} has {name} 0 to {count - 1}")
    if site.part in ("text", "decoder") and intervention.steps is not None:
        module = "text encoder" if site.part == "text" else "VAE"
        raise ValueError(f"steps={intervention.steps}, but the {module} runs once, outside the steps; leave steps out")
    rows = _rows(intervention, site, guided)
    tokens = {half: _tokens(pipeline, world, intervention, site, half) for half in HALVES[rows]}
    act_at: tuple[int, ...]
    if site.part == "text":
        # SDXL may put zeros in the place of an empty negative prompt: its encoders are then called once
        zeros = pipeline.config.get("force_zeros_for_empty_prompt", False) and not negative
        if zeros:
            tokens = {"cond": tokens["cond"]}
        act_at = (0,) if rows == "cond" or zeros else (0, 1)
    elif site.part == "decoder":
        act_at = (0,)
    else:
        act_at = calls.of(resolve_steps(intervention.steps, calls.steps))
        if site.part == "latents":
            act_at = tuple(call for call in act_at if calls.ends(call))
    return Action(
        world.name, number, site, intervention.rule, tokens, act_at, intervention.heads, intervention.channels
    )


def _rows(intervention: Intervention, site: Site, guided: bool) -> str:
    """Which halves of the guided batch, or calls of the text encoder."""
    asked = intervention.rows
    if site.part in ("latents", "decoder"):
        if asked is not None:
            raise ValueError(f"rows={asked!r}, but there are no halves outside the denoiser; leave rows out")
        return "cond"
    if site.part == "text" and asked == "uncond":
        raise ValueError(
            'rows="uncond", but the negative prompt alone is not the world\'s; give rows="both", or leave rows out'
        )
    if not guided and asked == "uncond":
        raise ValueError(
            'rows="uncond", but the run has no unconditional half; give guidance_scale above 1 (a model that takes guidance as an input, '
            "as LCM's do, never has one)"
        )
    if not guided:
        return "cond"
    return asked or ("cond" if site.part == "text" or site.from_text or "token" in site.axes else "both")


def _tokens(pipeline, world: World, intervention: Intervention, site: Site, half: str) -> tuple[int, ...] | None:
    """Positions of an intervention's tokens in the prompt, or in the unconditional half the negative prompt, at a site."""
    if intervention.tokens is None:
        return None
    if "token" not in site.axes:
        raise ValueError(f"tokens={intervention.tokens!r}, but the site's axes are {site.axes}; leave tokens out")
    prompt = world.prompt if half == "cond" else world.negative_prompt or ""
    family = family_of(pipeline)
    if site.part == "text" and site.tokenizer is not None:
        readings = {site.tokenizer: tokens_of(pipeline, prompt, site.tokenizer)}
    else:  # the denoiser's tokens are those of all encoders together
        names = max((reading.tokenizers for reading in family.read(family, pipeline)), key=len)
        readings = {name: text_of(pipeline, prompt, number) for number, name in enumerate(names)}
    positions = {name: _named(read, intervention.tokens, world.subject, half) for name, read in readings.items()}
    if len(set(positions.values())) > 1:
        raise ValueError(
            f"tokens={intervention.tokens!r} stand at different positions for the tokenizers: {positions}; name positions"
        )
    return next(iter(positions.values()))


def _named(read: Tokens, tokens: str | tuple[int, ...], subject: str | None, half: str) -> tuple[int, ...]:
    try:
        positions = read.positions(tokens, subject)
    except ValueError as error:
        negative = "in the negative prompt, whose half rows= names too: " if half == "uncond" else ""
        raise ValueError(f"{negative}{error}") from None
    if not positions:
        raise ValueError(f"tokens={tokens!r} names no token of {read!r}; name others")
    return positions


def _check_maps(sites, rule: Rule):
    if not rule.maps:
        return
    maps = sites(*rule.maps)
    if wrong := [each.name for each in maps if each.kind != "cross.probs"]:
        raise ValueError(f"maps={wrong[:5]} are no probabilities of cross-attention; they are unet.*.cross.probs")
    if len(pixels := {each.axis("pixel") for each in maps}) > 1:
        raise ValueError(f"maps of {sorted(pixels)} pixels; name those of one resolution")


def closure(world: str, reads: Mapping[str, Sequence[str]], seen: tuple[str, ...] = ()) -> dict[str, None]:
    """Names of all worlds that a world reads, those that they read among them, and its own, each behind those that it reads."""
    if world in seen:
        raise ValueError(f"worlds read one another in a circle: {' -> '.join([*seen, world])}")
    found: dict[str, None] = {}
    for source in reads.get(world, ()):
        found |= closure(source, reads, (*seen, world))
    return found | {world: None}


def groups(worlds: Sequence[World], batch_size: int, reads: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Names of the worlds of each batch, every world with those whose rows it needs; raises ValueError where a batch is too small."""
    together: list[dict[str, None]] = []
    for world in worlds:
        need = closure(world.name, reads)
        if len(need) > batch_size:
            raise ValueError(
                f"world {world.name!r} with those that it reads, {list(need)}, is {len(need)} rows; raise batch_size={batch_size}"
            )
        if together and len(together[-1] | need) <= batch_size:
            together[-1] |= need
        else:
            together.append(need)
    return [tuple(names) for names in together]


def batches(
    worlds: Sequence[World],
    seeds: Sequence[int],
    batch_size: int,
    reads: Mapping[str, Sequence[str]],
    known: Mapping[str, World],
) -> Iterator[tuple[list[World], list[int]]]:
    """Worlds and seeds of each batch, every world with the worlds whose rows it needs. known: all worlds by name."""
    for names in groups(worlds, batch_size, reads):
        per = batch_size // len(names)
        for at in range(0, len(seeds), per):
            yield [known[name] for name in names], list(seeds[at : at + per])


def batches_of(worlds: int, seeds: int, batch_size: int) -> int:
    """Number of batches for so many worlds that read no others."""
    whole, rest = divmod(worlds, batch_size)
    return whole * seeds + (ceil(seeds / (batch_size // rest)) if rest else 0)
