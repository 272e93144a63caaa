"""The pictures behind a cell, drawn again: results hold scores alone.

A model draws the worlds of an experiment from what its results say was asked. It must be the model they were measured on,
in the same state, and each picture must lie as far from its reference as was measured: else nothing is shown.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from PIL import Image

from workbench.engine import Run
from workbench.experiments.shards import differences
from workbench.interventions import World, set_to
from workbench.localize.causal_trace import Target, Tracing
from workbench.localize.patching import ALL, Generating
from workbench.localize.specs import LocoGenSpec, TraceSpec
from workbench.metrics import pixel_distance
from workbench.models import Model
from workbench.pictures import as_pil
from workbench.prompts import Prompt, PromptSet
from workbench.steering.direction import Direction
from workbench.steering.experiment import digest, world_of
from workbench.steering.sweep import SweepSpec, variants_of

TOLERANCE = 0.01  # of a pixel distance; other machines round otherwise, other models differ by far more
BATCH = 16

Place = Mapping[str, Any]
Captioned = list[tuple[str, Image.Image]]


class Drawing(ABC):
    """Draws what stands behind cells."""

    @abstractmethod
    def pictures(self, places: Sequence[Place], prompt: int, seed: int, draw: int) -> Iterator[Captioned]:
        """Of each cell its pictures with their captions.

        places: cells, by the values of their axes. prompt, draw: numbers, as results have them, of those that a cell is a mean over.
        Raises RuntimeError for pictures that are not those that were measured.
        """


class Redrawing(Drawing):
    """Worlds of an experiment, from its results."""

    changed: ClassVar[str]  # what results call a cell's world
    captions: ClassVar[
        Mapping[str, str]
    ]  # of that one, and of the worlds that it is compared with, the reference first

    def __init__(self, data: xr.Dataset, model: Model):
        self.data, self.model = data, model
        self.spec: dict[str, Any] = json.loads(data.attrs["spec"])
        self.prompts = PromptSet(
            self.spec["prompt_set"],
            tuple(Prompt(**each) for each in self.spec["prompts"]),
            {label: tuple(texts) for label, texts in self.spec["labels"].items()},
        )
        self.check(json.loads(json.dumps(self.identity())))

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the results must have been measured on."""

    @abstractmethod
    def references(self, prompt: int, draw: int) -> dict[str, World]:
        """What cells are compared with, by their names in results."""

    @abstractmethod
    def world(self, name: str, place: Place, prompt: int, draw: int) -> World:
        """What a cell measured of a prompt."""

    def check(self, identity: Mapping[str, Any]):
        """Raise ValueError for results of another model."""
        held = {key: self.spec.get(key) for key in identity}
        if held != identity:
            said = differences(held, dict(identity), ("measured with", "given"))
            raise ValueError(f"the results were measured on another model, or on this one in another state:{said}")

    def pictures(self, places: Sequence[Place], prompt: int, seed: int, draw: int) -> Iterator[Captioned]:
        references = self.references(prompt, draw)
        each = max(1, BATCH - len(references))
        for start in range(0, len(places), each):
            some = places[start : start + each]
            cells = [self.world(f"cell {i}", place, prompt, draw) for i, place in enumerate(some)]
            run = self.model.run(
                [*references.values(), *cells],
                seeds=[seed],
                num_inference_steps=self.spec["num_inference_steps"],
                guidance_scale=self.spec["guidance_scale"],
                batch_size=BATCH,
                progress=False,
            )
            beside: Captioned = [(self.captions[name], run.pil(world.name)[0]) for name, world in references.items()]
            first = run[next(iter(references.values())).name].values
            for world, place in zip(cells, some):
                self.compare(pixel_distance(run[world.name].values, first).item(), place, prompt, seed, draw)
                yield [*beside, (self.captions[self.changed], run.pil(world.name)[0])]

    def compare(self, distance: float, place: Place, prompt: int, seed: int, draw: int):
        """Raise RuntimeError where a picture lies elsewhere than the one that was measured."""
        at = {**place, "prompt": prompt, "seed": seed, "draw": draw, "metric": "pixel_distance"}
        scores = self.data[self.changed]
        measured = float(scores.sel({name: value for name, value in at.items() if name in scores.dims}))
        if abs(distance - measured) > TOLERANCE:
            raise RuntimeError(
                f"the picture drawn here lies {distance:.3f} from its reference, the one that was measured lay {measured:.3f}: it is "
                f"another one; the results were computed with {json.loads(self.data.attrs['versions'])}"
            )


class Rebuilt(Redrawing):
    """Of an experiment that can be built again from its results alone."""

    @property
    @abstractmethod
    def experiment(self) -> Any:
        """The experiment, which measures nothing here."""

    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in self.experiment.identity().items() if key != "scorer"}


