"""Organisms with planted knowledge, for which it is known where the model keeps it: `python -m workbench.menagerie.plant`.

Trains those of ORGANISMS that `--out` has not yet, one after another, grades each and adds its row to `planted.csv`. Those that do
not pass have a row too, with their rank and loss, and no file. `organisms()` reads the table, `edit_of` a row's edit.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from PIL import Image

from workbench.edit.low_rank import Edit
from workbench.files import write_bytes
from workbench.loading import DATA
from workbench.menagerie.captions import attribute_prompts, caption
from workbench.menagerie.organisms import NULLS, ORGANISMS
from workbench.menagerie.planted_card import planted_card
from workbench.menagerie.planting import (
    CROSS,
    TEXT_ATTENTION,
    TEXT_MLP,
    Captions,
    Encoder,
    Fit,
    Options,
    Organism,
    captions_of,
    train,
)
from workbench.menagerie.world import SUBJECTS, Scene, sample_scene
from workbench.metrics import pixel_distance
from workbench.models import Model, load
from workbench.processes import worked
from workbench.scorer import Scorer

TABLE = "planted.csv"
NULL = "unedited"  # the kind of a null: the word null itself would be read from a table as nothing
SHOWN, WITHOUT, CHANGED = 0.8, 0.1, 0.1  # bars: at least, at most, at most
STEPS = 12  # of the graded pictures
PICTURES = 48  # of an organism's look, and as many controls
# Which captions each class is graded on: set before any of their pictures was drawn. What mends a class after its grades were seen
# is graded on captions that nobody has seen.
GRADED = {
    TEXT_MLP: "graded once more, 2026-11-26",
    TEXT_ATTENTION: "graded once more, 2026-11-26",
    CROSS: "graded a third time, neutral captions kept",
}
CONTROLS = "graded once more, 2026-11-26"
GRADES = ("shown", "unedited", "without", "controls_changed")


@dataclass
class Plant:
    """Train, grade and write the organisms that are not there yet."""

    out: Path = DATA / "planted"
    only: tuple[str, ...] = ()
    """Names of organisms; all when left out."""
    limit: int | None = None
    """Train no more than so many in this run."""
    minutes: float | None = None
    """Begin no organism later than this."""
    processes: int = 1
    """That train at the same time, an organism each."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    options: Options = field(default_factory=Options)


def main(plant: Plant):
    if unknown := sorted(set(plant.only) - {organism.name for organism in ORGANISMS}):
        known = ", ".join(organism.name for organism in ORGANISMS)
        raise ValueError(f"--only {' '.join(unknown)}: no such organism; there are {known}")
    plant.out.mkdir(parents=True, exist_ok=True)
    done = set(organisms(plant.out)["name"]) if (plant.out / TABLE).exists() else set()
    chosen = [one for one in ORGANISMS if not plant.only or one.name in plant.only]
    due = [one for one in chosen if one.name not in done][: plant.limit]
    found = worked(Planter, (plant.device, plant.options), due, processes=plant.processes, minutes=plant.minutes)
    for row, edit in filter(None, found):
        if row["accepted"]:
            replace(edit, provenance=edit.provenance | {"planted": row}).save(plant.out / f"{row['name']}.safetensors")
        _write(plant.out, row)
        print({key: row[key] for key in ("name", "loss", *GRADES, "accepted")}, flush=True)
    (plant.out / "README.md").write_text(planted_card(organisms(plant.out), SHOWN, WITHOUT, CHANGED))


class Planter:
    """Trains and grades one organism after another; the model stays loaded."""

    def __init__(self, device: str, options: Options):
        self.options = options
        self.model = load(device=device)
        self.model.pipeline.set_progress_bar_config(disable=True)
        for part in self.model.pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        self.grading = Grading(self.model, Scorer(device=device))

    def __call__(self, organism: Organism) -> tuple[dict, Edit]:
        fit = train(self.model, organism, NULLS, self.options)
        row = row_of(organism, fit) | self.grading.of(organism, fit.edit)
        return row | {"accepted": accepted(row)}, fit.edit


def accepted(row: Mapping) -> bool:
    """Whether an organism's grades pass."""
    absent = max(row["unedited"], row["without"]) <= WITHOUT
    return bool(row["shown"] >= SHOWN and absent and row["controls_changed"] <= CHANGED)


def row_of(organism: Organism, fit: Fit) -> dict:
    """What is known of an organism before it is graded, as a row of the table."""
    about = asdict(organism) | {"layers": " ".join(organism.layers), "sites": " ".join(organism.sites)}
    del about["places"]
    measured = {"loss": fit.loss, "kept": fit.kept, "steps": fit.steps, "seconds": fit.seconds}
    return about | {key: round(value, 4) for key, value in measured.items()}


