"""What all studies of steering share: prompts run under interventions of their own, every image measured against its unsteered one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.arguments import Check, fit, line
from workbench.engine import Work
from workbench.experiments.base import Experiment
from workbench.experiments.drawing import Drawing
from workbench.experiments.shards import Row
from workbench.experiments.spec import Spec
from workbench.inputs import text
from workbench.interventions import Intervention, World
from workbench.metrics import Measures, Scoring
from workbench.models import Model
from workbench.progress import Bar
from workbench.prompts import Prompt, PromptSet, label_texts
from workbench.schema import tokens
from workbench.scorer import Scorer, check_labels
from workbench.sites import Sites
from workbench.steps import Steps, as_steps

UNSTEERED, STEERED = "unsteered", "steered"
Interventions = Sequence[Intervention]


@dataclass(frozen=True)
class Variant:
    """One way of steering all prompts.

    place: where it stands in the results, such as {"strength": 1.0}. interventions: of each prompt. own: what rows of each
    prompt say besides, where that differs between prompts.
    """

    place: Row
    interventions: Sequence[Interventions]
    own: Sequence[Row] = ()


@dataclass(frozen=True)
class Concept:
    """What is steered towards, as images are measured for it.

    text: what `concept_similarity` compares images with. opposite: the same for `opposite_similarity`. labels: zero-shot texts of
    each value of the attribute, of which `value` is the concept's: `concept_probability`, and `concept`, whether it is the likeliest.

    >>> concept = wb.Concept("a photo in winter", "a photo in summer")
    >>> labels = {"winter": "a photo in winter", "summer": "a photo in summer"}
    >>> wb.Concept("a photo in winter", labels=labels, value="winter").value
    'winter'
    """

    text: str
    opposite: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    value: str = ""

    def __post_init__(self):
        fit(self, text=text, opposite=line, value=line)
        object.__setattr__(self, "labels", label_texts(self.labels, "Concept: labels"))
        if self.labels:
            check_labels(self.labels, "Concept")
        if self.labels and self.value not in self.labels:
            raise ValueError(f"Concept(value={self.value!r}): its labels are {list(self.labels)}; name one of these")

    @property
    def metrics(self) -> list[str]:
        """What is measured of images for it, by name."""
        opposite = ["opposite_similarity"] if self.opposite else []
        return ["concept_similarity", *opposite, *(["concept_probability", "concept"] if self.labels else [])]

    def measured(self, scorer: Scorer, embeddings: torch.Tensor) -> dict[str, np.ndarray]:
        """The concept's metrics of images, by their embeddings (image, channel), each (image,).

        >>> scorer = wb.Scorer()
        >>> embeddings = scorer.image_embeddings(run["zebra"])
        >>> found = wb.Concept("a photo in winter", "a photo in summer").measured(scorer, embeddings)
        >>> {name: values.shape for name, values in found.items()}
        {'concept_similarity': (2,), 'opposite_similarity': (2,)}
        """
        found = {"concept_similarity": scorer.similarity(embeddings=embeddings, texts=self.text).numpy()}
        if self.opposite:
            found["opposite_similarity"] = scorer.similarity(embeddings=embeddings, texts=self.opposite).numpy()
        if self.labels:
            probabilities = scorer.class_probabilities(embeddings=embeddings, labels=self.labels).numpy()
            at = list(self.labels).index(self.value)
            found |= {
                "concept_probability": probabilities[:, at],
                "concept": (probabilities.argmax(1) == at).astype(float),
            }
        return found


@dataclass(frozen=True, kw_only=True)
class SteerSpec(Spec):
    """How a direction is applied, and what is run.

    >>> spec = wb.SteerSpec(keep_norm=True, steps=wb.window(0.0, 0.5), seeds=(0, 1))
    >>> spec.steps
    Window(start=0.0, stop=0.5)
    """

    unit: bool = True
    """Strengths are multiples of each site's mean activation norm, not of the direction as it is."""
    keep_norm: bool = False
    """Every activation keeps its norm."""
    tokens: str | int | Sequence[int] | None = None
    """Only at these tokens, for sites of the text encoder; all when left out."""
    steps: Steps = None
    """Only at these steps of the denoising, or in a window of it such as `wb.window(0.0, 0.5)`, for sites of the UNet; all when left
    out."""
    seeds: tuple[int, ...] = (0,)
    """Of the starting noise, shared by everything that is compared."""

    def _checks(self) -> dict[str, Check]:
        return dict(tokens=tokens, steps=as_steps)

    def applied(self) -> dict[str, Any]:
        """Options of `Direction.steer`.

        >>> wb.SteerSpec(unit=True, tokens="subject").applied()
        {'unit': True, 'keep_norm': False, 'tokens': 'subject', 'steps': None}
        """
        return dict(unit=self.unit, keep_norm=self.keep_norm, tokens=self.tokens, steps=self.steps)


