"""Prompt sets: prompts with the words that name an attribute, as `data/prompts/` holds them for seven attributes.

wb.prompt_set("style")                 # object, style, colour, season, action, position or fact
wb.prompt_set("swap/held_out")         # one of the edit benchmark's
wb.prompt_set("my_prompts.csv")        # own ones: columns prompt, subject, value; if wanted replacement, target, target_value
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from workbench.models import DATA

FOLDER = DATA / "prompts"
COLUMNS = ("prompt", "subject", "value")  # that a file must have
PAIR = ("positive", "negative")


@dataclass(frozen=True)
class Prompt:
    """One prompt. subject: the words in it that name the attribute; value: what they say; replacement: other words of as
    many tokens; target: the whole prompt without the attribute, or with another value of it; target_value: its value there.
    The last three are "" where there are none."""

    prompt: str
    subject: str
    value: str = ""
    replacement: str = ""
    target: str = ""
    target_value: str = ""


@dataclass(frozen=True)
class PromptSet(Sequence[Prompt]):
    """Prompts of one attribute. labels: for each of its values, the texts that zero-shot classification compares with."""

    name: str
    prompts: tuple[Prompt, ...]
    labels: Mapping[str, tuple[str, ...]]

    def __post_init__(self):
        values = {prompt.value for prompt in self.prompts} | {
            prompt.target_value for prompt in self.prompts if prompt.target
        }
        if unknown := sorted(values - set(self.labels)):
            raise ValueError(
                f"prompt set {self.name!r} has the values {unknown}, which its labels lack: {list(self.labels)}; add texts "
                "for them"
            )

    def __getitem__(self, index):
        """One prompt, or with a slice a smaller set."""
        return (
            PromptSet(self.name, self.prompts[index], self.labels) if isinstance(index, slice) else self.prompts[index]
        )

    def __len__(self):
        return len(self.prompts)


def attributes() -> list[str]:
    """Names of the sets that come with the workbench."""
    return _names(FOLDER, COLUMNS)


def labels_of(value: str) -> Mapping[str, tuple[str, ...]]:
    """Zero-shot texts of every value of the attribute that knows this one, such as the seasons of "winter"; none where no set does."""
    return next((found for name in attributes() if value in (found := prompt_set(name).labels)), {})


def _names(folder: Path, columns: Sequence[str]) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.csv") if set(columns) <= set(pd.read_csv(path, nrows=0)))


def _read(path: Path, asked: str, columns: Sequence[str], folder: Path) -> pd.DataFrame:
    """A table of texts that has these columns; the folder's own tables are named where there is no such file."""
    if not path.exists():
        sets = ", ".join(_names(folder, columns))
        raise FileNotFoundError(f"{asked}: no such file, and no set of that name; the sets are {sets}")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{path.name} lacks the columns {missing}; found {list(table)}")
    return table


def prompt_pairs(source: str | Path) -> tuple[list[str], list[str]]:
    """Prompts with a concept and without, to make a direction from: "winter", "night", "watercolor", or a CSV file (columns
    positive, negative).

    Raises FileNotFoundError for no such set, ValueError for a column that is missing.
    """
    path = FOLDER / "steer" / f"{source}.csv" if (FOLDER / "steer" / f"{source}.csv").exists() else Path(source)
    table = _read(path, f"prompt_pairs({str(source)!r})", PAIR, FOLDER / "steer")
    return list(table["positive"]), list(table["negative"])


def prompt_set(source: str | Path) -> PromptSet:
    """A prompt set by name or from a CSV file (columns prompt, subject, value, optionally those others of `Prompt`).

    Labels are read from SOURCE_labels.csv beside it (columns label, text), or labels.csv for a whole folder; without these
    each value is its own label, as "a photo of VALUE".

    Raises FileNotFoundError for no such set, ValueError for a column or label that is missing.
    """
    path = FOLDER / f"{source}.csv" if (FOLDER / f"{source}.csv").exists() else Path(source)
    table = _read(path, f"prompt_set({str(source)!r})", COLUMNS, FOLDER)
    given = table[[field.name for field in fields(Prompt) if field.name in table]]
    prompts = tuple(Prompt(**row) for row in given.to_dict("records"))
    beside = path.with_name(f"{path.stem}_labels.csv")
    beside = beside if beside.exists() else path.with_name("labels.csv")
    if beside.exists():
        texts = pd.read_csv(beside, dtype=str, keep_default_na=False)
        labels = {label: tuple(group) for label, group in texts.groupby("label", sort=False)["text"]}
    else:
        values = [value for prompt in prompts for value in (prompt.value, prompt.target_value) if value]
        labels = {value: (f"a photo of {value}",) for value in values}
    return PromptSet(path.stem, prompts, labels)
