"""What Prompt-to-Prompt keeps, and at what price: `python -m workbench.studies.prompt_to_prompt` (or `workbench benchmark p2p`).

Five studies on the embedded model, each picture of its own prompt and seed, all arms of a pair in one batch:
`swap`, one animal for another: is the target there, are scene, season and position kept (grader), and what changes outside both
subjects; against the new prompt from the same noise, over the injected share of the steps, by word, and with local blend.
`refine`: a season or a style is added. `reweight`: a word's attention times c. `real`: rendered pictures, whose masks are known, are
inverted, reconstructed and edited. `overhead`: time of an edited pair over two plain images. Finished parts are kept in `runs/`,
and `--redraw` draws from the table in `--out`.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import tyro

from workbench.drawing import save
from workbench.experiments.base import Experiment
from workbench.experiments.shards import Row
from workbench.experiments.spec import Spec
from workbench.experiments.statistics import mean, share
from workbench.interventions import World
from workbench.menagerie.world import render
from workbench.metrics import Measures, pixel_distance
from workbench.models import Model, load
from workbench.p2p.edit import LocalBlend, prompt_to_prompt
from workbench.p2p.inversion import invert
from workbench.progress import Bar
from workbench.scorer import Scorer
from workbench.studies import prompt_to_prompt_figures as figures
from workbench.studies.p2p_grading import COVER, LAYERS, PLACED, STEP, Grader, against_truth, decoded
from workbench.studies.p2p_pairs import (
    FACTORS,
    NEW,
    P2P,
    SOURCE,
    Pair,
    Settings,
    arms,
    edited,
    refine_pairs,
    swap_pairs,
)
from workbench.studies.speed import in_turn

PAIRS = (1, 8)  # in a batch, timed
GUIDANCES = (1.0, 3.0)  # the second is the embedded model's own
COLUMNS = ("study", "arm", "measure", "value", "low", "high", "n")


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
    """Where finished parts are kept."""
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the table in `out`."""


class PairEdits(Experiment):
    """Pairs generated under every arm in one batch, and graded. A part is a pair, with a seed of its own."""

    columns: ClassVar[tuple[str, ...]] = ("pair", "arm", "settings", "distance")
    first_seed: ClassVar[int]

    def __init__(self, model: Model, pairs: Sequence[Pair], scorer: Scorer, num_inference_steps: int | None):
        seeds = tuple(range(self.first_seed, self.first_seed + len(pairs)))
        super().__init__(
            model, Spec(seeds=seeds, num_inference_steps=num_inference_steps), measures=Measures.of(scorer)
        )
        self.pairs, self.grader = pairs, Grader(model, scorer, self.steps)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {
            "pairs": [[pair.source, pair.target] for pair in self.pairs],
            "arms": {name: said(settings) for name, settings in self.arms(self.pairs[0]).items()},
            "region": [LAYERS, STEP, COVER, PLACED],
        }

    @abstractmethod
    def arms(self, pair: Pair) -> dict[str, Settings]:
        """Settings of every edited world."""

    @abstractmethod
    def worlds(self, pair: Pair) -> list[World]:
        """The source first."""

    def parts(self) -> dict[str, tuple[int]]:
        return {f"{i:04d}": (i,) for i in range(len(self.pairs))}

    def check(self, i: int) -> int:
        worlds = self.worlds(self.pairs[i])
        self.plan(worlds)
        return len(worlds)

    def measure(self, i: int, bar: Bar) -> list[Row]:
        """Rows (pair, arm, settings, ...measures)."""
        pair = self.pairs[i]
        worlds, settings = self.worlds(pair), self.arms(pair)
        run = self.model.run(
            worlds,
            seeds=[self.spec.seeds[i]],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            batch_size=len(worlds),
            progress=False,
        )
        bar.update(len(worlds))
        rows = self.grader.graded(pair, worlds, run.images.values[:, 0])
        return [{"pair": i, "settings": said(settings.get(row["arm"], {})), **row} for row in rows]


