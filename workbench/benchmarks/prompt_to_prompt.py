"""What Prompt-to-Prompt keeps, and at what price: `python -m workbench.benchmarks.prompt_to_prompt` (or `workbench benchmark p2p`).

Five studies on the embedded model, each picture of its own prompt and seed, all arms of a pair in one batch:
`swap`, one animal for another: is the target there, are scene, season and position kept (grader), and what changes outside both
subjects; against the new prompt from the same noise, over the injected share of the steps, by word, and with local blend.
`refine`: a season or a style is added. `reweight`: a word's attention times c. `real`: rendered pictures, whose masks are known, are
inverted, reconstructed and edited. `overhead`: time of an edited pair over two plain images. Finished parts are kept in `runs/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from scipy.ndimage import binary_dilation
from tqdm.auto import tqdm

from workbench.benchmarks import prompt_to_prompt_figures as figures
from workbench.benchmarks.speed import interleaved
from workbench.interventions import World
from workbench.localize.attention import attention_maps
from workbench.menagerie.captions import PLACE, article, attribute_prompts
from workbench.menagerie.world import ANIMALS, SCENES, Scene, render
from workbench.metrics import pixel_distance
from workbench.models import Model, load
from workbench.p2p.edit import LocalBlend, prompt_to_prompt
from workbench.p2p.inversion import invert
from workbench.pictures import as_pil
from workbench.results import Shards, mean, share
from workbench.scorer import Scorer

SEASON = {"": None, "in winter": "winter", "in summer": "summer", "at night": "night"}
STYLE = {"a watercolor of": "watercolor", "a sketch of": "pencil sketch"}
NEW, P2P, SOURCE = "new prompt", "P2P", "source"
# Where a subject is in a finished picture: its word's map in the two layers that cover rendered subjects best (localize/looking.py),
# half noised. The brightest 1000 of 4096 pixels hold 0.945 of the true masks of 96 rendered pictures, and the brightest 600 place them
# to 1.7 pixels from left to right.
LAYERS, STEP, COVER, PLACED = "unet.up.{2.2,3.1}.cross", 12, 1000, 600
PAIRS = (1, 8)  # in a batch, timed
FACTORS = (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
GUIDANCES = (1.0, 3.0)  # the second is the embedded model's own


def arms(words: tuple[str, str]) -> dict[str, dict]:
    """Settings of every edited world of the study `swap`; P2P is the default: cross-attention 0.8, self-attention 0.4."""
    blend = lambda resolution, threshold=0.3: dict(blend=LocalBlend(words, resolution=resolution, threshold=threshold))
    return {
        P2P: {},
        **{f"cross {f:g}": dict(cross_replace_steps=f, self_replace_steps=0.0) for f in (0.2, 0.4, 0.6, 0.8, 1.0)},
        **{f"self {f:g}": dict(self_replace_steps=f) for f in (0.2, 0.8, 1.0)},
        **{f"self {f:g}, all sizes": dict(self_replace_steps=f, self_resolution=1.0) for f in (0.4, 0.8)},
        **{f"word {f:g}": dict(cross_replace_steps={"default_": 0.8, words[1]: f}) for f in (0.0, 0.2, 0.4)},
        **{f"P2P, blend {size:g}": blend(size) for size in (0.25, 0.5, 1.0)},
        **{f"P2P, blend 0.5, threshold {threshold:g}": blend(0.5, threshold) for threshold in (0.5, 0.7)},
        "self 0.4, all sizes, blend 0.5, threshold 0.7": dict(self_resolution=1.0, **blend(0.5, 0.7)),
    }


@dataclass
class P2POptions:
    studies: tuple[str, ...] = ("swap", "refine", "reweight", "real", "overhead")
    images: int = 40
    """Pairs of the study swap; half as many of refine and reweight."""
    real: int = 20
    """Rendered pictures that are inverted."""
    inner_steps: int = 10
    """Of null-text optimisation, for each step."""
    repeats: int = 7
    """Of each timing."""
    num_inference_steps: int | None = None
    """The model's own when left out."""
    runs: Path = Path("runs/p2p")
    out: Path = Path("figures")


@dataclass(frozen=True)
class Pair:
    """What is drawn and what it becomes; words: of both subjects, or the word added or weighted."""

    source: str
    target: str
    words: tuple[str, str]
    wanted: tuple[str, str]
    """Attribute that changes, and its value."""
    scene: Scene


