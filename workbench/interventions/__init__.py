"""Interventions: what is changed, where and when, as plain values.

    World("corrupted", "a zebra in the savanna", [add_noise("text_encoder*.embedding", 0.1, tokens="subject")], subject="zebra")
    restore("text_encoder.0.attention", "clean", tokens="subject_last")

An intervention is data: printable, comparable, and `to_json` / `from_json` bring it back equal. The engine alone carries
it out. What its keywords mean stands at `Intervention`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict, Unpack

from workbench.arguments import checked, meant
from workbench.families.base import LATENTS, Site
from workbench.inputs import text
from workbench.interventions.base import Intervention, Rows, World
from workbench.interventions.rules import (
    RULES,
    Ablate,
    AddNoise,
    Apply,
    Array,
    BlendLatents,
    Context,
    MapInput,
    MixAttention,
    Remove,
    ReplacePrompt,
    Restore,
    Rule,
    Scale,
    SetTo,
    Steer,
)
from workbench.steps import Steps, Window, as_steps, window

SiteNames = str | Site | Iterable[str | Site]


class Places(TypedDict, total=False):
    """Which entries of a site's value an intervention touches, and when; see `Intervention`."""

    tokens: str | int | Sequence[int] | None
    steps: Steps
    heads: int | Sequence[int] | None
    channels: int | Sequence[int] | None
    rows: Rows | None


def _at(sites: SiteNames, rule: Rule, places: Places) -> Intervention:
    for name in places:
        if name not in Places.__annotations__:
            near = meant(name, Places.__annotations__)
            raise TypeError(
                f"{name}=: there is no such argument{f'; did you mean {near}=?' if near else ''}; what an intervention touches is "
                f"said by {', '.join(f'{each}=' for each in Places.__annotations__)}"
            )
    given: Any = {"sites": sites} | places
    return Intervention(rule=rule, **given)  # which brings them into the form in which they are kept


@checked
def restore(sites: SiteNames, from_world: str, **places: Unpack[Places]) -> Intervention:
    """Give sites the value that `from_world` has there.

    >>> noise = wb.add_noise("text_encoder.embedding", 1.0, tokens="subject")
    >>> back = wb.restore("text_encoder.embedding", "clean", tokens="subject")
    >>> worlds = [wb.World("clean", "a zebra"), wb.World("restored", "a zebra", [noise, back], "zebra")]
    >>> clean, restored = model.run(worlds).images
    >>> np.allclose(clean, restored, atol=1e-4)
    True
    """
    return _at(sites, Restore(from_world), places)


@checked
def add_noise(sites: SiteNames, sigma: float, seed: int = 0, **places: Unpack[Places]) -> Intervention:
    """Add Gaussian noise of standard deviation sigma.

    >>> noise = wb.add_noise("text_encoder.embedding", sigma=1.0, seed=3, tokens="subject")
    >>> worlds = [wb.World("clean", "a zebra"), wb.World("corrupted", "a zebra", noise, "zebra")]
    >>> model.run(worlds).fired
    {('corrupted', 0): 1}
    """
    return _at(sites, AddNoise(sigma, seed), places)


@checked
def replace_prompt(sites: SiteNames, prompt: str, **places: Unpack[Places]) -> Intervention:
    """Give "context", "k" or "v" sites of cross-attention, or a "pooled" vector, what they would be for another prompt.

    >>> lion = wb.replace_prompt("unet.*.cross.context", "a lion")
    >>> given, plain = model.run([wb.World("given", "a zebra", lion), "a lion"]).images
    >>> np.allclose(given, plain, atol=1e-4)
    True
    """
    return _at(sites, ReplacePrompt(prompt), places)


@checked
def steer(
    sites: SiteNames, direction, alpha: float = 1.0, *, keep_norm: bool = False, **places: Unpack[Places]
) -> Intervention:
    """Add alpha times a direction: a number per channel, or (token, channel). `Direction.steer` makes these from prompts.

    rows: left out, as for every intervention: the conditional half for what comes from the text, both for the denoiser's own states.

    >>> vector = winter["text_encoder.0.mlp"]  # one number for each channel
    >>> colder = wb.steer("text_encoder.0.mlp", vector, alpha=3.0, tokens="all")
    >>> model.run(wb.World("winter", "a zebra", colder)).fired
    {('winter', 0): 1}
    """
    return _at(sites, Steer(direction, alpha, keep_norm), places)


@checked
def remove(
    sites: SiteNames, direction, beta: float = 1.0, *, keep_norm: bool = False, **places: Unpack[Places]
) -> Intervention:
    """Take away beta times what points along a direction: 1 leaves nothing of it, 2 turns it round.

    >>> vector = winter["text_encoder.0.mlp"]
    >>> warmer = wb.remove("text_encoder.0.mlp", vector, beta=1.0)
    >>> model.run(wb.World("no winter", "a zebra in winter", warmer)).fired
    {('no winter', 0): 1}
    """
    return _at(sites, Remove(direction, beta, keep_norm), places)


