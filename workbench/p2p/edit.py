"""Prompt-to-Prompt: a source world, and edited worlds that take its attention (Hertz et al. 2022, arXiv 2208.01626).

edit = prompt_to_prompt(model, "a zebra in the savanna", "a giraffe in the savanna")
run = model.run(edit, seeds=range(4))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from workbench.arguments import checked, fit, instance_of, mapping_of, one_of
from workbench.inputs import number, shown, strings, text
from workbench.interventions import Intervention, World, blend_latents, mix_attention, scale
from workbench.models import Model
from workbench.p2p.alignment import Alignment, align_texts
from workbench.schema import words
from workbench.sites import LATENTS, Site
from workbench.steps import Window, as_steps
from workbench.text import places_of, text_of

KINDS = ("replace", "refine", "reweight")
SOURCE, DEFAULT = "source", "default_"
FACTORS = mapping_of(number, "{'giraffe': 2.0}")
SHARE = partial(number, above=0, most=1)


def prompts_to_draw(value: Any, argument: str) -> str | tuple[str, ...] | dict[str, str]:
    """A text, several, or a mapping of names to texts; none of them empty."""
    if isinstance(value, Mapping):
        return mapping_of(text, "{'a giraffe': 'a giraffe in the savanna'}")(value, argument)
    found = tuple(text(each, argument) for each in strings(value, argument))
    return found[0] if isinstance(value, str) else found


@dataclass(frozen=True)
class LocalBlend:
    """Keep the source's latents outside the regions of these words (Hertz et al. 2022, section 3.2, "Local Editing").

    words: of the source or of a target; each world has a region for those that its own prompt has. subtract: words whose region
    is taken away again. start: share of the steps before it begins. threshold, subtract_threshold: of a region, as a share of
    its map's maximum. resolution: of the maps, their side as a share of the latents' (the paper's 16 of 64).

    >>> blend = wb.LocalBlend(("zebra", "giraffe"), start=0.5)
    >>> texts = ("a zebra in the savanna", "a giraffe in the savanna")
    >>> worlds = wb.prompt_to_prompt(model, *texts, blend=blend)
    >>> [type(intervention.rule).__name__ for intervention in worlds[1].interventions]
    ['MixAttention', 'MixAttention', 'BlendLatents']
    """

    words: tuple[str, ...]
    subtract: tuple[str, ...] = ()
    start: float = 0.2
    threshold: float = 0.3
    subtract_threshold: float = 0.3
    resolution: float = 0.25

    def __post_init__(self):
        share = partial(number, least=0, most=1)
        none = lambda value, argument: () if isinstance(value, (list, tuple)) and not value else words(value, argument)
        fit(
            self, words=words, subtract=none, start=share, threshold=number, subtract_threshold=number, resolution=SHARE
        )


@dataclass(frozen=True)
class PromptToPrompt(Sequence[World]):
    """The worlds of an edit, the source first, as `model.run` takes them; alignments: of each edited world.

    >>> worlds = wb.prompt_to_prompt(model, "a zebra", "a zebra in winter", "refine")
    >>> worlds[1].prompt
    'a zebra in winter'
    >>> worlds.alignments["edited"].pairs
    (('a', 'a'), ('zebra', 'zebra'), ('', 'in'), ('', 'winter'))
    """

    worlds: tuple[World, ...]
    alignments: Mapping[str, Alignment]

    def __getitem__(self, index):
        return self.worlds[index]

    def __len__(self):
        return len(self.worlds)

    def __repr__(self):
        parts = [f"{SOURCE}: {self.worlds[0].prompt!r}"]
        for world in self.worlds[1:]:
            lines = [f"  {', '.join(i.sites)}: {_said(i)}" for i in world.interventions]
            parts.append(
                "\n".join([f"{world.name}: {self.alignments[world.name]!r}", *(lines or ["  no interventions"])])
            )
        return "\n\n".join(parts)


def _said(intervention: Intervention) -> str:
    where = {
        name: getattr(intervention, name)
        for name in ("tokens", "steps", "rows")
        if getattr(intervention, name) is not None
    }
    return " ".join([repr(intervention.rule), *(f"{name}={value}" for name, value in where.items())])


@checked(
    source=text,
    target=prompts_to_draw,
    kind=one_of(*KINDS),
    self_resolution=SHARE,
    reweight=FACTORS,
    blend=instance_of("workbench.p2p.edit:LocalBlend"),
)
def prompt_to_prompt(
    model: Model,
    source: str,
    target: str | Sequence[str] | Mapping[str, str] | None = None,
    kind: str = "replace",
    *,
    cross_replace_steps: float | Window | Mapping[str, float | Window] = 0.8,
    self_replace_steps: float | Window = 0.4,
    self_resolution: float = 0.25,
    reweight: Mapping[str, float] | None = None,
    blend: LocalBlend | None = None,
) -> PromptToPrompt:
    """Worlds that draw targets with the source's attention: "source" and "edited" (several targets: by their names, or numbered).

    kind: "replace" words one for one, "refine" by words that are added or taken away, "reweight" the source's own. All of them
    change cross-attention's probabilities, of the conditional rows only: A = A_source M, columns of new words their own
    (Hertz et al. 2022, section 3.2). In joint attention (Stable Diffusion 3) these are what the picture's queries give the text's keys;
    what they give the picture stays, so that a query's probabilities sum to one only where both are the source's.
    cross_replace_steps: the share f of the steps that take the source's cross-attention, the first ones; `wb.window(a, b)`; or by target
    word, {"default_": 0.8, "giraffe": wb.window(0.0, 0.4)}. self_replace_steps: the same for self-attention, of layers whose side is
    at most `self_resolution` of the latents' (the paper's 16 of 64). reweight: by target word, what its column is multiplied by, in
    that word's own steps; with any kind. blend: `LocalBlend`. In SDXL each world keeps the pooled text vector of its own prompt.

    Raises ValueError, before anything is generated, for a kind, word, share or resolution that there is not, and for prompts that do
    not fit the kind.

    >>> worlds = wb.prompt_to_prompt(model, "a zebra in the savanna", "a giraffe in the savanna")
    >>> [world.name for world in worlds]
    ['source', 'edited']
    >>> model.run(worlds)
    Run of worlds 'source', 'edited'; seeds 0: pictures of 64 x 64
    """
    if kind == "reweight":
        if target not in (None, source) or not reweight:
            raise ValueError(
                f'kind="reweight" changes weights in the source\'s own prompt: found target={target!r}, reweight={reweight}; '
                'give reweight={word: factor} and no target, or kind="replace" or "refine" with reweight'
            )
        target = source
    if target is None:
        raise ValueError(f"kind={kind!r} needs a target; give the prompt to draw")
    targets, before = _named(target), text_of(model.pipeline, source)
    alignments = {
        name: align_texts(before, text_of(model.pipeline, prompt), "refine" if kind == "refine" else "replace")
        for name, prompt in targets.items()
    }
    given = cross_replace_steps if isinstance(cross_replace_steps, Mapping) else {DEFAULT: cross_replace_steps}
    schedule = {word: _window("cross_replace_steps", each) for word, each in given.items()}
    if DEFAULT not in schedule:
        raise ValueError(f'cross_replace_steps={given} has no "{DEFAULT}" for the other words; give one')
    for what, named in (
        ("cross_replace_steps", [word for word in schedule if word != DEFAULT]),
        ("reweight", reweight or {}),
    ):
        _check_words(what, named, targets.values())
    window = _window("self_replace_steps", self_replace_steps)
    selves = up_to(model, "self", self_resolution, "self_resolution") if window else []
    worlds = [World(SOURCE, source)]
    for name, found in alignments.items():
        made = [*_cross(model.family.maps, found, schedule, reweight or {})]
        if selves:
            made.append(mix_attention(selves, SOURCE, steps=window, rows="cond"))
        if blend is not None:
            made.append(_blend(model, found, blend, (source, *targets.values())))
        worlds.append(World(name, found.target.prompt, made))
    return PromptToPrompt(tuple(worlds), alignments)


def _named(target: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    if isinstance(target, str):
        return {"edited": target}
    found = dict(target) if isinstance(target, Mapping) else {f"edited {i}": prompt for i, prompt in enumerate(target)}
    if not found or SOURCE in found:
        raise ValueError(f'target={target!r}: give one or several prompts, by other names than "{SOURCE}"')
    return found


def _cross(probs: str, found: Alignment, schedule: Mapping[str, Window | None], reweight: Mapping[str, float]):
    """Interventions on cross-attention: one mix for all tokens of the same steps, and the factors behind it."""
    length = len(found.target.ids)
    of = {
        word: found.target.of(word)
        for word in (*schedule, *reweight)
        if word != DEFAULT and places_of(word, found.target.prompt)
    }
    windows = {j: schedule[DEFAULT] for j in range(length)}
    for word in schedule:
        if word in of and set(of[word]) <= set(found.new):
            raise ValueError(
                f"cross_replace_steps: {word!r} is new in {found.target.prompt!r} and keeps its own attention at all steps; leave it out"
            )
        windows |= {j: schedule[word] for j in of.get(word, ())}
    taken = [j for j in range(length) if j not in found.new]
    for window in dict.fromkeys(windows[j] for j in taken):
        tokens = tuple(j for j in taken if windows[j] == window)
        if window:
            where = dict(steps=window, rows="cond") | ({} if len(tokens) == length else {"tokens": tokens})
            yield mix_attention(probs, SOURCE, mapper=found.matrix, **where)
    for word, factor in reweight.items():
        if word in of:
            if not (window := windows[of[word][0]]):
                raise ValueError(f"reweight: {word!r} has no steps; raise cross_replace_steps, its share of them")
            yield scale(probs, factor, tokens=of[word], steps=window, rows="cond")


def _blend(model: Model, found: Alignment, blend: LocalBlend, prompts: Sequence[str]) -> Intervention:
    positions = {}
    for what in ("words", "subtract"):
        _check_words(f"blend.{what}", getattr(blend, what), prompts)
        for side in ("target", "source"):
            tokens = getattr(found, side)
            positions[side, what] = [
                i for word in getattr(blend, what) if places_of(word, tokens.prompt) for i in tokens.of(word)
            ]
            if what == "words" and not positions[side, what]:
                raise ValueError(
                    f"blend.words={blend.words}: {tokens.prompt!r} has none of them, and nothing says where to blend; name "
                    "a word of every prompt"
                )
    if blend.start == 1:
        raise ValueError("blend.start=1: give a share of the steps, from 0 to below 1")
    maps = [site.name for site in up_to(model, "cross", blend.resolution, "blend.resolution", only=True)]
    return blend_latents(
        SOURCE,
        maps,
        positions["target", "words"],
        positions["source", "words"],
        own_less=positions["target", "subtract"],
        source_less=positions["source", "subtract"],
        threshold=blend.threshold,
        threshold_less=blend.subtract_threshold,
        steps=Window(blend.start, 1.0),
    )


def up_to(model: Model, kind: str, share: float, what: str, only: bool = False) -> list[Site]:
    """The "probs" sites whose side is at most, or with `only` the largest that is at most, this share of the latents'."""
    latent = model.sites[LATENTS].grid[0]
    sites = [site for site in model.sites if site.kind == f"{kind}.probs"]
    sides = sorted({site.grid[0] for site in sites})
    fitting = [side for side in sides if side <= share * latent + 1e-6]
    if not fitting:
        raise ValueError(
            f"{what}={share}: {kind}-attention has sides {sides} of latents of {latent}; raise it to at least {sides[0] / latent:g}"
        )
    chosen = fitting[-1:] if only else fitting
    return [site for site in sites if site.grid[0] in chosen]


def _window(argument: str, given: float | Window) -> Window | None:
    """The steps that take the source's attention; None for none of them."""
    if isinstance(given, Window):
        return given
    if isinstance(given, (tuple, list)):
        as_steps(given, argument)  # which says how a pair of shares is written
    try:
        share = number(given, argument, least=0, most=1)
    except ValueError:
        raise ValueError(
            f"{argument}={shown(given)}: give the share of the steps, from 0 to 1, or a window of them such as wb.window(0.2, 0.8)"
        ) from None
    return Window(0.0, share) if share else None


def _check_words(what: str, words: Sequence[str], prompts: Sequence[str]):
    if missing := [word for word in words if not any(places_of(word, prompt) for prompt in prompts)]:
        raise ValueError(f"{what}: {missing} are in none of the prompts {list(prompts)}; name words that they have")
