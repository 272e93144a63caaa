"""What is measured on Prompt-to-Prompt's pictures: attributes, where the subject stands, and what changes beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import binary_dilation

from workbench.experiments.shards import Row
from workbench.interventions import World
from workbench.localize.attention import attention_maps
from workbench.menagerie.captions import attribute_prompts
from workbench.menagerie.world import render
from workbench.metrics import pixel_distance
from workbench.models import Model
from workbench.pictures import as_pil
from workbench.scorer import Scorer
from workbench.studies.p2p_pairs import SOURCE, Pair

# Where a subject is in a finished picture: its word's map in the two layers that cover rendered subjects best (localize/looking.py),
# half noised. The brightest 1000 of 4096 pixels hold 0.945 of the true masks of 96 rendered pictures, and the brightest 600 place them
# to 1.7 pixels from left to right.
LAYERS, STEP, COVER, PLACED = "unet.up.{2.2,3.1}.cross", 12, 1000, 600


class Grader:
    """Measures of the pictures of a pair."""

    def __init__(self, model: Model, scorer: Scorer, steps: int):
        self.model, self.scorer, self.steps = model, scorer, steps

    @cached_property
    def labels(self) -> dict[str, Mapping[str, Sequence[str]]]:
        """Zero-shot texts of the values of every attribute."""
        attributes = ("subject", "scene", "season", "style", "position")
        return {attribute: attribute_prompts(attribute, samples=60) for attribute in attributes}

    def graded(self, pair: Pair, worlds: Sequence[World], images: np.ndarray) -> list[Row]:
        """Measures of each edited picture (world, y, x, colour) against the source's, the first."""
        pictures = as_pil(images)
        odds = {
            attribute: self.scorer.class_probabilities(pictures, labels).numpy()
            for attribute, labels in self.labels.items()
        }
        top = {attribute: probabilities.argmax(1) for attribute, probabilities in odds.items()}
        changed, value = pair.wanted
        at = list(self.labels[changed]).index(value)
        words = [pair.words[0], *([pair.words[1]] * (len(worlds) - 1))]  # of the source, of all others
        shown = {world.name: (world.prompt, word, each) for world, word, each in zip(worlds, words, pictures)}
        maps = subject_maps(self.model, shown, self.steps)
        cover, places = [brightest(each, COVER) for each in maps], [centre(brightest(each, PLACED)) for each in maps]
        similar = self.scorer.similarity(pictures, pair.target).numpy()
        return [
            {
                "arm": world.name,
                "target": bool(top[changed][i] == at),
                "target probability": float(odds[changed][i, at]),
                "similarity to the target": float(similar[i]),
                "x shift": abs(places[i] - places[0]),
                "background": outside(images[i], images[0], cover[i] | cover[0]),
                "distance": float(pixel_distance(images[i], images[0])),
                **{f"{name} kept": bool(top[name][i] == top[name][0]) for name in top if name != changed},
            }
            for i, world in enumerate(worlds)
        ]


def subject_maps(model: Model, shown: Mapping[str, tuple[str, str, Image.Image]], steps: int) -> np.ndarray:
    """Where a word looks in finished pictures, (picture, y, x): prompt, word and picture by name."""
    worlds, step = [World(name, prompt) for name, (prompt, _, _) in shown.items()], round(STEP / 25 * steps)
    maps = attention_maps(
        model,
        worlds,
        images={name: picture for name, (_, _, picture) in shown.items()},
        sites=LAYERS,
        num_inference_steps=steps,
        step=step,
        batch_size=len(shown),
    )
    side, found = next(iter(shown.values()))[2].height, []
    for name, (_, word, _) in shown.items():
        tokens = list(maps.tokens[name].of(word))
        layers = [
            values.sel(world=name).isel(seed=0, steps=0, token=tokens).mean(["head", "token"]).values
            for values in maps.maps.values()
        ]
        fine = [
            F.interpolate(torch.from_numpy(layer)[None, None], size=(side, side), mode="bilinear")[0, 0].numpy()
            for layer in layers
        ]
        found.append(np.mean(fine, 0))
    return np.stack(found)


def brightest(values: np.ndarray, count: int) -> np.ndarray:
    return values >= np.sort(values, axis=None)[-count]


def centre(region: np.ndarray) -> float:
    """Mean column of a region, in pixels."""
    return float(np.nonzero(region)[1].mean())


def outside(image: np.ndarray, reference: np.ndarray, region: np.ndarray) -> float:
    """Mean absolute difference of the pixels outside a region."""
    return float(np.abs(image - reference)[~region].mean())


def against_truth(
    scorer: Scorer, pair: Pair, image: Image.Image, worlds: Sequence[World], drawn: np.ndarray
) -> list[Row]:
    """Reconstruction error, and of edits whether the target is there and what changes outside both subjects' true masks."""
    truth, masks = np.asarray(image) / 255, [render(replace(pair.scene, subject=word))[1][word] for word in pair.words]
    if len(worlds) == 1:
        return [dict(arm=SOURCE, distance=float(pixel_distance(drawn[0], truth)))]
    labels, region = attribute_prompts("subject", samples=60), binary_dilation(masks[0] | masks[1], iterations=2)
    shown = scorer.likeliest(as_pil(drawn), labels)
    return [
        dict(
            arm=world.name,
            target=shown[w] == pair.words[1],
            background=outside(drawn[w], truth, region),
            distance=float(pixel_distance(drawn[w], truth)),
        )
        for w, world in enumerate(worlds)
    ]


@torch.no_grad()
def decoded(model: Model, latents: torch.Tensor) -> np.ndarray:
    """Latents as images in [0, 1]: (image, y, x, colour)."""
    pipeline = model.pipeline
    return pipeline.image_processor.postprocess(
        pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample, output_type="np"
    )
