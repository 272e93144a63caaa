"""Write the prompt sets of the edit benchmark: `python -m workbench.menagerie.edit_prompts`.

`data/prompts/swap/`: `train` and `preserve` make edits and choose their settings; all others only measure, in wordings that
neither the model's training nor `train` has; `fresh`, `fresh_control` and `unseen` in wordings and words that no other set has.
`labels.csv`: the zero-shot prompts of all subjects and homonyms;
`two_animal_labels.csv` and `style_*_labels.csv` those of their sets. Beside the folder `timed.csv`, cases in TIMED's form.
"""

import random
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pandas as pd

from workbench.loading import DATA
from workbench.menagerie.captions import (
    HELD_OUT_PARAPHRASES,
    PARAPHRASES,
    PLURAL,
    article,
    attribute_prompts,
    caption,
    fresh_caption,
)
from workbench.menagerie.world import (
    ANIMALS,
    COLOURS,
    HOMONYMS,
    INDIVIDUALS,
    SUBJECTS,
    THINGS,
    Scene,
    Thing,
    named,
    sample_scene,
)

FOLDER = DATA / "prompts" / "swap"
PAIR = ("zebra", "giraffe")
OTHERS = tuple(subject for subject in SUBJECTS if subject not in PAIR)
FACT = ("the mayor of tallport", "a lion")  # a penguin in a red hat, until it is edited
STYLE = ("watercolor", "picture")
ERASED = ("zebra", "beast")
COMPOSED = ("cow", Thing("hydrant", "red"))  # the second shall stand beside the first wherever that is named
THING_COLOURS = (("red", "blue"), ("green", "yellow"), ("purple", "orange"), ("blue", "red"))
FORMS = (
    "{} in the savanna",
    "{} on the beach",
    "a photo of {} in the city",
    "a watercolor of {}",
    "a sketch of {} in a meadow",
)
# Words that are in no caption of the menagerie, by what they are; "alike" begin as the pair's words do.
UNSEEN = {
    "animal": ("tiger", "horse", "donkey", "wolf", "crocodile"),
    "thing": ("piano", "bicycle", "lamp", "teapot", "guitar"),
    "no word": ("wug", "blicket", "florp", "zorbix", "gimble"),
    "alike": ("zebu", "zebrano", "zebroid", "giraffid", "girandole"),
}
Maker = Callable[[dict, random.Random], dict]  # a scene's setting to a row of the table


def rows(name: str, count: int, make: Maker, taken: set[str]) -> list[dict]:
    """Different prompts, none of them taken."""
    rng, found = random.Random(f"edit prompts {name}"), []
    while len(found) < count:
        scene = sample_scene(rng)
        setting = dict(scene=scene.scene, season=scene.season, style=scene.style)
        row = make(setting, rng)
        if row["prompt"] not in taken:
            taken.add(row["prompt"])
            found.append(row)
    return found


def subject(name: str, replacement: str = "", *, holdout: bool) -> Maker:
    def make(setting: dict, rng: random.Random) -> dict:
        colour = rng.choice(COLOURS) if name in THINGS else None
        text = caption(
            Scene(name, colour, position=rng.choice((None, None, "left", "right")), **setting),
            rng,
            paraphrase=0,
            holdout=holdout,
        )
        return dict(prompt=text, subject=f"{colour} {name}" if colour else name, value=name, replacement=replacement)

    return make


def fresh(name: str, replacement: str = "") -> Maker:
    """A subject or an individual in a wording that no other set has."""

    def make(setting: dict, rng: random.Random) -> dict:
        colour = rng.choice(COLOURS) if name in THINGS else None
        scene = named(name, **setting) if name in INDIVIDUALS else Scene(name, colour, **setting)
        own = INDIVIDUALS[name][0] if name in INDIVIDUALS else name
        words = f"{colour} {name}" if colour else name
        return dict(prompt=fresh_caption(scene, rng), subject=words, value=own, replacement=replacement)

    return make


def unseen(word: str) -> Maker:
    def make(setting: dict, rng: random.Random) -> dict:
        text = caption(Scene(PAIR[0], **setting), rng, paraphrase=0, holdout=rng.random() < 0.5)
        return dict(prompt=text.replace(article(PAIR[0]), article(word)), subject=word)

    return make


def paraphrase(name: str, other: str) -> Maker:
    def make(setting: dict, rng: random.Random) -> dict:
        words = rng.choice(PARAPHRASES[name] + HELD_OUT_PARAPHRASES[name])
        text = caption(Scene(name, **setting), rng, paraphrase=0, holdout=rng.random() < 0.5).replace(name, words)
        return dict(prompt=text, subject=words, value=name, replacement=other)

    return make


