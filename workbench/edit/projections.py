"""Edits that project or reflect what layers are given, along the direction in which two words' states differ.

    edit = oblique(model, "a zebra", "a cow")  # erase: nothing tells a zebra from a cow any more
    edit = reflect(model, "a zebra", "a giraffe")  # swap; made anew and committed again, it takes itself back

They ask for no value that a layer is to give, so no ridge shrinks them and nothing is left to tune but the rank. Words, sites, templates
and tokens are those of the closed-form editors (`workbench.edit.editors`).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from workbench.arguments import Check, checked, optional, warn
from workbench.edit.attacked import Readings
from workbench.edit.closed_form import Change, projection
from workbench.edit.editors import (
    Where,
    as_corpus,
    as_pairs,
    as_templates,
    by_input,
    called,
    check_moments,
    editable,
    gather,
    key_runs,
    provenance,
    relative_norm,
    seconds,
    where,
)
from workbench.edit.looks import KeyRuns, Looks
from workbench.edit.low_rank import Edit, update_of
from workbench.edit.moments import Moments
from workbench.edit.words import warn_of_untrained
from workbench.inputs import count, number, plain, shown, text
from workbench.prompts import LEADING, attributes, prompt_set
from workbench.sites import Site, weight_of
from workbench.text import places_of, replace_words

FLOOR = 1e-4
OF_EACH_LABEL = 5  # texts, so that the larger text encoders read them all in a minute or so
UNREAD = 1e-3  # of what is read on average: directions that are read less count as read as much
SUITS = 0.5  # at which one of two words, reflected, comes to lie as near to its own place as to the other's


def a_floor(value: Any, argument: str) -> float:
    """A number from 0, or infinity."""
    if isinstance(plain(value), float) and plain(value) == math.inf:
        return math.inf
    try:
        return number(value, argument, least=0)
    except ValueError:
        raise ValueError(f"{argument}={shown(value)}: give a number, at least 0, or math.inf") from None


CHECKS: dict[str, Check] = dict(
    rank=optional(count), templates=as_templates, tokens=where, corpus=as_corpus, floor=a_floor, runs=key_runs
)


@checked(**CHECKS, concept=text, guide=text, resist=a_floor)
def oblique(
    model,
    concept: str,
    guide: str,
    *,
    sites=None,
    rank: int | None = 1,
    templates: Sequence[str] | None = None,
    tokens: Where = "all",
    corpus: Sequence[str] | Moments | None = None,
    floor: float = FLOOR,
    resist: float = 0.0,
    runs: KeyRuns | None = None,
) -> Edit:
    """Erase a concept: what layers are given loses the directions in which it differs from a guide, and else changes the least.

    LEACE's oblique projection (Belrose et al. 2023, arXiv 2306.03819, theorem 4.3, not centred), for all layers with one input:
    W' = W (I - S^1/2 V^T V S^-1/2), with S the second moment of the states to be kept, D the differences between the concept's and the
    guide's states, V the first `rank` right singular vectors of D S^-1/2. So the concept is drawn as its guide is; see
    `workbench.edit.closed_form.projection`.

    concept, guide: words for `templates`, such as "a zebra" and "a cow"; left out, these are 60 prompts that come with the
    workbench: the few short ones of other editors give a direction that holds for them alone (on the embedded model the concept
    stays). rank: how many directions are removed; None is all, after which the two are equal at every token that was given. runs: as
    of `from_concepts`, for layers of joint attention: all of these prompts are drawn.
    corpus: prompts whose states are kept (with the empty prompt's), or their `Moments`; left out, some 230 texts of the attributes
    that come with the workbench, but for those that say or show the concept. floor: added to S, as a share of its mean eigenvalue.
    The larger it is, the more all directions count alike: math.inf is the orthogonal projection, which does not look at what is
    kept.

    resist: so many times as much as S, on average over directions, is added of (W^T W)^-1, W all layers stacked. An oblique projection
    leaves other states for which the layers give what they gave for the concept (`wb.recover`, nearest_states): it removes
    what tells the two apart at the least cost, not what the layers read. The more of the inverse, the more is taken out of what
    they *give*; with math.inf it is an orthogonal projection of the outputs, and no states bring back what was removed. It
    costs other pictures: figures/hidden has the frontier.

    Raises, with nothing changed, KeyError for unknown sites; ValueError for sites that are not given text, words that act as
    themselves, differences that span all channels, and a corpus that leaves channels empty at floor=0.

    >>> erased = wb.edit.oblique(model, "a zebra", "a cow")
    >>> len(erased.sites), erased.rank, erased.editor
    (32, 1, 'oblique')
    >>> wb.edit.oblique(model, "a zebra", "a cow", rank=4, resist=1).rank
    4
    >>> with model.applied(erased):
    ...     pictures = model.generate("a zebra in the savanna")
    """
    settings = dict(rank=rank, templates=templates, tokens=tokens, corpus=corpus, floor=floor, resist=resist, runs=runs)
    return projected(model, "oblique", (concept, guide), sites, times=1.0, kept_words=(concept,), **settings)[0]


@checked(**CHECKS, first=text, second=text)
def reflect(
    model,
    first: str,
    second: str,
    *,
    sites=None,
    rank: int | None = 1,
    templates: Sequence[str] | None = None,
    tokens: Where = "all",
    corpus: Sequence[str] | Moments | None = None,
    floor: float = FLOOR,
    runs: KeyRuns | None = None,
) -> Edit:
    """Swap two concepts: what layers are given is mirrored along the directions in which the two differ.

    W' = W (I - 2 S^1/2 V^T V S^-1/2), with what `oblique` takes; it is its own inverse, so that the edit made anew from the edited model
    and committed gives the weights back.

    A reflection knows no middle between the two but the origin: it suits pairs that lie opposite one another along the directions.
    Whether they do is known beforehand, from the states. With t = V S^-1/2 x of both at all tokens, provenance["miss"] is
    |t_first + t_second| / |t_first - t_second|, by input: by how much of the way between them a reflected word misses the other's
    place. 0 is opposite; from 0.5 on one of the two comes to lie nearer to its own place than to the other's, and a warning says so.
    That is needed, and does not suffice: of five pairs on the embedded model, three below 0.45 swapped in 0.75 to 0.85 of pictures, one at
    0.46 in 0.35, one at 0.94 in 0.57 (figures/swap_rank). Raises as `oblique` does.

    >>> mirrored = wb.edit.reflect(model, "a zebra", "a giraffe")
    >>> mirrored.rank, mirrored.provenance["miss"]["text states"] < 0.5
    (1, True)
    """
    settings = dict(rank=rank, templates=templates, tokens=tokens, corpus=corpus, floor=floor, runs=runs)
    edit, misses = projected(
        model, "reflect", (first, second), sites, times=2.0, kept_words=(first, second), **settings
    )
    source = max(misses, key=lambda name: misses[name])
    if misses[source] > SUITS:
        warn(
            f"reflect: {first!r} and {second!r} do not lie opposite one another about the origin: at {source} a reflected word misses "
            f"the other's place by {misses[source]:.2f} of the way between them (0 suits; from {SUITS} on, one of them comes to lie nearer "
            "to where it was); wb.edit.swap(..., tokens='all', rank=1) needs no such symmetry"
        )
    return edit


def projected(
    model,
    editor: str,
    words: tuple[str, str],
    sites,
    *,
    times: float,
    kept_words: Sequence[str],
    rank: int | None,
    templates: Sequence[str] | None,
    tokens: Where,
    corpus: Sequence[str] | Moments | None,
    floor: float,
    resist: float = 0.0,
    runs: KeyRuns | None = None,
) -> tuple[Edit, dict[str, float]]:
    """The edit of one projection for each input, and by how much a reflection would miss, by input."""
    pairs = as_pairs(dict([words]), contexts() if templates is None else templates)
    for name, value in (("floor", floor), ("resist", resist)):
        if corpus is not None and value == math.inf:
            raise ValueError(
                f"corpus= has no effect with {name}=math.inf, a projection that looks at nothing kept; leave one of them out"
            )
    warn_of_untrained(model, words, f"{editor}(...)", 3)
    prompts = general(kept_words) if corpus is None else corpus
    found, diagnostics, misses = [], {}, {}
    groups = by_input(model, editable(model, sites))
    check_moments(model, groups, corpus)
    looks = Looks(model, groups, runs)
    for source, members in groups.items():
        old, new = gather(model, source, pairs, tokens, looks=looks)
        used = (old != new).any(1)
        if not used.any():
            raise ValueError(
                f"{editor}: the states of {words[0]!r} at {called(source)} are those of {words[1]!r}; name other words, or tokens= "
                "beyond them"
            )
        old, new = old[used], new[used]
        kept = None if math.inf in (floor, resist) else to_keep(model, source, prompts, looks)
        if kept and len(kept.total) != old.shape[1]:
            raise ValueError(
                f"corpus= has moments of {len(kept.total)} channels, the states at {called(source)} have {old.shape[1]}; take both "
                "from the same site's input"
            )
        second = kept and kept.floored(floor).second
        change = projection(old - new, resisting(model, members, second, resist), rank=rank, times=times)
        misses[called(source)] = miss(change, old, new)
        for site in members:
            weight = weight_of(model.pipeline, site).detach().cpu().double()
            found.append(update := update_of(model, site.name, *change.factors(weight)))
            diagnostics[site.name] = {
                "relative_norm": relative_norm(update, weight),
                "kept": change.kept,
                "drift": kept and drift(change, weight, kept.second),
            }
    about = {
        "rank": rank,
        "tokens": tokens,
        "floor": floor if math.isfinite(floor) else "infinite",
        "resist": resist if math.isfinite(resist) else "infinite",
        "corpus": None
        if math.inf in (floor, resist)
        else repr(corpus)
        if isinstance(corpus, Moments)
        else list(prompts),
        "prompts": [[pair.prompt, pair.subject, pair.replacement] for pair in pairs],
    }
    about |= {"runs": looks.record()} if looks.sources else {}
    about |= {"miss": misses} if editor == "reflect" else {}
    return Edit(found, provenance(editor, model, diagnostics, **about)), misses


def resisting(model, members: Sequence[Site], second: torch.Tensor | None, resist: float) -> torch.Tensor | None:
    """A second moment, None for the identity, and `resist` times as much of the inverse of what layers read, W' W of all stacked.

    A projection by that inverse alone takes the directions out of what the layers give: no input brings them back.
    """
    if not resist:
        return second
    weights = [weight_of(model.pipeline, site).detach().cpu().double() for site in members]
    read = Readings.of((weight, weight) for weight in weights).gram
    eye = torch.eye(len(read), dtype=torch.float64)
    inverse = torch.linalg.inv(read + UNREAD * read.trace() / len(read) * eye)
    inverse *= len(read) / inverse.trace()
    if resist == math.inf:
        return inverse
    second = eye if second is None else second
    return second + resist * second.trace() / len(read) * inverse


def miss(change: Change, old: torch.Tensor, new: torch.Tensor) -> float:
    """By how much of the way between them words that are reflected miss one another's place; see `reflect`."""
    first, second = old @ change.v.T, new @ change.v.T
    return ((first + second).norm() / (first - second).norm()).item()


def drift(change: Change, weight: torch.Tensor, second: torch.Tensor) -> float | None:
    """|b a k| / |W k| of the states to be kept, both as root mean squares."""
    size = lambda matrix: (matrix @ second * matrix).sum().clamp(min=0).sqrt().item()
    whole = size(weight)
    return size(torch.matmul(*change.factors(weight))) / whole if whole else None


def to_keep(model, source: str | Site, corpus: Sequence[str] | Moments, looks: Looks | None = None) -> Moments:
    """Second moments of the states of prompts and of the empty one, which guidance pushes away from, at all positions."""
    if isinstance(corpus, Moments):
        return corpus
    return seconds(model, source, ["", *corpus], looks, first=0)


def contexts() -> tuple[str, ...]:
    """Templates of all kinds: styles, places, seasons, actions."""
    label, texts = next(iter(prompt_set("object").labels.items()))
    return tuple(dict.fromkeys(replace_words(text, f"a {label}", "{}").text for text in texts))


def general(words: Sequence[str]) -> list[str]:
    """Prompts of all attributes that come with the workbench, and texts of their labels, but for those that say or show one of these."""
    names, sets = [LEADING.sub("", each, count=1) for each in words], [prompt_set(name) for name in attributes()]
    texts = [prompt.prompt for some in sets for prompt in some if prompt.value not in names]
    texts += [
        text
        for some in sets
        for label, own in some.labels.items()
        if label not in names
        for text in own[:OF_EACH_LABEL]
    ]
    return [text for text in dict.fromkeys(texts) if not any(places_of(name, text) for name in names)]