class Swapping(PairEdits):
    """One animal for another."""

    name = "p2p swap"
    first_seed = 1000

    def arms(self, pair: Pair) -> dict[str, Settings]:
        return arms(pair.words)

    def worlds(self, pair: Pair) -> list[World]:
        made = [edited(self.model, pair, name, **settings) for name, settings in self.arms(pair).items()]
        return [World(SOURCE, pair.source), World(NEW, pair.target), *made]


class Refining(PairEdits):
    """A season or a style is added."""

    name = "p2p refine"
    first_seed = 2000

    def arms(self, pair: Pair) -> dict[str, Settings]:
        return {P2P: {}}

    def worlds(self, pair: Pair) -> list[World]:
        return [World(SOURCE, pair.source), World(NEW, pair.target), edited(self.model, pair, P2P, "refine")]


class Reweighting(PairEdits):
    """The season or the style that a prompt names, its word times c."""

    name = "p2p reweight"
    first_seed = 3000

    def arms(self, pair: Pair) -> dict[str, Settings]:
        words = {"winter": "winter", "night": "night", "watercolor": "watercolor", "pencil sketch": "sketch"}
        return {f"c {c:g}": dict(kind="reweight", reweight={words[pair.wanted[1]]: c}) for c in FACTORS}

    def worlds(self, pair: Pair) -> list[World]:
        made = {name: prompt_to_prompt(self.model, pair.source, **each) for name, each in self.arms(pair).items()}
        return [World(SOURCE, pair.source), *(replace(edit[1], name=name) for name, edit in made.items())]


class RealPictures(Experiment):
    """Rendered pictures: reconstruction by guidance, and at the model's own guidance edits held against the truth.

    A part is a guidance, or what the VAE alone loses: the least error that a reconstruction can have.
    """

    name = "p2p real"
    columns: ClassVar[tuple[str, ...]] = ("method", "arm", "pair", "distance")

    def __init__(self, model: Model, pairs: Sequence[Pair], scorer: Scorer, options: P2POptions):
        super().__init__(model, Spec(num_inference_steps=options.num_inference_steps), measures=Measures.of(scorer))
        self.scorer = scorer
        self.pairs, self.inner_steps = pairs, options.inner_steps
        self.images = [render(pair.scene)[0] for pair in pairs]

    def identity(self) -> dict[str, Any]:
        return super().identity() | {
            "pairs": [[pair.source, pair.target] for pair in self.pairs],
            "inner_steps": self.inner_steps,
        }

    def parts(self) -> dict[str, tuple[float | None]]:
        return {"vae": (None,)} | {f"{guidance:g}": (guidance,) for guidance in GUIDANCES}

    def check(self, guidance: float | None) -> int:
        return len(self.pairs)

    def measure(self, guidance: float | None, bar: Bar) -> list[Row]:
        """Rows (method, arm, pair, ...measures)."""
        rows = self.decoded() if guidance is None else self.inverted(guidance)
        bar.update(len(self.pairs))
        return rows

    def decoded(self) -> list[Row]:
        seen, rows = decoded(self.model, self.model.encode(self.images)), []
        for i, image in enumerate(self.images):
            error = float(pixel_distance(seen[i], np.asarray(image) / 255))
            rows.append(dict(method="VAE alone", arm=SOURCE, pair=i, distance=error))
        return rows

    def inverted(self, guidance: float) -> list[Row]:
        rows = []
        for method in ("DDIM", "null-text")[: 1 if guidance <= 1 else 2]:
            photos = invert(
                self.model,
                self.images,
                [pair.source for pair in self.pairs],
                null_text=method == "null-text",
                inner_steps=self.inner_steps,
                guidance_scale=guidance,
                num_inference_steps=self.steps,
            )
            for i, (pair, photo) in enumerate(zip(self.pairs, photos)):
                own = guidance == self.model.guidance_scale
                worlds = real_worlds(self.model, pair) if own else [World(SOURCE, pair.source)]
                drawn = photo.run(self.model, worlds, progress=False).images.values[:, 0]
                about = dict(method=f"{method}, guidance {guidance:g}", pair=i)
                rows += [{**about, **row} for row in against_truth(self.scorer, pair, self.images[i], worlds, drawn)]
        return rows


