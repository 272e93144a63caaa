"""Prompt sets: prompts with the words that name an attribute, as `data/prompts/` holds them for six attributes.

wb.prompt_set("style")                 # object, style, colour, season, action or position
wb.prompt_set("swap/held_out")         # one of the edit benchmark's
wb.prompt_set("my_prompts.csv")        # own ones, with the columns prompt, subject, value and, if wanted, replacement
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbench.models import DATA

FOLDER = DATA / "prompts"
COLUMNS = ("prompt", "subject", "value")


@dataclass(frozen=True)
class Prompt:
    """One prompt. subject: the words in it that name the attribute; value: what they say; replacement: other words of as
    many tokens, "" where there are none."""

    prompt: str
    subject: str
    value: str = ""
    replacement: str = ""


@dataclass(frozen=True)
class PromptSet(Sequence[Prompt]):
    """Prompts of one attribute. labels: for each of its values, the texts that zero-shot classification compares with."""

    name: str
    prompts: tuple[Prompt, ...]
    labels: Mapping[str, tuple[str, ...]]

    def __getitem__(self, index):
        """One prompt, or with a slice a smaller set."""
        return PromptSet(self.name, self.prompts[index], self.labels) if isinstance(index, slice) else self.prompts[index]

    def __len__(self):
        return len(self.prompts)


def attributes() -> list[str]:
    """Names of the sets that come with the workbench."""
    return sorted(path.stem for path in FOLDER.glob("*.csv") if not path.stem.endswith("_labels"))


def prompt_set(source: str | Path) -> PromptSet:
    """A prompt set by name or from a CSV file (columns prompt, subject, value, optionally replacement).

    Labels are read from SOURCE_labels.csv beside it (columns label, text), or labels.csv for a whole folder; without these
    each value is its own label, as "a photo of VALUE".

    Raises FileNotFoundError for no such set, ValueError for a column or label that is missing.
    """
    path = FOLDER / f"{source}.csv" if (FOLDER / f"{source}.csv").exists() else Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"prompt_set({str(source)!r}): no such file, and no set of that name; the sets are {', '.join(attributes())}"
        )
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [column for column in COLUMNS if column not in table]:
        raise ValueError(f"{path.name} lacks the columns {missing}; found {list(table)}")
    prompts = tuple(Prompt(row.prompt, row.subject, row.value, getattr(row, "replacement", "")) for row in table.itertuples())
    beside = path.with_name(f"{path.stem}_labels.csv")
    beside = beside if beside.exists() else path.with_name("labels.csv")
    if beside.exists():
        texts = pd.read_csv(beside, dtype=str, keep_default_na=False)
        labels = {label: tuple(group) for label, group in texts.groupby("label", sort=False)["text"]}
    else:
        labels = {prompt.value: (f"a photo of {prompt.value}",) for prompt in prompts}
    if unknown := {prompt.value for prompt in prompts} - set(labels):
        raise ValueError(
            f"{path.name} has the values {sorted(unknown)}, which {beside.name} has no texts for; its labels are {list(labels)}"
        )
    return PromptSet(path.stem, prompts, labels)