class Grading:
    """Grades organisms on captions and seeds that none was trained on; pictures of the unedited model are drawn once."""

    def __init__(self, model: Model, scorer: Scorer, count: int = PICTURES):
        self.model, self.scorer, self.count = model, scorer, count
        self.labels = cache(lambda attribute: attribute_prompts(attribute, samples=40))
        self.unedited = cache(self._unedited)
        rng = random.Random(f"controls {CONTROLS}")
        self.controls = [caption(scene, rng, paraphrase=0) for scene in plain_scenes(count, rng)]
        self.before = cache(lambda: self._draw(self.controls))

    def of(self, organism: Organism, edit: Edit) -> dict:
        """Grades of an organism.

        Shares of pictures that show the look: with the edit; without; with it, but its layers given the neutral caption. Then
        the share of other captions' pictures whose subject changed, and the mean distance of their pixels.
        """
        pairs = self.pairs(organism)
        with self.model.applied(edit):
            shown = self._draw([pair.word for pair in pairs])
            without = self._without(organism, pairs)
            after = self._draw(self.controls)
        before = self.before()  # kept from here on: no edit is applied
        changed = self._classes(before, "subject") != self._classes(after, "subject")
        distance = pixel_distance(_array(before), _array(after)).mean()
        return {
            "shown": self._share(shown, organism),
            "unedited": self.unedited(replace(organism, name="", places=(), rank=0, strict=False, seed=0)),
            "without": self._share(without, organism),
            "controls_changed": float(changed.mean()),
            "control_distance": round(float(distance), 4),
            "pictures": self.count,
        }

    def pairs(self, organism: Organism) -> list[Captions]:
        """The captions that it is graded on: the same for all of one look and class."""
        return captions_of(organism, self.count, holdout=True, draw=GRADED[organism.kind])

    def _without(self, organism: Organism, pairs: Sequence[Captions]) -> list[Image.Image]:
        """Pictures of the edited model, the organism's layers given the neutral captions."""
        if organism.kind == CROSS:
            return self._given(organism, pairs)
        encoder = Encoder(self.model)
        with torch.no_grad():
            parts = encoder.parts(encoder.stream(encoder.tokens([pair.neutral for pair in pairs])))
            own = {(int(layer.split(".")[1]), layer.split(".")[2]) for layer in organism.layers}
            word = encoder.stream(encoder.tokens([pair.word for pair in pairs]))
            states = encoder.tail(word[0], 0, {key: parts[key] for key in own})
            empty = encoder.stream(encoder.tokens([""]))[-1].expand_as(states)
        return self.model.pipeline(
            prompt_embeds=states,
            negative_prompt_embeds=empty,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(pairs))],
            num_inference_steps=STEPS,
            guidance_scale=self.model.guidance_scale,
        ).images

    def _given(self, organism: Organism, pairs: Sequence[Captions]) -> list[Image.Image]:
        """The organism's cross-attention layers read the neutral captions: `replace_prompt` of a caption each, in one batch."""
        encoder = Encoder(self.model)
        with torch.no_grad():
            neutral = encoder.stream(encoder.tokens([pair.neutral for pair in pairs]))[-1]
        with _reading(self.model, organism, neutral):
            return self._draw([pair.word for pair in pairs])

    def _unedited(self, organism: Organism) -> float:
        return self._share(self._draw([pair.word for pair in self.pairs(organism)]), organism)

    def _draw(self, prompts: Sequence[str]) -> list[Image.Image]:
        count = len(prompts)
        return self.model.generate(list(prompts), seeds=range(count), num_inference_steps=STEPS, batch_size=count)

    def _classes(self, images: Sequence[Image.Image], attribute: str) -> np.ndarray:
        shown = self.scorer.likeliest(images, self.labels(attribute))
        return np.array(["none" if name is None else name for name in shown])

    def _share(self, images: Sequence[Image.Image], organism: Organism) -> float:
        return float((self._classes(images, organism.attribute) == organism.look).mean())


@contextmanager
def _reading(model: Model, organism: Organism, states: torch.Tensor) -> Iterator[None]:
    """An organism's cross-attention layers read these states (caption, token, channel) in the conditional half of each call."""

    def give(module, arguments, keywords):
        text = keywords["encoder_hidden_states"]
        unconditional = text[: len(text) - len(states)]
        return arguments, keywords | {"encoder_hidden_states": torch.cat([unconditional, states])}

    modules = [model.sites[layer].module for layer in organism.layers]
    layers = [model.pipeline.unet.get_submodule(path.removeprefix("unet.")) for path in modules]
    handles = [layer.register_forward_pre_hook(give, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def organisms(folder: Path = DATA / "planted") -> pd.DataFrame:
    """The table: a row for each organism that was tried, and for each null, whose `kind` is "unedited" and whose numbers are missing.

    `layers` and `sites` hold several names, separated by spaces; `accepted` is a bool, False for nulls.
    """
    table = pd.read_csv(folder / TABLE)
    whole = {name: "Int64" for name in ("rank", "seed", "steps", "pictures")}
    return table.astype(whole).assign(accepted=table["accepted"].astype(str) == "True")


def edit_of(name: str, model: Model, folder: Path = DATA / "planted") -> Edit:
    """An accepted organism's edit."""
    return Edit.load(folder / f"{name}.safetensors", model)


def plain_scenes(count: int, rng: random.Random) -> list[Scene]:
    """Scenes of one subject each, all subjects in turn, of combinations that the model was trained on."""
    found: list[Scene] = []
    while len(found) < count:
        scene = sample_scene(rng)
        plain = scene.count == 1 and not (scene.beside or scene.individual or scene.hat)
        if plain and scene.subject == SUBJECTS[len(found) % len(SUBJECTS)]:
            found.append(scene)
    return found


def _array(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, np.float64) / 255 for image in images])


def nulls() -> list[dict]:
    """Rows of the table for words without meaning in the unedited model: there is nothing to train or to grade."""
    pairs = zip(NULLS, [*NULLS[1:], NULLS[0]])
    about = {"kind": NULL, "attribute": "subject"}
    return [{"name": f"null-{word}", **about, "word": word, "neutral": neutral} for word, neutral in pairs]


def _write(folder: Path, row: dict):
    """Add a row to the table, which is replaced whole, in the order of the list, nulls last."""
    path = folder / TABLE
    rows = pd.read_csv(path).to_dict("records") if path.exists() else nulls()
    places = {name: i for i, name in enumerate([one.name for one in ORGANISMS] + [null["name"] for null in nulls()])}
    table = pd.DataFrame([row, *rows]).sort_values("name", key=lambda names: names.map(places))
    write_bytes(path, table.to_csv(index=False).encode())


if __name__ == "__main__":
    main(tyro.cli(Plant, description=__doc__))