class Steering(Experiment):
    """Variants of steering on the same prompts and seeds, measured for a concept.

    variants: by their names. steered_sites: which the column `site` names, where there is one.
    """

    spec: SteerSpec

    def __init__(
        self,
        model: Model,
        prompts: PromptSet,
        concept: Concept,
        spec: SteerSpec,
        scorer: Scoring,
        batch_size: int,
        variants: Mapping[str, Variant] | None = None,
        steered_sites: Sequence[str] = (),
    ):
        measures = Measures.of(scorer, model)
        if measures.scorer is None:
            raise ValueError("scorer= holds metrics alone; name a wb.Scorer too, which tells the concept in the images")
        super().__init__(model, spec, prompts=prompts, measures=measures, batch_size=batch_size)
        self.scorer = measures.scorer
        self.concept, self.variants, self.steered_sites = concept, variants or {}, steered_sites

    def metric_names(self, prompts: PromptSet | None = None) -> list[str]:
        return [*super().metric_names(prompts), *self.concept.metrics]

    def require(self, *fields: str):
        """Raise KeyError, before anything is drawn, where these fields of the spec name metrics that will not be measured."""
        for name in fields:
            if (metric := getattr(self.spec, name)) not in (names := self.metric_names()):
                raise KeyError(f"{name}={metric!r} is not measured here; there are {', '.join(names)}")

    def identity(self) -> dict[str, Any]:
        variants = {name: [each.place, digest(each.interventions)] for name, each in self.variants.items()}
        return super().identity() | {"concept": asdict(self.concept), "variants": variants}

    def sites(self) -> Sites:
        return self.model.sites(*self.steered_sites)

    def metric_rows(self, p: int, place: Row, images: xr.DataArray, reference: xr.DataArray) -> list[Row]:
        by_metric = self.concept.measured(self.scorer, self.scorer.image_embeddings(images))
        concept = self.value_rows(p, place, by_metric, images.seed.values.tolist())
        return super().metric_rows(p, place, images, reference) + concept


class SteeredPrompts(Steering):
    """A part is a prompt, under every variant."""

    name = "steering of prompts"
    raced = (STEERED, UNSTEERED)

    def drawing(self, p: int) -> Drawing:
        """Rows (world, metric, prompt, seed, value), and where the variant stands."""
        prompt, worlds, places = self.prompts[p], [world_of(UNSTEERED, self.prompts[p], ())], [{"world": UNSTEERED}]
        for name, variant in self.variants.items():
            worlds.append(world_of(name, prompt, variant.interventions[p]))
            places.append({"world": STEERED, **variant.place})
        return Drawing(p, worlds, places)


class Steered(Steering):
    """A part is a variant, on all prompts; the first is the unsteered images."""

    name = "steering"
    uncounted = ""

    def by_units(self) -> SteeredPrompts:
        given = (self.model, self.prompts, self.concept, self.spec, self.measures, self.batch_size)
        return SteeredPrompts(*given, self.variants, self.steered_sites)

    @property
    def plain(self) -> Variant:
        """Nothing is done to any prompt."""
        return Variant({}, [()] * len(self.prompts))

    def parts(self) -> dict[str, tuple[Variant]]:
        return {UNSTEERED: (self.plain,)} | {name: (variant,) for name, variant in self.variants.items()}

    def worlds(self, variant: Variant) -> list[World]:
        """One for each prompt, called by its number."""
        return [
            world_of(str(p), prompt, interventions)
            for p, (prompt, interventions) in enumerate(zip(self.prompts, variant.interventions, strict=True))
        ]

    def check(self, variant: Variant) -> int:
        return self.plan(self.worlds(variant), scored=False)

    def beforehand(self, left: Mapping[str, Any], *, trying: bool) -> Work:
        work = Work()
        if UNSTEERED not in left:  # every process draws its own to compare with
            self.count({UNSTEERED: (self.plain,)}, work)
        return work

    @cached_property
    def reference(self) -> xr.DataArray:
        """The unsteered images: (world, seed, y, x, colour), a world for each prompt."""
        return self.run(self.worlds(self.plain)).images

    def measure(self, variant: Variant, bar: Bar) -> list[Row]:
        """Rows (world, metric, prompt, seed, value), and where the variant stands."""
        images = self.run(self.worlds(variant)).images if any(variant.interventions) else self.reference
        rows = []
        for p in range(len(self.prompts)):
            place = {"world": STEERED if variant.place else UNSTEERED, **variant.place}
            if variant.own:
                place |= variant.own[p]
            mine = images.sel(world=str(p))
            rows += self.metric_rows(p, place, mine, self.reference.sel(world=str(p)))
        bar.update(images.sizes["world"] * images.sizes["seed"])
        return rows


def world_of(name: str, prompt: Prompt, interventions: Interventions) -> World:
    """What is run of a prompt under interventions."""
    return World(name, prompt.prompt, interventions, subject=prompt.subject or None)


def image_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds: one row for each prompt, a column for each metric."""
    return rows.groupby(["prompt", "metric"])["value"].mean().unstack()


def digest(interventions: Sequence[Interventions]) -> str:
    """SHA-256 of every prompt's interventions."""
    known: dict[int, bytes] = {}
    for own in interventions:  # mostly one and the same for all prompts
        if id(own) not in known:
            known[id(own)] = hashlib.sha256("".join(each.to_json() for each in own).encode()).digest()
    return hashlib.sha256(b"".join(known[id(own)] for own in interventions)).hexdigest()