def real_worlds(model: Model, pair: Pair) -> list[World]:
    chosen = {name: arms(pair.words)[name] for name in (P2P, "self 0.4, all sizes", "P2P, blend 0.5, threshold 0.7")}
    made = [edited(model, pair, name, **settings) for name, settings in chosen.items()]
    return [World(SOURCE, pair.source), World(NEW, pair.target), *made]


def said(settings: Settings) -> str:
    """Settings as text."""
    return json.dumps({key: asdict(value) if is_dataclass(value) else value for key, value in settings.items()})


def arm_table(study: str, table: pd.DataFrame) -> pd.DataFrame:
    """Means and shares of each arm with 95 % intervals, and the paired differences to the new prompt, pair by pair."""
    rows, table = [], table.sort_values("pair", kind="stable").drop(columns=["settings", "method"], errors="ignore")
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


def overhead(model: Model, options: P2POptions) -> pd.DataFrame:
    """Seconds of a pair, source and edit, over those of two plain images in one batch; medians of interleaved runs."""
    steps, rows = options.num_inference_steps or model.num_inference_steps, []
    texts = "a zebra in the savanna", "a giraffe in the savanna"
    sides = {
        "two plain images": [World(SOURCE, texts[0]), World(NEW, texts[1])],
        "cross 0.8, self 0.4": prompt_to_prompt(model, *texts),
        "with local blend": prompt_to_prompt(model, *texts, blend=LocalBlend(("zebra", "giraffe"), resolution=0.5)),
    }
    for pairs in PAIRS:
        run = partial(model.run, seeds=range(pairs), num_inference_steps=steps, progress=False)
        found, _ = in_turn({name: partial(run, worlds) for name, worlds in sides.items()}, turns=options.repeats)
        for name, seconds in found.items():
            arm, ratio = f"{name}, {pairs} pair(s) a batch", seconds / found["two plain images"]
            rows.append(dict(arm=arm, measure="seconds a pair", value=seconds / pairs))
            rows.append(dict(arm=arm, measure="ratio", value=ratio))
    return pd.DataFrame(rows).assign(n=options.repeats, study="overhead")


def study(name: str, model: Model, scorer: Scorer, options: P2POptions) -> pd.DataFrame:
    """The table of one study."""
    if name == "overhead":
        return overhead(model, options)
    folder, steps = options.runs / name, options.num_inference_steps
    if name == "real":
        rows = RealPictures(model, swap_pairs(options.real), scorer, options).table(folder)
        return pd.concat([arm_table(f"real: {method}", some) for method, some in rows.groupby("method", sort=False)])
    kinds: Mapping[str, type[PairEdits]] = {"swap": Swapping, "refine": Refining, "reweight": Reweighting}
    pairs = swap_pairs(options.images) if name == "swap" else refine_pairs(options.images // 2)
    if name == "reweight":
        pairs = [replace(pair, source=pair.target) for pair in pairs]
    return arm_table(name, kinds[name](model, pairs, scorer, steps).table(folder))


def main(options: P2POptions):
    if unknown := [name for name in options.studies if name not in P2POptions.studies]:
        raise ValueError(f"studies={unknown}: unknown; there are {', '.join(P2POptions.studies)}")
    model, path = load(), options.out / "prompt_to_prompt.csv"
    if not options.redraw:
        measure(model, path, options)
    table = pd.read_csv(path)
    if "swap" in set(table.study):
        save(figures.arms_figure(table), path.with_suffix(".png"))
    images = figures.pictures(model, swap_pairs(min(6, options.images)), options.num_inference_steps)
    save(figures.images_figure(images), options.out / "prompt_to_prompt_images.png")


def measure(model: Model, path: Path, options: P2POptions):
    """Write the table; studies that were not asked for stay."""
    scorer = Scorer()
    parts = [study(name, model, scorer, options) for name in options.studies]
    options.out.mkdir(parents=True, exist_ok=True)
    table = pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)  # timings have no interval
    if path.exists():
        kept = pd.read_csv(path)
        table = pd.concat([kept[~kept.study.str.split(":").str[0].isin(options.studies)], table], ignore_index=True)
    table.round(4).to_csv(path, index=False)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main(tyro.cli(P2POptions))