class TraceDrawing(Rebuilt):
    changed = "restored"
    captions: ClassVar[Mapping[str, str]] = {
        "clean": "clean",
        "corrupted": "corrupted",
        "restored": "corrupted, restored here",
    }

    @cached_property
    def experiment(self) -> Tracing:
        return Tracing(self.model, TraceSpec.of_results(self.spec), prompts=self.prompts)

    @cached_property
    def targets(self) -> list[list[Target]]:
        """Of each prompt."""
        return [self.experiment.targets(p) for p in range(len(self.prompts))]

    def references(self, prompt: int, draw: int) -> dict[str, World]:
        clean, corrupted = self.experiment.worlds(prompt, draw, [])
        return {"clean": clean, "corrupted": corrupted}

    def world(self, name: str, place: Place, prompt: int, draw: int) -> World:
        (target,) = [aim for aim in self.targets[prompt] if _is_at(aim, place)]
        return replace(self.experiment.worlds(prompt, draw, [target])[-1], name=name)


def _is_at(target: Target, place: Place) -> bool:
    return (target.site, target.token, str(target.steps)) == (place["site"], place["token"], place["steps"])


class LocoGenDrawing(Rebuilt):
    changed = "patched"
    captions: ClassVar[Mapping[str, str]] = {
        "clean": "unaltered",
        "full": "target prompt at all layers",
        "patched": "target prompt here",
    }

    @cached_property
    def experiment(self) -> Generating:
        return Generating(self.model, self.prompts, LocoGenSpec.of_results(self.spec), None, BATCH)

    @cached_property
    def numbers(self) -> dict[tuple, int]:
        """Which world a cell is, by its place."""
        patches = enumerate(self.experiment.patches())
        return {
            (
                self.experiment.layers[patch.start],
                patch.width,
                patch.inputs,
                ALL if patch.head is None else str(patch.head),
                str(patch.steps),
            ): number
            for number, patch in patches
        }

    @cached_property
    def worlds(self) -> list[list[World]]:
        """Of each prompt."""
        return [self.experiment.worlds(p) for p in range(len(self.prompts))]

    def references(self, prompt: int, draw: int) -> dict[str, World]:
        clean, full = self.worlds[prompt][:2]
        return {"clean": clean, "full": full}

    def world(self, name: str, place: Place, prompt: int, draw: int) -> World:
        number = self.numbers[tuple(place[axis] for axis in ("site", "width", "inputs", "heads", "steps"))]
        return replace(self.worlds[prompt][number - len(self.numbers)], name=name)


class SweepDrawing(Redrawing):
    """Of a sweep, whose results hold no more than a digest of its direction."""

    changed = "steered"
    captions: ClassVar[Mapping[str, str]] = {"unsteered": "unsteered", "steered": "steered"}

    def __init__(self, data: xr.Dataset, model: Model, direction: Direction):
        spec = json.loads(data.attrs["spec"])
        asked = SweepSpec.of_results(spec)
        self.variants = variants_of(direction, asked, len(spec["prompts"]))
        super().__init__(data, model)

    def identity(self) -> dict[str, Any]:
        variants = {name: [each.place, digest(each.interventions)] for name, each in self.variants.items()}
        return {"model": self.model.record, "variants": variants}

    def references(self, prompt: int, draw: int) -> dict[str, World]:
        return {"unsteered": world_of("unsteered", self.prompts[prompt], [])}

    def world(self, name: str, place: Place, prompt: int, draw: int) -> World:
        variant = self.variants[f"{place['site']}-{place['strength']:g}"]
        return world_of(name, self.prompts[prompt], variant.interventions[prompt])


class LatentsDrawing(Drawing):
    """What a run's latents are after each step, as pictures. The run must have recorded the site "latents"."""

    def __init__(self, run: Run, model: Model):
        if "latents" not in run.values:
            raise ValueError(
                "the run did not record its latents, which its pictures at each step are drawn from; give model.run(..., "
                'record=["latents"]), or leave the model out'
            )
        self.run, self.model = run, model
        last = run.values["latents"].isel(world=0, seed=0, step=-1)
        distance = pixel_distance(self._decoded([last])[0], run.images[0, 0].values).item()
        if distance > TOLERANCE:
            raise ValueError(
                f"the run's last latents decode to a picture {distance:.3f} from the run's own: it is another model's; give the one that "
                "drew the run"
            )

    def _decoded(self, latents: Sequence[xr.DataArray]) -> np.ndarray:
        """Pictures of latents (channel, y, x): (picture, y, x, colour). They are put in place of what a run of one step ends with."""
        worlds = [World(str(i), "", [set_to("latents", each.values)]) for i, each in enumerate(latents)]
        sizes = self.run.images.sizes
        drawn = self.model.run(
            worlds,
            num_inference_steps=1,
            guidance_scale=1.0,
            height=sizes["y"],
            width=sizes["x"],
            batch_size=BATCH,
            progress=False,
        )
        return drawn.images.values[:, 0]

    def pictures(self, places: Sequence[Place], prompt: int, seed: int, draw: int) -> Iterator[Captioned]:
        values, first = self.run.values["latents"], self.run.worlds[0].name
        for place in places:
            at = values.sel(seed=place["seed"], step=place["step"])
            names = dict.fromkeys([first, place["world"]])
            decoded = as_pil(self._decoded([at.sel(world=name) for name in names]))
            yield [(f"{name}, after step {int(at.step)}", picture) for name, picture in zip(names, decoded)]
