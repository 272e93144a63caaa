"""SPEED: values alone are edited, in the null space of what the edit would otherwise change the most.

    edit = speed(model, {"a zebra": "a cow"}, preserve=["a lion", "a camel", "a penguin"])

Li et al. 2025 (arXiv 2503.07392, sections 4.1 to 4.3), by the solver of `workbench.edit.closed_form`. Words, sites, templates and
tokens are those of the closed-form editors (`workbench.edit.editors`).
"""

from collections.abc import Sequence
from functools import partial

import torch
from scipy.cluster.vq import kmeans2

from workbench import schema
from workbench.arguments import at_least_zero, checked, optional
from workbench.edit.closed_form import solve
from workbench.edit.editors import (
    TEMPLATES,
    Concepts,
    Where,
    as_pairs,
    as_templates,
    by_input,
    diagnose,
    editable,
    gather,
    preserved_prompts,
    provenance,
    states,
    to_preserve,
    where,
)
from workbench.edit.looks import is_look
from workbench.edit.low_rank import Edit, update_of
from workbench.inputs import count
from workbench.prompts import Prompt
from workbench.sites import weight_of

CENTRES = 3  # of the empty prompt's states, as the published code has it


@checked(
    preserve=to_preserve,
    sites=optional(schema.site_names),
    lam=at_least_zero,
    templates=as_templates,
    tokens=where,
    preserve_tokens=where,
    retain=at_least_zero,
    augment=partial(count, least=0),
    seed=partial(count, least=0),
    rank=count,
)
def speed(
    model,
    concepts: Concepts,
    *,
    preserve: Sequence[str | Prompt],
    sites=None,
    lam: float = 1.0,
    templates: Sequence[str] = TEMPLATES,
    tokens: Where = "subject_last",
    preserve_tokens: Where | None = None,
    retain: float = 0.01,
    augment: int = 10,
    seed: int = 0,
    rank: int | None = None,
) -> Edit:
    """SPEED: erase in the null space of what is preserved, refined for each layer (Li et al. 2025, arXiv 2503.07392).

    For a layer with weight W, first the plain edit D of these concepts, with lam and nothing preserved. Then, of the preserved keys, those
    that D moves more than their mean, |D p| > mean |D p| (influence-based filtering, equation 7); to them `augment` copies of each
    with noise along the direction that W reads the least, p + V_min V_min^T e, filtered likewise (directed augmentation, equation
    9). The update is the one in the null space of all of these, for which the start token's state and three centres of the empty
    prompt's others give exactly what they gave (invariant equality constraints, equation 12). Every layer so has a change of
    its own, whatever it is given.

    preserve: words (filled into the templates) or prompts, at `preserve_tokens`. sites: the values of all cross-attention layers when
    left out (before joint attention `context_embedder`). retain: directions of the preserved keys whose singular values exceed
    this share of the largest are not touched (the published code: those whose squares, of Stable Diffusion's states, exceed
    0.1). seed: of the noise and of the centres.

    Raises, with nothing changed, ValueError where nothing is preserved or what is preserved spans all channels, else as
    `from_concepts` does.

    >>> found = wb.edit.speed(model, {"a zebra": "a cow"}, preserve=["a lion", "a camel"], tokens="all")
    >>> len(found.sites), found.editor, found.updates[0].site
    (16, 'speed', 'unet.down.0.0.cross.v')
    """
    pairs = as_pairs(concepts, templates)
    kept = preserved_prompts(preserve, templates)
    if not kept:
        raise ValueError('preserve= is empty; give words or prompts that are to stay, such as ["a lion", "a cow"]')
    preserve_tokens = tokens if preserve_tokens is None else preserve_tokens
    members = editable(model, sites)
    if sites is None and not model.family.joint:
        members = [site for site in members if site.kind == model.family.values]
    groups = by_input(model, members)
    if looked := [site.name for source, group in groups.items() if is_look(source) for site in group]:
        raise ValueError(
            f"sites=: speed keeps the empty prompt's states exactly, and {looked[0]} is given others at each step; name "
            f"{model.family.edited}, or give wb.edit.from_concepts(..., preservation='nullspace')"
        )
    found, diagnostics = [], {}
    for source, group in groups.items():
        old, new = gather(model, source, pairs, tokens)
        every = gather(model, source, kept, preserve_tokens)[0]
        fixed = invariant(states(model, source, [""])[0], seed)
        for site in group:
            w = weight_of(model.pipeline, site).detach().cpu().double()
            generator = torch.Generator().manual_seed(seed)
            preserved = refined(w, old, new, every, lam=lam, augment=augment, generator=generator)
            given = dict(lam=lam, weight=1 / len(old), preserved=preserved, preservation="nullspace", retain=retain)
            solution = solve(old, fixed=fixed, **given)
            change = solution.change(new - old, rank) if rank else None
            factors = change.factors(w) if change else solution.factors((new - old) @ w.T)
            found.append(update := update_of(model, site.name, *factors))
            more = {"preserved keys": len(preserved)} | ({"kept": change.kept} if change else {})
            diagnostics[site.name] = diagnose(update, w, solution) | more
    settings = dict(
        lam=lam, tokens=tokens, preserve_tokens=preserve_tokens, retain=retain, augment=augment, seed=seed, rank=rank
    )
    about = {"prompts": [[p.prompt, p.subject, p.replacement] for p in pairs], "preserve": [p.prompt for p in kept]}
    return Edit(found, provenance("speed", model, diagnostics, **settings, **about))


def invariant(empty: torch.Tensor, seed: int) -> torch.Tensor:
    """What is to stay exactly, (key, in): the start token's state, and centres of the other states of the empty prompt (token, in)."""
    distinct = torch.unique(empty[1:], dim=0)
    if len(distinct) > CENTRES:
        distinct = torch.from_numpy(kmeans2(empty[1:].numpy(), CENTRES, minit="++", seed=seed)[0])
    return torch.cat([empty[:1], distinct])


def refined(
    weight: torch.Tensor,
    old: torch.Tensor,
    new: torch.Tensor,
    kept: torch.Tensor,
    *,
    lam: float,
    augment: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """The keys (key, in) that an edit of this weight (out, in) moves most, and copies of them that it reads alike."""
    b, a = solve(old, lam=lam, weight=1 / len(old)).factors((new - old) @ weight.T)
    moved = lambda keys: (keys @ a.T @ b.T).norm(dim=1)
    most = lambda keys: keys[moved(keys) >= moved(keys).mean()]  # at least, so that keys that are all alike stay
    chosen = most(kept)
    if not augment:
        return chosen
    least = torch.linalg.svd(weight, full_matrices=False)[2][-1:]
    noise = torch.randn(augment * len(chosen), 1, generator=generator, dtype=kept.dtype)
    return torch.cat([chosen, most(chosen.repeat(augment, 1) + noise @ least)])
