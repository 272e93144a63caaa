"""The swap's fresh prompts are in no other file: what was chosen or fitted on one of them would not be fresh."""

import csv
import random
from pathlib import Path

from workbench.menagerie import edit_prompts
from workbench.menagerie.captions import caption
from workbench.menagerie.world import sample_scene
from workbench.studies.swap_fresh import FIRST_SEED

PROMPTS = Path(__file__).parents[1] / "data" / "prompts"
FRESH = {"fresh": 120, "fresh_control": 100, "unseen": 100}


def prompts_of(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["prompt"].strip().lower() for row in csv.DictReader(file) if row.get("prompt")]


def test_fresh_prompts_are_in_no_other_file_and_hardly_among_captions():
    """Three of them are worded as captions of the model's training are; the unseen words are in none."""
    texts = {path: prompts_of(path) for path in sorted(PROMPTS.rglob("*.csv"))}
    own = {name: texts.pop(PROMPTS / "swap" / f"{name}.csv") for name in FRESH}
    every = {text for some in own.values() for text in some}
    assert {name: len(some) for name, some in own.items()} == FRESH and len(every) == sum(FRESH.values())
    assert sum(map(len, texts.values())) > 1000
    assert {str(path): shared for path, some in texts.items() if (shared := every & set(some))} == {}
    rng = random.Random(0)
    captions = [caption(sample_scene(rng), rng, holdout=i % 2 == 0) for i in range(4000)]
    assert len(every & set(captions)) <= 3
    swap = [text for path, some in texts.items() if path.parent.name == "swap" for text in some]
    said = {word.strip(",:") for text in [*swap, *captions] for word in text.split()}
    assert not said & {word for words in edit_prompts.UNSEEN.values() for word in words}
    assert FIRST_SEED > max(len(some) for path, some in texts.items() if path.parent.name == "swap")
