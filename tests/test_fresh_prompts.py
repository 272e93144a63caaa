"""The swap's fresh prompts are in no other file: what was chosen or fitted on one of them would not be fresh."""

import csv
from pathlib import Path

import pytest

PROMPTS = Path(__file__).parents[1] / "data" / "prompts"
FRESH = {"fresh": 120, "fresh_control": 100, "unseen": 100}


def prompts_of(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["prompt"].strip().lower() for row in csv.DictReader(file) if row.get("prompt")]


@pytest.mark.parametrize("name", FRESH)
def test_fresh_prompts_are_in_no_other_file(name):
    path = PROMPTS / "swap" / f"{name}.csv"
    own = prompts_of(path)
    assert len(own) == len(set(own)) == FRESH[name]
    others = {other: prompts_of(other) for other in sorted(PROMPTS.rglob("*.csv")) if other != path}
    assert sum(map(len, others.values())) > 1000
    assert {str(other): shared for other, texts in others.items() if (shared := set(own) & set(texts))} == {}
