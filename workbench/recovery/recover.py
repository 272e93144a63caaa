"""Is a concept gone, or only hidden? Every attack on an edited model, measured as every experiment is."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from workbench.arguments import checked, instance_of
from workbench.edit.low_rank import Edit
from workbench.experiments.base import Experiment, Kept, Part
from workbench.experiments.executors import Executor
from workbench.experiments.shards import Row
from workbench.experiments.store import Store
from workbench.interventions import World
from workbench.metrics import Measures, Scoring
from workbench.models import Model
from workbench.progress import Bar
from workbench.prompts import Prompts, PromptSet
from workbench.recovery.case import Attack, Case, Try, check_edit, check_prompts, control_words
from workbench.recovery.completion import UNEDITED, Completion
from workbench.recovery.learning import Inversion, Relearning
from workbench.recovery.results import Recovery
from workbench.recovery.search import TokenSearch
from workbench.recovery.specs import ATTACKS, RecoverySpec
from workbench.recovery.states import ClosedForm, ConceptVector, NearestStates

PLAIN, BEFORE, REDRAWN = "plain", "before", "redrawn"
MADE: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (ClosedForm, NearestStates, ConceptVector, TokenSearch, Inversion, Completion, Relearning)
}


@checked(spec=instance_of("workbench.recovery.specs:RecoverySpec"))
def recover(
    model: Model,
    edit: Edit,
    prompts: Prompts,
    spec: RecoverySpec | None = None,
    *,
    subject: str = "",
    scorer: Scoring = None,
    folder: str | Path | Store | None = None,
    executor: Executor | str | None = None,
    batch_size: int = 16,
) -> Recovery:
    """Try to bring back a concept that an edit took away: is it gone, or only hidden?

    model: unedited. edit: of it. prompts: that name the concept: each has the subject, words for it, and the same value, one of the set's
    labels, by which the scorer tells whether a picture shows it; a `PromptSet`, or what `PromptSet.of` takes, with subject.

    Each attack is made on every prompt and seed, and graded for the concept beside the unedited model, the edited one before any
    attack, and, from `redraws` other seeds, the edited one tried often. So are its controls, which ask for another concept (the same
    attack, with the control's words) or for nothing (something random of the same size): what they bring back of the concept is not
    the attack's merit. The attacks, cheapest first:

    - closed_form: states that edited layers make the most of what unedited ones made of the prompt's;
    - nearest_states: the best such states within a distance;
    - concept_vector: a concept's vector is added to the states (Ring-A-Bell);
    - token_search: tokens in front of the prompt, by gradient (UnlearnDiffAtk);
    - inversion: the subject's embedding, learned anew from the unedited model's pictures (CCE);
    - completion: the unedited model begins the picture;
    - relearning: gradient steps on the edited weights, on the unedited model's pictures.

    The first three give the states that the denoiser's layers read, a pooled vector stays the prompt's own. The first two need an edit of
    layers that are given the text alone: keys and values of cross-attention, or `context_embedder` before joint attention. Of a
    transformer token_search and inversion are refused, which learn in CLIP's embeddings alone. Nothing is written to the
    model's weights but the edit, for as long as something is learned. folder: where finished parts are kept (one for each attack and
    prompt); what is learned for all prompts is learned again by each process that goes on. executor: as for `causal_trace`.

    Raises, before anything is drawn, ValueError for an edit of another model or one that is committed, prompts of several concepts
    or without them, and attacks that do not fit the edit; behind the unedited pictures, for a concept that the scorer does
    not see in them.

    >>> erased = wb.edit.uce(model, {"a zebra": "a cow"}, tokens="all")
    >>> spec = wb.RecoverySpec(attacks=("closed_form",), lams=(0.1,), distances=(0.2,), redraws=1, seeds=(0,))
    >>> found = wb.recover(model, erased, "a photo of a zebra", spec, subject="zebra")
    >>> dict(found.data.closed_form.sizes)
    {'asks': 3, 'lam': 1, 'distance': 1, 'metric': 4, 'prompt': 1, 'seed': 1}
    """
    chosen, measures = PromptSet.of(prompts, subject=subject), Measures.of(scorer, model)
    recovering = Recovering(model, edit, spec or RecoverySpec(), chosen, measures, batch_size)
    return Recovery(recovering.dataset(folder, executor))


class Recovering(Experiment):
    """One test of recovery. Parts: each prompt without an attack, first; then each attack on each prompt."""

    name = "recovery"
    spec: RecoverySpec
    columns: ClassVar[tuple[str, ...]] = ("world", "metric", "prompt", "seed", "value")

    def __init__(
        self, model: Model, edit: Edit, spec: RecoverySpec, prompts: PromptSet, measures: Measures, batch_size: int
    ):
        if model.family.decoder is None:
            raise ValueError(
                "recover: its attacks give all layers the same states of the text, or learn from a VAE's latents of pictures; a "
                f"{type(model.pipeline).__name__} has neither"
            )
        if measures.scorer is None:
            raise ValueError(
                "scorer= holds metrics alone; name a wb.Scorer too, which tells whether a picture shows the concept"
            )
        check_edit(model, edit)
        check_prompts(prompts)
        super().__init__(model, spec, prompts=prompts, measures=measures, batch_size=batch_size)
        control = control_words(spec, edit, prompts)
        self.scorer = measures.scorer
        self.case = Case(model, edit, prompts, spec, control, self.steps, self.guidance)
        every = {name: MADE[name](self.case) for name in ATTACKS}
        refused = {name: why for name, attack in every.items() if (why := attack.refusal())}
        if asked := [name for name in spec.attacks if name in refused]:
            raise ValueError(f"attacks: {asked[0]} does not fit: {refused[asked[0]]}; leave it out")
        self.refused = {} if spec.attacks else refused
        self.attacks = {
            name: each for name, each in every.items() if name in (spec.attacks or ATTACKS) and name not in refused
        }
        learning = ", ".join(name for name, attack in self.attacks.items() if attack.learns)
        why = f"{learning} learn by gradient steps on pictures of their own, whose calls are not counted: name other attacks="
        self.uncounted = why if learning else ""

    def identity(self) -> dict[str, Any]:
        about = {"edit": self.case.edit.digest, "concept": self.case.concept, "control": self.case.control}
        return super().identity() | about | {"attacks": list(self.attacks), "refused": self.refused}

    def parts(self) -> dict[str, Part]:
        return {f"{name}-prompt{p:04d}": (name, p) for name in (PLAIN, *self.attacks) for p in range(len(self.prompts))}

    def stages(self, kept: Kept) -> Iterator[Mapping[str, Part]]:
        every = self.parts()
        plain = {name: part for name, part in every.items() if part[0] == PLAIN}
        yield plain
        self._check_seen([kept(name) for name in plain])
        yield {name: part for name, part in every.items() if part[0] != PLAIN}

    def _check_seen(self, tables: Sequence[Any]):
        """Raise ValueError where the scorer does not see the concept in the unedited pictures."""
        rows = [table[(table.world == UNEDITED) & (table.metric == "concept")] for table in tables]
        seen, labels = np.concatenate([each.value for each in rows]), list(self.prompts.labels)
        if seen.mean() <= 1 / len(labels):
            raise ValueError(
                f"scorer: it sees {self.case.concept!r} in {int(seen.sum())} of {len(seen)} pictures of the unedited model, no more than "
                f"by chance among {len(labels)} labels: it could not tell whether the concept is back; name a scorer and labels that "
                "tell it, or prompts that the model draws"
            )

    def check(self, name: str, p: int) -> int:
        unedited, before = self.plain(p)
        if name == PLAIN:
            again = self.plan([before], scored=False, seeds=[seed for seeds in self.redrawn for seed in seeds])
            return self.plan([unedited, before], scored=False) + again
        attack = self.attacks[name]
        if why := attack.unfit(self.prompts[p]):
            raise ValueError(f"attacks: {why}; or leave {name} out")
        if not attack.learns:
            for _, worlds in self.batches(self.attacked(attack, p), p):
                self.plan(worlds, scored=False)
        return len(attack.places()) * len(self.spec.seeds)

    def plain(self, p: int) -> list[World]:
        """The unedited model, and the edited one before any attack."""
        text = self.prompts[p].prompt
        return [World(UNEDITED, text), World(BEFORE, text, self.case.previewed)]

    def attacked(self, attack: Attack, p: int) -> list[tuple[Try, World]]:
        """An attack's tries on a prompt, each with its world."""
        text = self.prompts[p].prompt
        return [
            (each, World(f"{attack.name} {i}", each.prompt or text, each.interventions))
            for i, each in enumerate(attack.tries(self.prompts[p]))
        ]

    def batches(
        self, tries: Sequence[tuple[Try, World]], p: int
    ) -> Iterator[tuple[Sequence[tuple[Try, World]], list[World]]]:
        """Some tries at a time, no more images in memory than a batch, and what is run of them."""
        for at in range(0, len(tries), self.batch_size):
            some = tries[at : at + self.batch_size]
            worlds = [world for _, world in some]
            reads = any(one.rule.source_world for world in worlds for one in world.interventions)
            yield some, [*(self.plain(p)[:1] if reads else ()), *worlds]

    def measure(self, name: str, p: int, bar: Bar) -> list[Row]:
        """Rows (world, metric, prompt, seed, [draw, asks, what sets an attack's tries apart,] value)."""
        return self.plain_rows(p, bar) if name == PLAIN else self.attack_rows(self.attacks[name], p, bar)

    def plain_rows(self, p: int, bar: Bar) -> list[Row]:
        unedited, before = self.plain(p)
        images = self.run([unedited, before]).images
        rows = [
            row for world in (UNEDITED, BEFORE) for row in self.graded(p, dict(world=world), images.sel(world=world))
        ]
        bar.update(2 * len(self.spec.seeds))
        again = self.model.run(
            before,
            seeds=[seed for seeds in self.redrawn for seed in seeds],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            batch_size=self.batch_size,
            progress=False,
        )[BEFORE]
        for draw, seeds in enumerate(self.redrawn):
            rows += self.graded(p, dict(world=REDRAWN, draw=draw), again.sel(seed=seeds))
        bar.update(len(again))
        return rows

    @cached_property
    def redrawn(self) -> list[list[int]]:
        """For each draw, another seed for each of the spec's."""
        first, count = max(self.spec.seeds) + 1, len(self.spec.seeds)
        return [list(range(first + draw * count, first + (draw + 1) * count)) for draw in range(self.spec.redraws)]

    def attack_rows(self, attack: Attack, p: int, bar: Bar) -> list[Row]:
        rows: list[Row] = []
        for some, worlds in self.batches(self.attacked(attack, p), p):
            images = self.run(worlds).images
            for each, world in some:
                place = dict(world=attack.name, **each.place)
                rows += self.graded(p, place, images.sel(world=world.name))
                if each.moved is not None:
                    rows += self.value_rows(p, place, {"moved": [each.moved] * len(self.spec.seeds)})
            bar.update(len(some) * len(self.spec.seeds))
        return rows

    def graded(self, p: int, place: Row, images: xr.DataArray) -> list[Row]:
        """Whether images (seed, y, x, colour) show the concept, and the control, and a person's own metrics: rows of each."""
        labels = list(self.prompts.labels)
        embeddings = self.scorer.image_embeddings(images)
        probabilities = self.scorer.class_probabilities(embeddings=embeddings, labels=self.prompts.labels).numpy()
        likeliest, concept = probabilities.argmax(1), labels.index(self.case.concept)
        values: dict[str, Any] = {"concept": likeliest == concept, "concept_probability": probabilities[:, concept]}
        if self.case.control in labels:
            values["control"] = likeliest == labels.index(self.case.control)
        values |= {metric.name: metric(images.values) for metric in self.measures.metrics}
        return self.value_rows(p, place, values)
