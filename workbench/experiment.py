"""What all experiments share: worlds of a prompt generated in batches, every image scored, finished parts kept."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict

import xarray as xr
from tqdm.auto import tqdm

from workbench.engine import prepare
from workbench.interventions import World
from workbench.metrics import Scorer, measured
from workbench.models import Model
from workbench.prompts import PromptSet
from workbench.results import Shards


class Experiment(ABC):
    """Something measured on a prompt set, part by part, so that it can be stopped and go on.

    spec: a frozen dataclass with at least `seeds`, `num_inference_steps` and `guidance_scale` (the model's own when None).
    """

    name: str

    def __init__(self, model: Model, prompts: PromptSet, spec, scorer: Scorer | None, batch_size: int):
        self.model, self.prompts, self.spec, self.scorer, self.batch_size = model, prompts, spec, scorer, batch_size
        self.steps = model.num_inference_steps if spec.num_inference_steps is None else spec.num_inference_steps
        self.guidance = model.guidance_scale if spec.guidance_scale is None else spec.guidance_scale

    def asked(self) -> dict:
        """All that the numbers depend on."""
        scorer = {"scorer": self.scorer.record} if self.scorer else {}
        return {
            "experiment": self.name,
            **asdict(self.spec),
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "model": self.model.record,
            "places": {site.name: [site.place, site.kind] for site in self.model.sites},
            **scorer,
            "prompt_set": self.prompts.name,
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "labels": {label: list(texts) for label, texts in self.prompts.labels.items()},
        }

    def parts(self) -> dict[str, tuple]:
        """Each part's name, and what `check` and `measure` are called with."""
        return {f"prompt{p:04d}": (p,) for p in range(len(self.prompts))}

    @abstractmethod
    def check(self, *part) -> int:
        """How many images a part takes; raises for what does not fit the model."""

    @abstractmethod
    def measure(self, *part_and_bar) -> list[dict]:
        """Long-form rows of a part; the bar, given last, counts the images."""

    def dataset(self, folder) -> xr.Dataset:
        """All parts, those already in the folder not computed again."""
        counts = {name: self.check(*part) for name, part in self.parts().items()}
        shards = Shards(self.asked(), folder)
        todo = {name: part for name, part in self.parts().items() if name not in shards}
        with tqdm(total=sum(counts[name] for name in todo), desc=self.name, unit="image", disable=None) as bar:
            for name, part in todo.items():
                shards.write(name, self.measure(*part, bar))
        return shards.dataset()

    def plan(self, worlds: Sequence[World]) -> int:
        """Check the interventions of worlds against the model, and count their images."""
        prepare(self.model, worlds, self.model._settings(self.steps, self.guidance))
        return len(worlds) * len(self.spec.seeds)

    def run(self, worlds: Sequence[World], **more):
        return self.model.run(
            worlds,
            seeds=self.spec.seeds,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            batch_size=self.batch_size,
            progress=False,
            **more,
        )

    def score(self, p: int, worlds: Sequence[World], places: Sequence[dict], bar) -> list[dict]:
        """Every metric of every image, one row each: a world's place, with metric, prompt, seed and value.

        The first world is the reference of the distances, and may be read by the others.
        """
        rows, reference, per = [], None, max(1, self.batch_size - 1)
        for at in range(1, len(worlds), per):  # no more images in memory than these
            some = [worlds[0], *worlds[at : at + per]]
            run = self.run(some)
            reference = run.images.sel(world=worlds[0].name) if reference is None else reference
            new = list(zip(worlds[at : at + per], places[at : at + per]))
            for world, place in [(worlds[0], places[0]), *new] if at == 1 else new:
                found = measured(
                    self.scorer, run.images.sel(world=world.name), reference, self.prompts[p], self.prompts.labels
                )
                for metric, values in found.items():
                    rows += [
                        place | dict(metric=metric, prompt=p, seed=seed, value=float(value))
                        for seed, value in zip(self.spec.seeds, values)
                    ]
                bar.update(len(self.spec.seeds))
        return rows


def check_spec(spec, *names: str):
    """Raise ValueError unless these fields are sequences of at least one; keep them as tuples."""
    for name in names:
        if isinstance(getattr(spec, name), str) or not len(getattr(spec, name)):
            raise ValueError(f"{name}={getattr(spec, name)!r}: give a tuple of at least one")
        object.__setattr__(spec, name, tuple(getattr(spec, name)))


def share(window: tuple[float, float]) -> str:
    """How a window of the denoising is called: "0-0.5"."""
    return f"{window[0]:g}-{window[1]:g}"
