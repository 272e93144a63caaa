"""What the winter benchmark is asked on: its options, prompts, concepts and directions, and what telling the model means."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import xarray as xr

from workbench.experiments.store import Folder
from workbench.interventions import replace_prompt
from workbench.menagerie.captions import HELD_OUT_SEASON, SEASON
from workbench.menagerie.world import SUBJECTS
from workbench.models import Model, load
from workbench.prompts import FOLDER, Prompt, PromptSet, labels_of, prompt_pairs, prompt_set
from workbench.scorer import Scorer
from workbench.steering.direction import Direction, direction
from workbench.steering.experiment import Concept, Interventions, Steered, SteerSpec, Variant
from workbench.steering.sweep import SweepSpec

TEXT, UNET = "text encoder", "UNet"
SITES = {TEXT: "text_encoder.*.mlp", UNET: "unet.*.cross"}
ENTRANCES = ("unet.*.cross.context",)  # by which the text reaches the denoiser
SAID = {"winter": "{} in winter", "night": "{} at night", "watercolor": "a watercolor of {}"}
OPPOSITE = {"winter": "summer", "night": "summer", "watercolor": "photo"}
HOT = re.compile(r"\b(summer|sunny|hot|sun)\b")
OUTDOORS = re.compile(r"\b(savanna|forest|beach|desert|meadow)\b")


@dataclass
class WinterOptions:
    runs: Path = Path("runs/winter")
    """Where finished parts are kept; the same command goes on where it was stopped."""
    out: Path = Path("runs/figures")
    seeds: tuple[int, ...] = (17, 18)
    """Of the report; the first is the submission's."""
    num_inference_steps: int = 12
    strengths: tuple[float, ...] = SweepSpec.strengths
    """Of the sweeps."""
    trials: int = 40
    """Of the searches."""
    prompts: int | None = None
    """Only so many, to try it out."""
    batch_size: int = 16
    redraw: bool = False
    """Measure nothing, draw from the tables in `out`."""


class WinterSetting:
    """What all parts of the benchmark share."""

    def __init__(
        self,
        options: WinterOptions,
        model: Model | None = None,
        scorer: Scorer | None = None,
        *,
        sites: Mapping[str, str] = SITES,
        entrances: Sequence[str] = ENTRANCES,
    ):
        self.options, self.model, self.scorer = options, model or load(), scorer or Scorer()
        self.sites, self.entrances = sites, tuple(entrances)
        labels = prompt_set("object").labels
        held = pd.read_csv(FOLDER / "winter.csv")[: options.prompts]
        subjects = [next(subject for subject in SUBJECTS if re.search(rf"\b{subject}\b", text)) for text in held.prompt]
        self.held_out = PromptSet("winter", tuple(Prompt(text, s, s) for text, s in zip(held.prompt, subjects)), labels)
        self.tune = PromptSet("tune", tuple(prompt_set("steer/tune"))[: options.prompts], labels)
        self.run = dict(num_inference_steps=options.num_inference_steps)
        self.tuning = SteerSpec(seeds=(0,), **self.run)
        self.reporting = SteerSpec(seeds=options.seeds, **self.run)
        self.concepts = {name: Concept(name, OPPOSITE[name], labels_of(name), name) for name in SAID}
        self.common = dict(scorer=self.scorer, batch_size=options.batch_size)

    @cached_property
    def directions(self) -> dict[tuple[str, str], Direction]:
        """By concept and place, from the pairs of captions; in the UNet winter alone, of every fourth pair: it has to generate."""
        found = {}
        for name, where in [*((name, TEXT) for name in SAID), ("winter", UNET)]:
            path = self.options.runs / f"{name} {where}.safetensors"  # kept, for another machine would round otherwise
            if not path.exists():
                self._save(self._direction(name, where), path)
            found[name, where] = Direction.load(path)
        return found

    def _direction(self, name: str, where: str) -> Direction:
        positive, negative = (side[:: 1 if where == TEXT else 4] for side in prompt_pairs(name))
        settings = dict(pool="positions") if where == TEXT else self.run
        batch_size = self.options.batch_size
        return direction(self.model, positive, negative, self.sites[where], batch_size=batch_size, **settings)

    def _save(self, made: Direction, path: Path):
        """Keep a direction whole, whatever happens and whoever else does the same."""
        with TemporaryDirectory() as folder:
            made.save(Path(folder) / path.name)
            Folder(path.parent).create(path.name, (Path(folder) / path.name).read_bytes())

    def told(self, names: Sequence[str], prompts: PromptSet) -> list[Interventions]:
        """What the model does when the prompt says it, summer left out: the ceiling, and the measure of what it may cost."""
        return [(replace_prompt(self.entrances, _told(names, prompt.prompt)),) for prompt in prompts]

    def measure(
        self, part: str, prompts: PromptSet, concept: Concept, variants: Mapping[str, Variant], spec: SteerSpec
    ) -> xr.Dataset:
        """Variants by the names of their parts, kept in a folder of that name."""
        study = Steered(self.model, prompts, concept, spec, self.scorer, self.options.batch_size, variants)
        return study.dataset(self.options.runs / part)


def keyword_class(prompt: str) -> str:
    """The source's guess of a prompt's resistance, by its words."""
    return "high" if HOT.search(prompt) else "medium" if OUTDOORS.search(prompt) else "low"


def _neutral(prompt: str, name: str) -> str:
    """A prompt without what contradicts the concept."""
    if name == "watercolor":
        return re.sub(r"^a (photo|picture) of ", "", prompt)
    for words in sorted(SEASON["summer"] + HELD_OUT_SEASON["summer"], key=len, reverse=True):
        prompt = prompt.replace(f" {words}", "")
    return prompt


def _told(names: Sequence[str], prompt: str) -> str:
    for name in names:
        prompt = SAID[name].format(_neutral(prompt, name))
    return prompt