def swap_pairs(count: int) -> list[Pair]:
    """One animal for another; every combination of animal, scene and season at most once."""
    found = []
    for i in range(count):
        a, b = ANIMALS[i % 8], ANIMALS[(i + 1 + i // 8 % 7) % 8]
        scene, season = SCENES[(i + i // 8) % 6], list(SEASON)[(i // 8 + i // 24) % 4]
        text = lambda subject, place=PLACE[scene], season=season: f"{article(subject)} {place} {season}".strip()
        found.append(
            Pair(text(a), text(b), (a, b), ("subject", b), Scene(a, scene=scene, season=SEASON[season], seed=7000 + i))
        )
    return found


def refine_pairs(count: int) -> list[Pair]:
    """A season behind, or a style before the prompt, in turn."""
    found = []
    for i in range(count):
        scene = Scene(ANIMALS[i % 8], scene=SCENES[(i + i // 8) % 6])
        text = f"{article(scene.subject)} {PLACE[scene.scene]}"
        if i % 2:
            words = list(STYLE)[i // 2 % 2]
            found.append(Pair(text, f"{words} {text}", (scene.subject, scene.subject), ("style", STYLE[words]), scene))
        else:
            words = ("in winter", "at night")[i // 2 % 2]
            found.append(
                Pair(text, f"{text} {words}", (scene.subject, scene.subject), ("season", SEASON[words]), scene)
            )
    return found


class Study:
    """Pairs generated under every arm in one batch, and graded; one finished part for each pair."""

    def __init__(self, name: str, pairs: Sequence[Pair], model: Model, scorer: Scorer, options: P2POptions):
        self.pairs, self.model, self.scorer, self.first = (
            pairs,
            model,
            scorer,
            {"swap": 1000, "refine": 2000, "reweight": 3000}[name],
        )
        self.steps = options.num_inference_steps or model.num_inference_steps
        asked = {
            "experiment": f"p2p {name}",
            "num_inference_steps": self.steps,
            "pairs": [[pair.source, pair.target] for pair in pairs],
            "arms": [repr(arms(("a", "b"))), list(FACTORS)],
            "region": [LAYERS, STEP, COVER, PLACED],
            "model": model.record,
            "scorer": scorer.record,
        }
        self.shards = Shards(asked, options.runs / name)
        self.labels = {
            what: attribute_prompts(what, samples=60) for what in ("subject", "scene", "season", "style", "position")
        }

    def table(self, worlds_of) -> pd.DataFrame:
        """Rows (arm, pair, ...measures) of all pairs; worlds_of: a pair's worlds, the source first."""
        todo = [i for i in range(len(self.pairs)) if f"{i:04d}" not in self.shards]
        for i in tqdm(todo, desc=self.shards.spec["experiment"], unit="pair", disable=None):
            worlds = worlds_of(self.pairs[i])
            run = self.model.run(
                worlds, seeds=[self.first + i], num_inference_steps=self.steps, batch_size=len(worlds), progress=False
            )
            self.shards.write(
                f"{i:04d}", [{"pair": i} | row for row in self.graded(self.pairs[i], worlds, run.images.values[:, 0])]
            )
        return self.shards.table()

    def graded(self, pair: Pair, worlds: Sequence[World], images: np.ndarray) -> list[dict]:
        """Measures of each edited picture (world, y, x, colour) against the source's, the first."""
        pictures = as_pil(images)
        odds = {what: self.scorer.class_probabilities(pictures, labels).numpy() for what, labels in self.labels.items()}
        top = {what: found.argmax(1) for what, found in odds.items()}
        what, value = pair.wanted
        at = list(self.labels[what]).index(value)
        own = {worlds[0].name: pair.words[0]}
        maps = subject_maps(
            self.model,
            {w.name: (w.prompt, own.get(w.name, pair.words[1]), p) for w, p in zip(worlds, pictures)},
            self.steps,
        )
        cover, places = [brightest(each, COVER) for each in maps], [centre(brightest(each, PLACED)) for each in maps]
        similar = self.scorer.similarity(pictures, pair.target).numpy()
        return [
            {
                "arm": world.name,
                "target": bool(top[what][i] == at),
                "target probability": float(odds[what][i, at]),
                "similarity to the target": float(similar[i]),
                "x shift": abs(places[i] - places[0]),
                "background": outside(images[i], images[0], cover[i] | cover[0]),
                "distance": float(pixel_distance(images[i], images[0])),
                **{f"{name} kept": bool(top[name][i] == top[name][0]) for name in top if name != what},
            }
            for i, world in enumerate(worlds)
        ]


def subject_maps(model: Model, shown: dict[str, tuple[str, str, Image.Image]], steps: int) -> np.ndarray:
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


def edited(model: Model, pair: Pair, name: str, kind: str = "replace", **more) -> World:
    """A pair's edited world, by the name of its arm."""
    return prompt_to_prompt(model, pair.source, {name: pair.target}, kind, **more)[1]


def swap(model: Model, scorer: Scorer, options: P2POptions) -> pd.DataFrame:
    def worlds(pair: Pair) -> list[World]:
        made = [edited(model, pair, name, **more) for name, more in arms(pair.words).items()]
        return [World(SOURCE, pair.source), World(NEW, pair.target), *made]

    return summary("swap", Study("swap", swap_pairs(options.images), model, scorer, options).table(worlds))


def refine(model: Model, scorer: Scorer, options: P2POptions) -> pd.DataFrame:
    def worlds(pair: Pair) -> list[World]:
        return [World(SOURCE, pair.source), World(NEW, pair.target), edited(model, pair, P2P, "refine")]

    return summary("refine", Study("refine", refine_pairs(options.images // 2), model, scorer, options).table(worlds))


def reweight(model: Model, scorer: Scorer, options: P2POptions) -> pd.DataFrame:
    """The season or the style that a prompt names, its word times c."""

    def worlds(pair: Pair) -> list[World]:
        word = {"winter": "winter", "night": "night", "watercolor": "watercolor", "pencil sketch": "sketch"}[
            pair.wanted[1]
        ]
        made = {f"c {c:g}": prompt_to_prompt(model, pair.source, kind="reweight", reweight={word: c}) for c in FACTORS}
        return [World(SOURCE, pair.source), *(replace(edit[1], name=name) for name, edit in made.items())]

    pairs = [replace(pair, source=pair.target) for pair in refine_pairs(options.images // 2)]
    return summary("reweight", Study("reweight", pairs, model, scorer, options).table(worlds))


def summary(study: str, table: pd.DataFrame) -> pd.DataFrame:
    """Means and shares of each arm with 95 % intervals, and the paired differences to the new prompt, pair by pair."""
    rows, table = [], table.sort_values("pair", kind="stable")
    plain = table[table.arm == NEW].set_index("pair")
    for arm, cell in table.groupby("arm", sort=False):
        for measure in (column for column in cell if column not in ("arm", "pair")):
            values = cell.set_index("pair")[measure].dropna()  # a style is not kept where it is what changes
            if not len(values):
                continue
            hits = values.map(lambda value: isinstance(value, bool | np.bool_)).all()
            rows.append((arm, measure, *(share if hits else mean)(values.to_numpy()), len(values)))
            if len(plain) and arm not in (NEW, SOURCE):
                apart = values.astype(float) - plain[measure].dropna().astype(float)
                rows.append((arm, f"{measure}, minus {NEW}", *mean(apart.to_numpy()), len(apart)))
    return pd.DataFrame(rows, columns=["arm", "measure", "value", "low", "high", "n"]).assign(study=study)


def real(model: Model, scorer: Scorer, options: P2POptions) -> pd.DataFrame:
    """Rendered pictures: reconstruction by guidance, and at the model's own guidance edits held against the truth. Part: a guidance."""
    pairs, steps = swap_pairs(options.real), options.num_inference_steps or model.num_inference_steps
    asked = {
        "experiment": "p2p real",
        "num_inference_steps": steps,
        "pairs": [[pair.source, pair.target] for pair in pairs],
        "inner_steps": options.inner_steps,
        "model": model.record,
        "scorer": scorer.record,
    }
    shards = Shards(asked, options.runs / "real")
    images = [render(pair.scene)[0] for pair in pairs]
    if "vae" not in shards:  # the least error that a reconstruction can have
        seen = decoded(model, model.encode(images))
        apart = [float(pixel_distance(seen[i], np.asarray(image) / 255)) for i, image in enumerate(images)]
        shards.write(
            "vae", [dict(method="VAE alone", arm=SOURCE, pair=i, distance=error) for i, error in enumerate(apart)]
        )
    for guidance in (g for g in GUIDANCES if f"{g:g}" not in shards):
        rows = []
        for method in ("DDIM", "null-text")[: 1 if guidance <= 1 else 2]:
            found = invert(
                model,
                images,
                [pair.source for pair in pairs],
                null_text=method == "null-text",
                inner_steps=options.inner_steps,
                guidance_scale=guidance,
                num_inference_steps=steps,
            )
            for i, (pair, photo) in enumerate(zip(pairs, found)):
                worlds = real_worlds(model, pair) if guidance == model.guidance_scale else [World(SOURCE, pair.source)]
                drawn = photo.run(model, worlds, progress=False).images.values[:, 0]
                rows += [
                    dict(method=f"{method}, guidance {guidance:g}", pair=i) | row
                    for row in against_truth(scorer, pair, images[i], worlds, drawn)
                ]
        shards.write(f"{guidance:g}", rows)
    methods = shards.table().groupby("method", sort=False)
    return pd.concat([summary(f"real: {method}", rows.drop(columns="method")) for method, rows in methods])


def real_worlds(model: Model, pair: Pair) -> list[World]:
    chosen = {name: arms(pair.words)[name] for name in (P2P, "self 0.4, all sizes", "P2P, blend 0.5, threshold 0.7")}
    return [
        World(SOURCE, pair.source),
        World(NEW, pair.target),
        *(edited(model, pair, name, **more) for name, more in chosen.items()),
    ]


def against_truth(
    scorer: Scorer, pair: Pair, image: Image.Image, worlds: Sequence[World], drawn: np.ndarray
) -> list[dict]:
    """Reconstruction error, and of edits whether the target is there and what changes outside both subjects' true masks."""
    truth, masks = np.asarray(image) / 255, [render(replace(pair.scene, subject=word))[1][word] for word in pair.words]
    if len(worlds) == 1:
        return [dict(arm=SOURCE, distance=float(pixel_distance(drawn[0], truth)))]
    labels, region = attribute_prompts("subject", samples=60), binary_dilation(masks[0] | masks[1], iterations=2)
    top = scorer.class_probabilities(as_pil(drawn), labels).numpy().argmax(1)
    return [
        dict(
            arm=world.name,
            target=list(labels)[top[w]] == pair.words[1],
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


def overhead(model: Model, options: P2POptions) -> pd.DataFrame:
    """Seconds of a pair, source and edit, over those of two plain images in one batch; medians of interleaved runs."""
    steps, rows = options.num_inference_steps or model.num_inference_steps, []
    texts = "a zebra in the savanna", "a giraffe in the savanna"
    plain = [World(SOURCE, texts[0]), World(NEW, texts[1])]
    blend = LocalBlend(("zebra", "giraffe"), resolution=0.5)
    sides = {
        "two plain images": plain,
        "cross 0.8, self 0.4": prompt_to_prompt(model, *texts),
        "with local blend": prompt_to_prompt(model, *texts, blend=blend),
    }
    for pairs in PAIRS:
        run = partial(model.run, seeds=range(pairs), num_inference_steps=steps, progress=False)
        found = interleaved({name: partial(run, worlds) for name, worlds in sides.items()}, options.repeats)
        for name, seconds in found.items():
            rows.append(dict(arm=f"{name}, {pairs} pair(s) a batch", measure="seconds a pair", value=seconds / pairs))
            rows.append(
                dict(arm=f"{name}, {pairs} pair(s) a batch", measure="ratio", value=seconds / found["two plain images"])
            )
    return pd.DataFrame(rows).assign(n=options.repeats, study="overhead")


def main(options: P2POptions):
    model, scorer = load(), Scorer()
    made = {"swap": swap, "refine": refine, "reweight": reweight, "real": real}
    if unknown := [name for name in options.studies if name not in (*made, "overhead")]:
        raise ValueError(f"studies={unknown}: unknown; there are {', '.join((*made, 'overhead'))}")
    parts = [
        overhead(model, options) if name == "overhead" else made[name](model, scorer, options)
        for name in options.studies
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    columns = ["study", "arm", "measure", "value", "low", "high", "n"]  # timings have no interval
    table = pd.concat(parts, ignore_index=True).reindex(columns=columns)
    path = options.out / "prompt_to_prompt.csv"
    if path.exists():  # studies that were not asked for stay
        kept = pd.read_csv(path)
        table = pd.concat([kept[~kept.study.str.split(":").str[0].isin(options.studies)], table], ignore_index=True)
    table.round(4).to_csv(path, index=False)
    print(table.round(3).to_string(index=False))
    if {"swap", "reweight"} <= set(table.study):
        figures.curves(table, options.out / "prompt_to_prompt.png")
    figures.pictures(
        model,
        swap_pairs(min(6, options.images)),
        options.out / "prompt_to_prompt_images.png",
        options.num_inference_steps,
    )


if __name__ == "__main__":
    main(tyro.cli(P2POptions))
