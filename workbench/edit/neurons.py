"""Neuron edits: the few output channels of localized layers that tell a concept from its absence, set to neutral."""

from collections.abc import Sequence

import torch

from workbench.arguments import at_least_zero, checked
from workbench.edit.closed_form import solve
from workbench.edit.editors import (
    TEMPLATES,
    Concepts,
    Where,
    as_pairs,
    as_templates,
    by_input,
    called,
    diagnose,
    editable,
    gather,
    key_runs,
    provenance,
    where,
)
from workbench.edit.looks import KeyRuns, Looks
from workbench.edit.low_rank import Edit, update_of
from workbench.edit.words import warn_of_untrained
from workbench.inputs import count as whole_count
from workbench.sites import weight_of


@checked(count=whole_count, lam=at_least_zero, templates=as_templates, tokens=where, runs=key_runs)
def neurons(
    model,
    concepts: Concepts,
    *,
    sites,
    count: int = 30,
    lam: float = 0.01,
    templates: Sequence[str] = TEMPLATES,
    tokens: Where = "subject_last",
    runs: KeyRuns | None = None,
) -> Edit:
    """Set the `count` channels with the largest Welch z between a concept and neutral words to the neutral mean.

    After the neuron edits of LocoGen (Basu et al. 2024, arXiv 2405.01008, section 6), here as a change of weights: where the
    concept's keys stand, the chosen channels of each layer give their mean over the neutral prompts, all others what they
    gave. concepts: words and the neutral words beside them ({"a watercolor": "a picture"}). Returns an `Edit` whose b has
    entries in the chosen rows only. runs: as of `from_concepts`.

    Raises ValueError when a site has fewer channels than `count`, or fewer than two keys stand against one another.

    >>> found = wb.edit.neurons(model, {"a watercolor": "a photo"}, sites="unet.mid.cross.v", count=10)
    >>> int(found.updates[0].b.abs().sum(1).count_nonzero())
    10
    """
    pairs = as_pairs(concepts, templates)
    warn_of_untrained(model, (words for pair in pairs for words in (pair.subject, pair.replacement)), "concepts=")
    found, diagnostics = [], {}
    groups = by_input(model, editable(model, sites))
    looks = Looks(model, groups, runs)
    for source, members in groups.items():
        old, new = gather(model, source, pairs, tokens, looks=looks)
        if len(old) < 2:
            raise ValueError(
                f"concepts=, templates=: {len(old)} key at {called(source)}, a variance needs two; give more templates or prompts"
            )
        solution = solve(old, lam=lam)
        for site in members:
            weight = weight_of(model.pipeline, site).detach().cpu().double()
            if not 1 <= count <= len(weight):
                raise ValueError(f"count={count}: {site.name} has {len(weight)} channels; give 1 to {len(weight)}")
            chosen = welch(old @ weight.T, new @ weight.T).abs().topk(count).indices
            residuals = torch.zeros(len(old), len(weight), dtype=torch.float64)
            residuals[:, chosen] = (new @ weight.T).mean(0)[chosen] - (old @ weight.T)[:, chosen]
            found.append(update := update_of(model, site.name, *solution.factors(residuals)))
            diagnostics[site.name] = diagnose(update, weight, solution)
    settings = {
        "count": count,
        "lam": lam,
        "tokens": tokens,
        "prompts": [[p.prompt, p.subject, p.replacement] for p in pairs],
    }
    return Edit(found, provenance("neurons", model, diagnostics, **settings))


def welch(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Welch's z of each channel, (mu_a - mu_b) / sqrt(s_a^2/n_a + s_b^2/n_b), of (key, channel); 0 where nothing varies or differs."""
    spread = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return torch.nan_to_num((a.mean(0) - b.mean(0)) / spread, nan=0.0)
