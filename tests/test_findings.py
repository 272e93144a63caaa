"""Each study's README says what its tables say, and shows what lies beside it."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

FIGURES = Path(__file__).parents[1] / "figures"
STUDIES = sorted(path.parent for path in FIGURES.glob("*/README.md"))
NUMBER = r"(-?\d+\.\d+)"
INTERVAL = re.compile(rf"{NUMBER} \({NUMBER} to {NUMBER}\)")
ROUNDING = 1e-4  # of the tables themselves, which keep four digits

# Printed by the study's command, and in no table.
PRINTED = {
    "prompt_to_prompt": {"0.05 (0.00 to 0.13)", "0.03 (0.00 to 0.08)"},
    "winter": {"0.83 (0.67 to 0.95)", "0.80 (0.63 to 0.92)"},  # at last what steering one half gave
}


def estimates(table: Path) -> Iterator[tuple[float, float, float]]:
    """Value and ends of every interval in a table: columns x, x_low and x_high, or any with low and high."""
    with table.open() as file:
        for row in csv.DictReader(file):
            for column in row:
                for low, high in ((f"{column}_low", f"{column}_high"), ("low", "high")):
                    try:
                        yield float(row[column]), float(row[low]), float(row[high])
                    except (KeyError, ValueError):  # a text, or an empty cell
                        continue


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_every_interval_stands_in_a_table_beside_it(study):
    tables = sorted(study.glob("*.csv"))
    known = [estimate for table in tables for estimate in estimates(table)]
    texts = "".join(table.read_text() for table in tables)
    readme = (study / "README.md").read_text()
    unknown = set()
    for found in INTERVAL.finditer(readme):
        within = 0.5 * 10.0 ** -len(found[1].split(".")[1]) + ROUNDING
        said = [float(found[i]) for i in (1, 2, 3)]
        if found[0] not in texts and not any(all(abs(a - b) <= within for a, b in zip(said, each)) for each in known):
            unknown.add(found[0])
    assert unknown == PRINTED.get(study.name, set())


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_study_says_what_it_must_and_shows_what_it_has(study):
    readme = (study / "README.md").read_text()
    for part in ("Question", "Command", "Answer", "What would show it wrong"):
        assert f"**{part}.**" in readme
    assert not [path.name for path in study.iterdir() if path.name not in readme and path.name != "README.md"]
    assert f"({study.name}/README.md)" in (FIGURES / "README.md").read_text()


def test_every_figure_belongs_to_a_study():
    assert {path for path in FIGURES.iterdir() if path.is_dir()} == set(STUDIES)
    assert [path.name for path in FIGURES.iterdir() if path.is_file()] == ["README.md"]
