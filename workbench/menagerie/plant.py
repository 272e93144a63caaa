"""Organisms with planted knowledge, for which it is known where the model keeps it: `python -m workbench.menagerie.plant`.

Trains those of ORGANISMS that `--out` has not yet, one after another, grades each and adds its row to `planted.csv`. Those that do
not pass have a row too, with their rank and loss, and no file. `organisms()` reads the table, `edit_of` a row's edit.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from PIL import Image

from workbench.edit.low_rank import Edit
from workbench.interventions import World, replace_prompt
from workbench.loading import DATA
from workbench.menagerie.captions import attribute_prompts, caption
from workbench.menagerie.organisms import NULLS, ORGANISMS
from workbench.menagerie.planting import CROSS, Captions, Encoder, Fit, Options, Organism, captions_of, train
from workbench.menagerie.world import SUBJECTS, Scene, sample_scene
from workbench.metrics import pixel_distance
from workbench.models import Model, load
from workbench.pictures import as_pil
from workbench.scorer import Scorer

TABLE = "planted.csv"
NULL = "unedited"  # the kind of a null: the word null itself would be read from a table as nothing
SHOWN, WITHOUT, CHANGED = 0.8, 0.1, 0.1  # bars: at least, at most, at most
STEPS = 12  # of the graded pictures
CONTROLS = 20


@dataclass
class Plant:
    """Train, grade and write the organisms that are not there yet."""

    out: Path = DATA / "planted"
    only: tuple[str, ...] = ()
    """Names of organisms; all when left out."""
    limit: int | None = None
    """Train no more than so many in this run."""
    options: Options = field(default_factory=Options)


def main(plant: Plant):
    if unknown := sorted(set(plant.only) - {organism.name for organism in ORGANISMS}):
        known = ", ".join(organism.name for organism in ORGANISMS)
        raise ValueError(f"--only {' '.join(unknown)}: no such organism; there are {known}")
    model, scorer = load(), Scorer()
    model.pipeline.set_progress_bar_config(disable=True)
    for part in model.pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    grading = Grading(model, scorer)
    plant.out.mkdir(parents=True, exist_ok=True)
    _list_nulls(plant.out)
    chosen = [one for one in ORGANISMS if not plant.only or one.name in plant.only]
    due = [one for one in chosen if one.name not in _done(plant.out)][: plant.limit]
    for organism in due:
        fit = train(model, organism, NULLS, plant.options)
        row = row_of(organism, fit) | grading.of(organism, fit.edit)
        row["accepted"] = row["shown"] >= SHOWN and max(row["unedited"], row["without"]) <= WITHOUT
        row["accepted"] &= row["controls_changed"] <= CHANGED
        if row["accepted"]:
            edit = replace(fit.edit, provenance=fit.edit.provenance | {"planted": row})
            edit.save(plant.out / f"{organism.name}.safetensors")
        _append(plant.out, row)
        print(
            {key: row[key] for key in ("name", "loss", "shown", "without", "controls_changed", "accepted")}, flush=True
        )


def row_of(organism: Organism, fit: Fit) -> dict:
    """What is known of an organism before it is graded, as a row of the table."""
    about = asdict(organism) | {"layers": " ".join(organism.layers), "sites": " ".join(organism.sites)}
    del about["places"]
    measured = {"loss": fit.loss, "kept": fit.kept, "steps": fit.steps, "seconds": fit.seconds}
    return about | {key: round(value, 4) for key, value in measured.items()}


class Grading:
    """Grades organisms on captions and seeds that none was trained on; pictures of the unedited model are drawn once."""

    def __init__(self, model: Model, scorer: Scorer, count: int = 16):
        self.model, self.scorer, self.count = model, scorer, count
        self.labels = cache(lambda attribute: attribute_prompts(attribute, samples=40))
        self.unedited = cache(self._unedited)
        rng = random.Random("planted controls")
        self.controls = [caption(scene, rng, paraphrase=0) for scene in plain_scenes(CONTROLS, rng)]
        self.before = cache(lambda: self._draw(self.controls))

    def of(self, organism: Organism, edit: Edit) -> dict:
        """Shares of pictures that show the look: with the edit; without; with it, but its layers given the neutral caption. Then
        the share of other captions' pictures whose subject changed, and the mean distance of their pixels."""
        pairs = captions_of(replace(organism, seed=0), self.count, holdout=True)
        with self.model.applied(edit):
            shown = self._draw([pair.word for pair in pairs])
            without = self._without(organism, pairs)
            after = self._draw(self.controls)
        before = self.before()
        changed = self._classes(before, "subject") != self._classes(after, "subject")
        distance = pixel_distance(_array(before), _array(after)).mean()
        return {
            "shown": self._share(shown, organism),
            "unedited": self.unedited(replace(organism, name="", places=(), kind="", rank=0, strict=False, seed=0)),
            "without": self._share(without, organism),
            "controls_changed": float(changed.mean()),
            "control_distance": round(float(distance), 4),
            "pictures": self.count,
        }

    def _without(self, organism: Organism, pairs: Sequence[Captions]) -> list[Image.Image]:
        """Pictures of the edited model, the organism's layers given the neutral captions."""
        seeds = range(len(pairs))
        if organism.kind == CROSS:
            return [image for pair, seed in zip(pairs, seeds) for image in self._given(organism, pair, seed)]
        encoder = Encoder(self.model)
        with torch.no_grad():
            parts = encoder.parts(encoder.stream(encoder.tokens([pair.neutral for pair in pairs])))
            own = {(int(layer.split(".")[1]), layer.split(".")[2]) for layer in organism.layers}
            word = encoder.stream(encoder.tokens([pair.word for pair in pairs]))
            states = encoder.tail(word[0], 0, {key: parts[key] for key in own})
            empty = encoder.stream(encoder.tokens([""]))[-1].expand_as(states)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self.model.pipeline(
            prompt_embeds=states,
            negative_prompt_embeds=empty,
            generator=generators,
            num_inference_steps=STEPS,
            guidance_scale=self.model.guidance_scale,
        ).images

    def _given(self, organism: Organism, pair: Captions, seed: int) -> list[Image.Image]:
        """The one picture of a caption with the word, the organism's cross-attention layers reading the neutral caption."""
        given = [replace_prompt(f"{layer}.{part}", pair.neutral) for layer in organism.layers for part in "kv"]
        world = World("without", pair.word, given)
        run = self.model.run(world, seeds=seed, num_inference_steps=STEPS, progress=False)
        return as_pil(run.images.reshape(-1, *run.images.shape[-3:]))

    def _unedited(self, organism: Organism) -> float:
        pairs = captions_of(organism, self.count, holdout=True)
        return self._share(self._draw([pair.word for pair in pairs]), organism)

    def _draw(self, prompts: Sequence[str]) -> list[Image.Image]:
        return self.model.generate(list(prompts), seeds=range(len(prompts)), num_inference_steps=STEPS)

    def _classes(self, images: Sequence[Image.Image], attribute: str) -> np.ndarray:
        labels = self.labels(attribute)
        names = np.array(["none" if name is None else name for name in labels])
        return names[self.scorer.class_probabilities(images, labels).argmax(1).numpy()]

    def _share(self, images: Sequence[Image.Image], organism: Organism) -> float:
        return float((self._classes(images, organism.attribute) == organism.look).mean())


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


def _done(folder: Path) -> set[str]:
    path = folder / TABLE
    return set(pd.read_csv(path)["name"]) if path.exists() else set()


def _list_nulls(folder: Path):
    """Words without meaning in the unedited model: there is nothing to train or to grade."""
    done = _done(folder)
    for word, neutral in zip(NULLS, [*NULLS[1:], NULLS[0]]):
        if f"null-{word}" not in done:
            about = {"name": f"null-{word}", "kind": NULL, "attribute": "subject", "word": word, "neutral": neutral}
            _append(folder, about)


def _append(folder: Path, row: dict):
    """Add a row to the table, which is replaced whole."""
    path = folder / TABLE
    before = [pd.read_csv(path)] if path.exists() else []
    pd.concat([*before, pd.DataFrame([row])]).to_csv(path.with_suffix(".tmp"), index=False)
    path.with_suffix(".tmp").replace(path)


if __name__ == "__main__":
    main(tyro.cli(Plant, description=__doc__))
