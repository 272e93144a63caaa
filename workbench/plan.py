"""Planning a run: every intervention found, checked and counted, and every batch laid out, before anything is computed."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workbench.interventions import (
    BlendLatents,
    Intervention,
    MapInput,
    MixAttention,
    Remove,
    ReplacePrompt,
    Rule,
    SetTo,
    Steer,
    World,
    source_world,
)
from workbench.sites import Site, weight_of
from workbench.text import tokenize


@dataclass(frozen=True)
class Action:
    """One intervention at one site, resolved: which world, which of its tokens, which steps, which half of the rows."""

    world: str
    number: int
    site: Site
    rule: Rule
    tokens: tuple[int, ...] | None
    steps: tuple[int, ...]
    heads: tuple[int, ...] | None
    rows: str


def resolve_steps(steps: tuple | None, count: int) -> tuple[int, ...]:
    """Numbers of the denoising steps that an intervention's `steps` names; raises ValueError outside the run."""
    if steps is None:
        return tuple(range(count))
    if steps[0] == "slice":
        found = tuple(range(count)[slice(*steps[1:])])
    elif len(steps) == 2 and all(isinstance(step, float) for step in steps):
        low, high = steps
        if not 0 <= low < high <= 1:
            raise ValueError(f"steps={steps}: fractions of the run go from 0.0 to 1.0, the smaller first")
        found = tuple(range(round(low * count), round(high * count)))
    else:
        if outside := [step for step in steps if not 0 <= step < count]:
            raise ValueError(
                f"steps={outside}: the run has steps 0 to {count - 1}; raise num_inference_steps or name others"
            )
        found = tuple(sorted(set(steps)))
    if not found:
        raise ValueError(f"steps={steps} names none of the run's {count} steps")
    return found


def resolve(model, worlds: Sequence[World], count: int, guided: bool) -> list[Action]:
    """Every intervention at every site, checked, before anything runs."""
    names = [world.name for world in worlds]
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"worlds named {repeated} more than once; give each its own name")
    actions = []
    for world in worlds:
        for number, intervention in enumerate(world.interventions):
            source = source_world(intervention.rule)
            if source is not None and source not in names:
                raise ValueError(
                    f"world {world.name!r} reads world {source!r}, which the run lacks; its worlds are {names}"
                )
            for site in model.sites(*intervention.sites):
                actions.append(_action(model, world, number, intervention, site, count, guided))
    return actions


def _action(
    model, world: World, number: int, intervention: Intervention, site: Site, count: int, guided: bool
) -> Action:
    what = f"{type(intervention.rule).__name__} at {site.name} in world {world.name!r}"
    in_text = site.name.startswith("text_encoder")
    if site.name.startswith("vae") and getattr(model.pipeline.vae, "use_slicing", False):
        raise ValueError(
            f"{what}: the VAE decodes image by image (enable_slicing), out of the engine's sight; call vae.disable_slicing()"
        )
    tokens = None
    if intervention.tokens is not None:
        if "token" not in site.axes:
            raise ValueError(
                f"{what}: tokens={intervention.tokens!r}, but the site's axes are {site.axes}; leave tokens out"
            )
        found = tokenize(model.pipeline.tokenizer, world.prompt)
        if not (tokens := found.positions(intervention.tokens, world.subject)):
            raise ValueError(f"{what}: tokens={intervention.tokens!r} names no token of {found!r}; name others")
    if intervention.heads is not None:
        if site.name.rsplit(".", 1)[1] not in ("q", "k", "v", "probs"):
            raise ValueError(f"{what}: heads={intervention.heads}, but heads are apart only at q, k, v and probs sites")
        if outside := [head for head in intervention.heads if not 0 <= head < site.heads]:
            raise ValueError(f"{what}: heads={outside}, the attention has heads 0 to {site.heads - 1}")
    if in_text and intervention.steps is not None:
        raise ValueError(
            f"{what}: steps={intervention.steps}, but the text encoder runs once, before the steps; leave steps out"
        )
    if isinstance(intervention.rule, MixAttention) and not site.name.endswith(".probs"):
        raise ValueError(f"{what}: mix_attention works at probs sites")
    if isinstance(intervention.rule, ReplacePrompt) and not site.name.endswith(
        (".cross.context", ".cross.k", ".cross.v", ".pooled")
    ):
        raise ValueError(
            f"{what}: replace_prompt works at cross-attention's context, k and v sites, and at a pooled vector"
        )
    if isinstance(intervention.rule, (Steer, Remove)):
        _check_direction(what, site, intervention.rule.direction.shape)
    if isinstance(intervention.rule, MapInput):
        b, a = intervention.rule.b.shape, intervention.rule.a.shape
        weight = tuple(weight_of(model.pipeline, site).shape)
        if len(b) != 2 or len(a) != 2 or b[1] != a[0] or (b[0], a[1]) != weight:
            by = lambda shape: " x ".join(map(str, shape))
            raise ValueError(f"{what}: b is {by(b)} and a {by(a)}, the site's weight {by(weight)}")
    if isinstance(intervention.rule, SetTo) and (found := intervention.rule.values.shape) != site.sizes:
        raise ValueError(
            f"{what}: it was given values of shape {found}, the site's axes behind the row are {site.axes[1:]} of {site.sizes}"
        )
    if isinstance(intervention.rule, BlendLatents):
        _check_blend(model, what, intervention.rule, site)
    if site.port == "step" and intervention.rows is not None:
        raise ValueError(
            f"{what}: rows={intervention.rows!r}, but between the steps there are no halves; leave rows out"
        )
    from_text = in_text or "token" in site.axes or site.port == "step"
    rows = intervention.rows or ("cond" if from_text else "both")
    if in_text and rows == "uncond":
        raise ValueError(
            f'{what}: rows="uncond", but the negative prompt alone is not the world\'s; give rows="both", or leave rows out'
        )
    if not guided and rows != "cond":
        if intervention.rows == "uncond":
            raise ValueError(
                f'{what}: rows="uncond", but the run has no unconditional half; give guidance_scale above 1'
            )
        rows = "cond"
    if in_text:  # the halves are two calls, the prompt's and the negative prompt's; XL may put zeros for the second
        zeros = model.pipeline.config.get("force_zeros_for_empty_prompt", False)
        steps, rows = (0, 1) if rows == "both" and not zeros else (0,), "cond"
    else:
        steps = (0,) if site.name.startswith("vae") else resolve_steps(intervention.steps, count)
    return Action(world.name, number, site, intervention.rule, tokens, steps, intervention.heads, rows)