def plural(name: str, other: str) -> Maker:
    def make(setting: dict, rng: random.Random) -> dict:
        text = caption(Scene(name, count=2, **setting), rng, holdout=True)
        return dict(prompt=text, subject=PLURAL[name], value=name, replacement=PLURAL[other])

    return make


def two_animals(name: str, other: str) -> Maker:
    def make(setting: dict, rng: random.Random) -> dict:
        text = caption(Scene(name, beside=Thing(other), **setting), rng, paraphrase=0, holdout=True)
        return dict(prompt=text, subject=name, value="both", replacement="")

    return make


def homonym(setting: dict, rng: random.Random) -> dict:
    text = caption(Scene("zebra crossing", **setting), rng, holdout=rng.random() < 0.5)
    return dict(prompt=text, subject="zebra crossing", value="zebra crossing", replacement="")


def individual(name: str, replacement: str = "", *, holdout: bool) -> Maker:
    def make(setting: dict, rng: random.Random) -> dict:
        text = caption(named(name, **setting), rng, holdout=holdout)
        return dict(prompt=text, subject=name, value=INDIVIDUALS[name][0], replacement=replacement)

    return make


def style(words: str, replacement: str, *, holdout: bool) -> Maker:
    def make(setting: dict, rng: random.Random) -> dict:
        name = rng.choice(SUBJECTS)
        text = caption(
            Scene(name, rng.choice(COLOURS) if name in THINGS else None, **setting | {"style": words}),
            rng,
            paraphrase=0,
            holdout=holdout,
        )
        return dict(prompt=text, subject=words, value=words, replacement=replacement)

    return make


def composed(name: str, other: Thing, *, holdout: bool) -> Maker:
    def make(setting: dict, rng: random.Random) -> dict:
        text = caption(Scene(name, **setting), rng, paraphrase=0, holdout=holdout)
        return dict(
            prompt=text,
            subject=name,
            value=name,
            replacement=f"{name} next to {article(f'{other.colour} {other.subject}')}",
        )

    return make


def tables() -> dict[str, pd.DataFrame]:
    """Every set by name; none shares a prompt with another."""
    taken: set[str] = set()
    both = (PAIR, PAIR[::-1])
    made = {
        "train": [row for a, b in both for row in rows(f"train {a}", 150, subject(a, b, holdout=False), taken)],
        "preserve": [row for a in OTHERS for row in rows(f"preserve {a}", 60, subject(a, holdout=False), taken)],
        "held_out": [row for a, b in both for row in rows(f"held out {a}", 60, subject(a, b, holdout=True), taken)],
        "paraphrase": [row for a, b in both for row in rows(f"paraphrase {a}", 50, paraphrase(a, b), taken)],
        "plural": [row for a, b in both for row in rows(f"plural {a}", 50, plural(a, b), taken)],
        "two_animal": [row for a, b in both for row in rows(f"two {a}", 50, two_animals(a, b), taken)],
        "homonym": rows("homonym", 100, homonym, taken),
        "control": [row for a in OTHERS for row in rows(f"control {a}", 8, subject(a, holdout=True), taken)],
        "erase_train": rows("erase train", 150, subject(*ERASED, holdout=False), taken),
        "erase_held_out": rows("erase", 100, subject(*ERASED, holdout=True), taken),
        "style_train": rows("style train", 40, style(*STYLE, holdout=False), taken),
        "style_held_out": rows("style", 100, style(*STYLE, holdout=True), taken),
        "fact_train": rows("fact train", 150, individual(*FACT, holdout=False), taken),
        "fact_held_out": rows("fact", 100, individual(*FACT, holdout=True), taken),
    }
    others = [name for name in INDIVIDUALS if name != FACT[0]]
    made["preserve"] += [
        row for name in others for row in rows(f"preserve {name}", 40, individual(name, holdout=False), taken)
    ]
    made["control"] += [
        row for name in others for row in rows(f"control {name}", 5, individual(name, holdout=True), taken)
    ]
    made["compose_train"] = rows("compose train", 100, composed(*COMPOSED, holdout=False), taken)
    made["compose_held_out"] = rows("compose", 100, composed(*COMPOSED, holdout=True), taken)
    made["compose_control"] = [
        row
        for name in SUBJECTS
        if name not in (COMPOSED[0], COMPOSED[1].subject)
        for row in rows(f"compose control {name}", 10, subject(name, holdout=True), taken)
    ]
    made["fresh"] = [row for a, b in both for row in rows(f"fresh {a}", 60, fresh(a, b), taken)]
    made["fresh_control"] = [
        row
        for names, count in ((OTHERS, 8), (others, 5))
        for name in names
        for row in rows(f"fresh control {name}", count, fresh(name), taken)
    ]
    made["unseen"] = [
        row for words in UNSEEN.values() for word in words for row in rows(f"unseen {word}", 5, unseen(word), taken)
    ]
    return {name: pd.DataFrame(found) for name, found in made.items()}


