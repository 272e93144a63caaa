"""What all studies of steering share: prompts run under interventions of their own, every image measured against its unsteered one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.experiment import Experiment, check_spec
from workbench.interventions import Intervention, World
from workbench.metrics import measured
from workbench.models import Model
from workbench.prompts import PromptSet, label_texts
from workbench.results import Shards
from workbench.scorer import Scorer, check_labels

Variant = tuple[
    dict, Sequence[Sequence[Intervention]]
]  # where it is found in the results; the interventions of each prompt
UNSTEERED, STEERED = "unsteered", "steered"


@dataclass(frozen=True)
class Concept:
    """What is steered towards, as images are measured for it.

    text: what `concept_similarity` compares images with. opposite: the same for `opposite_similarity`. labels: zero-shot texts of
    each value of the attribute, of which `value` is the concept's: `concept_probability`, and `concept`, whether it is the likeliest.
    """

    text: str
    opposite: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    value: str = ""

    def __post_init__(self):
        object.__setattr__(self, "labels", label_texts(self.labels, "Concept: labels"))
        if self.labels:
            check_labels(self.labels, "Concept")
        if self.labels and self.value not in self.labels:
            raise ValueError(f"Concept(value={self.value!r}): its labels are {list(self.labels)}; name one of these")

    def measured(self, scorer: Scorer, embeddings: torch.Tensor) -> dict[str, np.ndarray]:
        """The concept's metrics of images, by their embeddings (image, channel), each (image,)."""
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


@dataclass(frozen=True)
class SteerSpec:
    """How a direction is applied, and what is run."""

    unit: bool = True
    """Strengths are multiples of each site's mean activation norm, not of the direction as it is."""
    keep_norm: bool = False
    """Every activation keeps its norm."""
    tokens: str | None = None
    """Only at these tokens, for sites of the text encoder; all when left out."""
    steps: tuple[float, float] | None = None
    """Only in this window of the denoising, as shares of the run, for sites of the UNet; all when left out."""
    seeds: tuple[int, ...] = (0,)
    """Of the starting noise, shared by everything that is compared."""
    num_inference_steps: int | None = None
    """The model's own when left out."""
    guidance_scale: float | None = None
    """The model's own when left out."""

    def __post_init__(self):
        check_spec(self, "seeds")

    def applied(self) -> dict:
        """Options of `Direction.steer`."""
        return dict(unit=self.unit, keep_norm=self.keep_norm, tokens=self.tokens, steps=self.steps)


class Steered(Experiment):
    """Variants of steering on the same prompts and seeds; the first part is the unsteered images."""

    name = "steering"

    def __init__(
        self,
        model: Model,
        prompts: PromptSet,
        concept: Concept,
        spec: SteerSpec,
        scorer: Scorer | None,
        batch_size: int,
        variants: Mapping[str, Variant] | None = None,
    ):
        super().__init__(model, prompts, spec, scorer or Scorer(device=model.pipeline.device), batch_size)
        self.concept, self.variants = concept, variants or {}

    def asked(self) -> dict:
        about = super().asked() | {"concept": asdict(self.concept)}
        return about | {"variants": {name: [place, digest(some)] for name, (place, some) in self.variants.items()}}

    def parts(self) -> dict[str, tuple]:
        return {UNSTEERED: ({}, [()] * len(self.prompts))} | self.variants

    def worlds(self, some: Sequence[Sequence[Intervention]]) -> list[World]:
        return [
            World(str(p), prompt.prompt, what, subject=prompt.subject or None)
            for p, (prompt, what) in enumerate(zip(self.prompts, some))
        ]

    def check(self, place: dict, some: Sequence[Sequence[Intervention]]) -> int:
        return self.plan(self.worlds(some))

    @cached_property
    def reference(self) -> xr.DataArray:
        """The unsteered images: (world, seed, y, x, colour), a world for each prompt."""
        return self.run(self.worlds([()] * len(self.prompts))).images

    def measure(self, place: dict, some: Sequence[Sequence[Intervention]], bar) -> list[dict]:
        images = self.run(self.worlds(some)).images if any(some) else self.reference
        rows = []
        for p, prompt in enumerate(self.prompts):
            mine = images.sel(world=str(p))
            found = measured(self.scorer, mine, self.reference.sel(world=str(p)), prompt, self.prompts.labels)
            embedded = self.scorer.image_embeddings(mine)
            for metric, values in (found | self.concept.measured(self.scorer, embedded)).items():
                rows += [
                    dict(
                        world=STEERED if place else UNSTEERED,
                        **place,
                        metric=metric,
                        prompt=p,
                        seed=seed,
                        value=float(value),
                    )
                    for seed, value in zip(self.spec.seeds, values)
                ]
        bar.update(images.sizes["world"] * images.sizes["seed"])
        return rows

    def once(self, shards: Shards, part: str, place: dict, some: Sequence[Sequence[Intervention]], bar) -> pd.DataFrame:
        """The rows of one part, measured unless they are kept."""
        if part not in shards:
            self.check(place, some)
            shards.write(part, self.measure(place, some, bar))
        return shards.found[part]


def digest(some: Sequence[Sequence[Intervention]]) -> str:
    """SHA-256 of every prompt's interventions."""
    of: dict[int, bytes] = {}
    for what in some:  # mostly one and the same for all prompts
        if id(what) not in of:
            of[id(what)] = hashlib.sha256("".join(intervention.to_json() for intervention in what).encode()).digest()
    return hashlib.sha256(b"".join(of[id(what)] for what in some)).hexdigest()
