"""Erase a concept with what works best here, within a budget of what may change beside it.

edit = erase(model, "a zebra", "a cow")
edit = erase(model, "a zebra", "a cow", keep=prompts, similarity=0.95)  # as much of it as leaves these pictures alike
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from workbench.arguments import checked, instance_of, optional, warn
from workbench.edit.editors import by_input, editable, key_runs, to_preserve
from workbench.edit.looks import KeyRuns
from workbench.edit.low_rank import Edit
from workbench.edit.moments import Moments
from workbench.edit.projections import a_floor, general, oblique, to_keep
from workbench.inputs import count, number, strings, text
from workbench.models import Model
from workbench.prompts import LEADING, Prompt
from workbench.scorer import Scorer, default_scorer
from workbench.text import places_of

HALVINGS = 4  # of the strength; 1/16 is the least that is tried
LINEAR = ("relative_norm", "drift")  # diagnostics that scale as the edit does


@checked(
    concept=text,
    guide=strings,
    rank=count,
    resist=a_floor,
    keep=to_preserve,
    similarity=partial(number, above=0, most=1),
    scorer=optional(instance_of("workbench.scorer:Scorer")),
    num_inference_steps=optional(count),
    runs=key_runs,
)
def erase(
    model,
    concept: str,
    guide: str | Sequence[str],
    *,
    sites=None,
    rank: int = 4,
    resist: float = 0.0,
    keep: Sequence[str | Prompt] = (),
    similarity: float = 0.95,
    scorer: Scorer | None = None,
    num_inference_steps: int | None = None,
    batch_size: int = 16,
    runs: KeyRuns | None = None,
) -> Edit:
    """Erase a concept: `oblique` to a guide, as much of it as leaves other pictures as they are.

    guide: what the concept is drawn as; of several words the one whose edit moves the states to be kept the least. Name words of the
    same kind: where all subjects of the embedded model were given for each, the choice was often of another kind (a house for a lion), and
    0.21 of the pictures still showed the subject (figures/erase). rank: how many directions, at most; of five words with a guide of
    the same kind one direction left 0.05 of the pictures and four none, at as many changed controls (figures/swap_rank).
    resist: how much `oblique` withstands who looks for other states that show the concept, at the cost of other pictures. None is the
    default, for what it buys is bought dearly and is not the end of it: on the embedded model 1 keeps nearest states within 0.2 from
    bringing anything back, of 12 pictures, and changes 0.22 of other pictures instead of 0.03; half of the concept is learned again
    in 50 gradient steps, from an edit that does not resist 0.14 to 0.49 (figures/hidden).

    keep: prompts whose pictures must stay, and whose states are kept with those of `oblique`'s corpus. Each is drawn once, prompt i
    from seed i; where the mean cosine of its picture's embedding to the unedited one's is below `similarity`, the rank is lowered
    to 1, and then the strength, halving the way four times. What was tried and what chosen is the provenance's
    "budget", of each the rank, strength, mean and lowest similarity; a strength below 1 warns, since the concept may still be drawn.
    Without keep= nothing is drawn. scorer: whose embeddings; the embedded grader, for the embedded model alone, when left out.
    runs: as of `oblique`.

    Whether what is no longer drawn can be brought back is another question. Raises ValueError for a prompt to keep that
    has the concept, a budget that no strength meets, and what `oblique` refuses.

    >>> erased = wb.edit.erase(model, "a zebra", ["a cow", "a camel"])
    >>> erased.rank, erased.provenance["guide"] in erased.provenance["guides"]
    (4, True)
    >>> prompts = ["a lion on the beach", "a red car in the city"]
    >>> erased = wb.edit.erase(model, "a zebra", "a cow", rank=2, keep=prompts, num_inference_steps=4)
    >>> erased.provenance["budget"]["chosen"]["mean"] >= 0.95
    True
    """
    bare = LEADING.sub("", concept, count=1)
    kept = [each.prompt if isinstance(each, Prompt) else each for each in keep]
    if said := [prompt for prompt in kept if places_of(bare, prompt)]:
        raise ValueError(f"keep= holds {said[0]!r}, which has the concept {concept!r} itself; leave it out")
    scorer = (scorer or default_scorer(model)) if kept else None
    guides = [guide] if isinstance(guide, str) else list(guide)
    corpus = None if resist == math.inf else to_stay(model, sites, [*general([concept]), *kept])
    make = partial(oblique, model, concept, sites=sites, corpus=corpus, resist=resist, runs=runs)
    edits = {each: make(each, rank=rank) for each in guides}
    drifts = {each: mean_drift(edit) for each, edit in edits.items()}
    chosen = min(drifts, key=lambda each: drifts[each])
    about = {"editor": "erase", "guide": chosen, "guides": drifts, "keep": kept}
    if scorer is None:
        return Edit(edits[chosen].updates, edits[chosen].provenance | about)
    ranks = [edits[chosen], *(make(chosen, rank=each) for each in range(rank - 1, 0, -1))]
    budget = Budget(model, kept, scorer, similarity, num_inference_steps, batch_size)
    edit, chosen_of_budget, tried = budget.spent(ranks)
    about |= {"similarity": similarity, "budget": {"chosen": chosen_of_budget, "tried": tried}}
    return Edit(edit.updates, edit.provenance | about)


@dataclass(frozen=True)
class Budget:
    """How much the pictures of some prompts may change."""

    model: Model
    prompts: Sequence[str]
    scorer: Scorer
    similarity: float
    num_inference_steps: int | None
    batch_size: int

    def drawn(self) -> torch.Tensor:
        """Embeddings of the prompts' pictures as the model now is, prompt i from seed i: (image, channel)."""
        settings = dict(num_inference_steps=self.num_inference_steps, batch_size=self.batch_size)
        images = self.model.generate(self.prompts, seeds=range(len(self.prompts)), **settings)
        return self.scorer.image_embeddings(images)

    def spent(self, edits: Sequence[Edit]) -> tuple[Edit, dict, list[dict]]:
        """The first of some edits that stays within it, else as much of the last as does; what is said of it, and of all tried."""
        before, tried = self.drawn(), []

        def fits(edit: Edit, strength: float) -> bool:
            with self.model.applied(edit):
                alike = (self.drawn() * before).sum(-1)
            about = {"rank": edit.rank, "strength": strength, "mean": alike.mean().item(), "lowest": alike.min().item()}
            tried.append(about)
            return about["mean"] >= self.similarity

        for edit in edits:
            if fits(edit, 1.0):
                return edit, tried[-1], tried
        low, high, chosen = 0.0, 1.0, tried[-1]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if fits(edit * middle, middle):
                low, chosen = middle, tried[-1]
            else:
                high = middle
        if not low:
            changed = f"still changes the {len(self.prompts)} pictures of keep= to {tried[-1]['mean']:.6g}"
            raise ValueError(
                f"similarity={self.similarity:g}: at {high:g} of its strength the edit of rank {edit.rank} {changed}; give a lower "
                "similarity=, other guides, or fewer sites="
            )
        warn(
            f"erase: the pictures of keep= stay above similarity={self.similarity:g} only at {low:g} of the edit's strength, at which the "
            "concept may still be drawn: look at pictures of it; give a lower similarity=, other guides, or fewer sites= for more of it"
        )
        return weakened(edit, low), chosen, tried


def weakened(edit: Edit, strength: float) -> Edit:
    """A part of an edit, as its diagnostics say too."""
    parts = {
        site: {name: value * strength if name in LINEAR and value is not None else value for name, value in row.items()}
        for site, row in edit.provenance["diagnostics"].items()
    }
    return Edit((edit * strength).updates, edit.provenance | {"diagnostics": parts, "strength": strength})


def mean_drift(edit: Edit) -> float:
    """Of what is kept, over all weights; see `Edit`."""
    drifts = [row["drift"] for row in edit.provenance["diagnostics"].values() if row["drift"] is not None]
    return sum(drifts) / max(len(drifts), 1)


def to_stay(model, sites, texts: Sequence[str]) -> Moments | Sequence[str]:
    """What several edits keep: moments taken once where all layers are given the text states, else the texts."""
    sources = set(by_input(model, editable(model, sites)))
    return to_keep(model, "text states", texts) if sources == {"text states"} else texts