@checked(over=text)
def ablate(
    sites: SiteNames, to: str = "zero", world: str | None = None, *, over: str | None = None, **places: Unpack[Places]
) -> Intervention:
    """Replace by zero, by the mean over an axis (`over="token"`), or ("resample") by another world's value.

    >>> silent = wb.World("silent", "a zebra", wb.ablate("unet.mid.cross"))
    >>> flat = wb.World("flat", "a zebra", wb.ablate("unet.mid.cross", "mean", over="pixel"))
    >>> other = wb.World("other", "a zebra", wb.ablate("unet.mid.cross", "resample", "silent"))
    >>> model.run([silent, flat, other]).fired
    {('silent', 0): 2, ('flat', 0): 2, ('other', 0): 2}
    """
    return _at(sites, Ablate(to, world, over), places)


@checked
def scale(sites: SiteNames, factor: float, **places: Unpack[Places]) -> Intervention:
    """Multiply by a factor.

    >>> once = wb.World("once", "a zebra", wb.scale("unet.*.cross", 1.0))
    >>> none = wb.World("none", "a zebra", wb.scale("unet.*.cross", 0.0, steps=[0], rows="cond"))
    >>> run = model.run(["a zebra", once, none])
    >>> np.array_equal(run["a zebra"], run["once"]), np.array_equal(run["a zebra"], run["none"])
    (True, False)
    """
    return _at(sites, Scale(factor), places)


@checked
def mix_attention(sites: SiteNames, from_world: str, alpha=1.0, mapper=None, **places: Unpack[Places]) -> Intervention:
    """Blend another world's attention probabilities in, at "probs" sites.

    >>> mix = wb.mix_attention("unet.*.cross.probs", "zebra", steps=wb.window(0.0, 0.5))
    >>> run = model.run({"zebra": "a zebra", "lion": wb.World("lion", "a lion", mix)})
    >>> run.fired  # at 16 layers, in one of two steps
    {('lion', 0): 16}
    """
    return _at(sites, MixAttention(from_world, alpha, mapper), places)


@checked
def set_to(sites: SiteNames, values, **places: Unpack[Places]) -> Intervention:
    """Put given values there: an array over the site's axes behind the row, the same for all images.

    >>> site = model.sites["unet.mid.cross"]
    >>> zero = wb.World("zero", "a zebra", wb.set_to(site, np.zeros(site.sizes)))
    >>> silent = wb.World("silent", "a zebra", wb.ablate(site))
    >>> np.array_equal(*model.run([zero, silent]).images)
    True
    """
    return _at(sites, SetTo(values), places)


@checked
def blend_latents(
    from_world: str,
    maps: Iterable[str],
    own: Sequence[int],
    source: Sequence[int],
    *,
    own_less: Sequence[int] = (),
    source_less: Sequence[int] = (),
    threshold: float = 0.3,
    threshold_less: float = 0.3,
    steps: Steps = None,
) -> Intervention:
    """Keep another world's latents outside the words' regions, at the end of each step; `workbench.LocalBlend` finds the arguments.

    >>> maps_of = ["unet.up.2.0.cross.probs"]
    >>> keep = wb.blend_latents("zebra", maps_of, own=[2], source=[2], steps=wb.window(0.5, 1.0))
    >>> run = model.run({"zebra": "a zebra", "lion": wb.World("lion", "a lion", keep)})
    >>> run.fired
    {('lion', 0): 1}
    """
    positions: Any = dict(own=own, source=source, own_less=own_less, source_less=source_less)
    names: Any = maps
    rule = BlendLatents(
        from_world,
        names,
        **positions,
        threshold=threshold,
        threshold_less=threshold_less,
    )
    return _at(LATENTS, rule, {"steps": steps})


@checked
def map_input(sites: SiteNames, b, a, **places: Unpack[Places]) -> Intervention:
    """Add b @ a @ x, with b (out, rank), a (rank, in) and x the input of the linear layer or embedding that gives the site.

    >>> update = edit.updates[0]
    >>> change = wb.map_input(update.site, update.b, update.a, rows="both")
    >>> change.sites
    ('unet.up.2.0.cross.k',)
    >>> model.run(wb.World("changed", "a zebra", change)).fired
    {('changed', 0): 2}
    """
    return _at(sites, MapInput(b, a), places)


@checked
def apply(
    sites: SiteNames, function: Callable, from_world: str | None = None, **places: Unpack[Places]
) -> Intervention:
    """Put what your own function makes of the value at a site, and, with `from_world`, of that world's value there.

    function: (value) or (value, source) -> tensor of the value's shape, (row, ...the site's axes), one row for each seed. It
    runs, is masked and counted as every rule is; it has no JSON.

    >>> def half(value):  # (row, pixel, channel)
    ...     return value / 2
    >>> own = wb.World("own", "a zebra", wb.apply("unet.mid.cross", half))
    >>> built_in = wb.World("built in", "a zebra", wb.scale("unet.mid.cross", 0.5))
    >>> np.array_equal(*model.run([own, built_in]).images)
    True
    """
    return _at(sites, Apply(function, from_world), places)


__all__ = [
    "RULES",
    "Array",
    "Context",
    "Intervention",
    "Places",
    "Rows",
    "Rule",
    "Steps",
    "Window",
    "World",
    "ablate",
    "add_noise",
    "apply",
    "as_steps",
    "blend_latents",
    "map_input",
    "mix_attention",
    "remove",
    "replace_prompt",
    "restore",
    "scale",
    "set_to",
    "steer",
    "window",
]