def _check_direction(what: str, site: Site, shape: tuple[int, ...]):
    if "channel" not in site.axes:
        raise ValueError(f"{what}: the site's axes are {site.axes}, without channels to steer; name other sites")
    if shape[-1] != (channels := site.sizes[site.axes.index("channel") - 1]):
        raise ValueError(f"{what}: it was made for {shape[-1]} channels, the site has {channels}")
    if len(shape) == 2 and ("token" not in site.axes or shape[0] != site.sizes[site.axes.index("token") - 1]):
        raise ValueError(
            f"{what}: it was made for {shape[0]} tokens, the site's axes are {dict(zip(site.axes[1:], site.sizes))}; "
            'make the direction for this model, with pool="positions"'
        )


def _check_blend(model, what: str, rule: BlendLatents, site: Site):
    if site.port != "step":
        raise ValueError(f"{what}: blend_latents works at the site latents")
    maps = model.sites(*rule.maps)
    if wrong := [each.name for each in maps if not each.name.endswith(".cross.probs")]:
        raise ValueError(
            f"{what}: maps={wrong[:5]} are no probabilities of cross-attention; they are unet.*.cross.probs"
        )
    if len(pixels := {each.sizes[1] for each in maps}) > 1:
        raise ValueError(f"{what}: maps of {sorted(pixels)} pixels; name those of one resolution")
    if not rule.own or not rule.source:
        raise ValueError(f"{what}: own={rule.own}, source={rule.source}: name at least one token of each world")


def batches(worlds: Sequence[World], seeds: Sequence[int], batch_size: int) -> Iterator[tuple[list[World], list[int]]]:
    """Worlds and seeds of each batch, every world with the worlds that it reads."""
    by_name = {world.name: world for world in worlds}

    def needed(world: World, seen: tuple[str, ...] = ()) -> dict[str, None]:
        if world.name in seen:
            raise ValueError(f"worlds read one another in a circle: {' -> '.join([*seen, world.name])}")
        found: dict[str, None] = {}
        for intervention in world.interventions:
            if (source := source_world(intervention.rule)) is not None:
                found |= needed(by_name[source], (*seen, world.name))
        return found | {world.name: None}

    groups: list[dict[str, None]] = []
    for world in worlds:
        need = needed(world)
        if len(need) > batch_size:
            raise ValueError(
                f"world {world.name!r} with those that it reads, {list(need)}, is {len(need)} rows; raise batch_size={batch_size}"
            )
        if groups and len(groups[-1] | need) <= batch_size:
            groups[-1] |= need
        else:
            groups.append(need)
    for group in groups:
        per = batch_size // len(group)
        for at in range(0, len(seeds), per):
            yield [by_name[name] for name in group], list(seeds[at : at + per])