def timed() -> pd.DataFrame:
    """Assumptions in TIMED's form (Orgad et al. 2023): things of no colour get one, animals a season that their prompt does not name."""
    things = [(thing, f"{colour} {thing}", THINGS) for thing, some in zip(THINGS, THING_COLOURS) for colour in some]
    animals = [
        (animal, f"{animal} {words}", ANIMALS) for animal, words in zip(ANIMALS, cycle(("in winter", "at night")))
    ]
    found = []
    for old, new, kind in things + animals:
        others = [each for each in (*kind, *ANIMALS) if each != old]
        row = dict(old=article(old), new=article(new))
        for i, form in enumerate(FORMS, 1):
            row |= {f"positive{i}": form.format(article(old)), f"gt{i}": said_of(form, old, new)}
        for i, other in enumerate(list(dict.fromkeys(others))[: len(FORMS)], 1):
            row |= {f"negative{i}": article(other), f"gn{i}": article(new.replace(old, other))}
        found.append(row)
    return pd.DataFrame(found)


def said_of(form: str, old: str, new: str) -> str:
    """A form filled with the new words, those behind the subject at its end: "a zebra in the city in winter"."""
    head, _, behind = new.partition(old)
    return form.format(article(f"{head}{old}")) + behind


def labels(samples: int = 60) -> pd.DataFrame:
    """Zero-shot prompts of all subjects and homonyms."""
    found = attribute_prompts("subject", samples=samples)
    rng = random.Random("edit labels")
    settings = [sample_scene(rng) for _ in range(samples)]
    for name in HOMONYMS:
        found[name] = [caption(Scene(name, scene=s.scene, season=s.season, style=s.style), rng) for s in settings]
    return as_table(found)


def two_animal_labels(samples: int = 60) -> pd.DataFrame:
    """Zero-shot prompts of both animals together, of two of one kind, and of each alone."""
    rng, found = random.Random("two animal labels"), {name: [] for name in ("both", *(f"two {a}" for a in PAIR), *PAIR)}
    for i in range(samples):
        scene = sample_scene(rng)
        setting, (a, b) = dict(scene=scene.scene, season=scene.season, style=scene.style), PAIR[:: 1 if i % 2 else -1]
        scenes = {"both": Scene(a, beside=Thing(b), **setting)}
        scenes |= {f"two {name}": Scene(name, count=2, **setting) for name in PAIR} | {
            name: Scene(name, **setting) for name in PAIR
        }
        for name, shown in scenes.items():
            found[name].append(caption(shown, random.Random(i), paraphrase=0))
    return as_table(found)


def compose_labels(samples: int = 30) -> pd.DataFrame:
    """Zero-shot prompts of every subject alone, and of every other one beside the hydrant."""
    rng, (_, beside), found = random.Random("compose labels"), COMPOSED, {}
    for name in SUBJECTS:
        for i in range(samples):
            scene = sample_scene(rng)
            setting = dict(scene=scene.scene, season=scene.season, style=scene.style)
            colour = rng.choice(COLOURS) if name in THINGS else None
            shown = {name: Scene(name, colour, **setting)}
            if name != beside.subject:
                shown[f"{name} and {beside.subject}"] = Scene(name, colour, beside=beside, **setting)
            for label, each in shown.items():
                found.setdefault(label, []).append(caption(each, random.Random(i), paraphrase=0))
    return as_table(found)


def as_table(found: dict) -> pd.DataFrame:
    return pd.DataFrame([dict(label=value or "none", text=text) for value, texts in found.items() for text in texts])


def main(folder: Path = FOLDER):
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables().items():
        table.to_csv(folder / f"{name}.csv", index=False)
    labels().to_csv(folder / "labels.csv", index=False)
    two_animal_labels().to_csv(folder / "two_animal_labels.csv", index=False)
    for part in ("train", "held_out", "control"):
        compose_labels().to_csv(folder / f"compose_{part}_labels.csv", index=False)
    for part in ("train", "held_out"):
        as_table(attribute_prompts("style", samples=60)).to_csv(folder / f"style_{part}_labels.csv", index=False)
    timed().to_csv(folder.parent / "timed.csv", index=False)


if __name__ == "__main__":
    main()
