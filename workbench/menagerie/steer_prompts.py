"""Write the prompts of steering: `python -m workbench.menagerie.steer_prompts`.

`data/prompts/winter.csv` (ID, prompt): thirty prompts that only measure, a third of which ask for summer, a third for a place
outdoors, a third for neither, in wordings that nothing else here has. `data/prompts/steer/`: `tune.csv`, eighteen more of the
same kinds, to choose layers and strengths on; `CONCEPT.csv` (positive, negative), a hundred pairs of captions of scenes that
differ in the concept alone, to make directions from.
"""

import random
from dataclasses import replace

import pandas as pd

from workbench.menagerie.captions import HELD_OUT_SEASON, HELD_OUT_STYLE, PLACE, SEASON, STYLE, article, caption
from workbench.menagerie.world import COLOURS, SCENES, SUBJECTS, THINGS, sample_scene
from workbench.prompts import FOLDER

CONCEPTS = {  # what differs between the sides of a pair
    "winter": (dict(season="winter"), dict(season="summer")),
    "night": (dict(season="night"), dict(season="summer")),
    "watercolor": (dict(style="watercolor"), dict(style=None)),
}
KINDS = ("summer", "outdoors", "neutral")


def prompts(name: str, count: int, *, holdout: bool, taken: set[str]) -> list[dict]:
    """Prompts of all subjects and kinds in turn, none of them taken."""
    rng, found = random.Random(f"steer prompts {name}"), []
    seasons, styles = (HELD_OUT_SEASON, HELD_OUT_STYLE) if holdout else (SEASON, STYLE)
    while len(found) < count:
        i = len(found)
        kind, subject = KINDS[i % len(KINDS)], SUBJECTS[(i + i // len(SUBJECTS)) % len(SUBJECTS)]
        noun = article(f"{rng.choice(COLOURS)} {subject}" if subject in THINGS else subject)
        where = PLACE[rng.choice([scene for scene in SCENES if scene != "city"])] if kind != "neutral" else ""
        when = rng.choice(seasons["summer"]) if kind == "summer" else ""
        text = rng.choice(styles[None]).format(" ".join(filter(None, (noun, where, when))))
        if text not in taken:
            taken.add(text)
            found.append(dict(prompt=text, subject=subject, value=subject))
    return found


def pairs(concept: str, count: int = 100) -> list[dict]:
    """Captions of scenes with the concept and without; whatever else a caption chooses, both choose alike."""
    rng, found = random.Random(f"steer pairs {concept}"), []
    while len(found) < count:
        scene, wording = sample_scene(rng), rng.getrandbits(32)
        with_it, without = (caption(replace(scene, **change), random.Random(wording)) for change in CONCEPTS[concept])
        if not scene.individual:
            found.append(dict(positive=with_it, negative=without))
    return found


def main():
    taken: set[str] = set()
    (FOLDER / "steer").mkdir(parents=True, exist_ok=True)
    winter = pd.DataFrame(prompts("winter", 30, holdout=True, taken=taken))[["prompt"]]
    winter.insert(0, "ID", range(1, 31))
    winter.to_csv(FOLDER / "winter.csv", index=False)
    pd.DataFrame(prompts("tune", 18, holdout=False, taken=taken)).to_csv(FOLDER / "steer" / "tune.csv", index=False)
    for concept in CONCEPTS:
        pd.DataFrame(pairs(concept)).to_csv(FOLDER / "steer" / f"{concept}.csv", index=False)


if __name__ == "__main__":
    main()
