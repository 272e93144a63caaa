"""Prompt sets: prompts with the words that name an attribute, as `data/prompts/` holds them for seven attributes.

wb.prompt_set("style")                 # object, style, colour, season, action, position or fact
wb.prompt_set("swap/held_out")         # one of the edit benchmark's
wb.prompt_set("my_prompts.csv")        # own ones: a column prompt; if wanted subject, value, replacement, target, target_value
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pandas as pd

from workbench.arguments import line
from workbench.inputs import said, several, shown, strings, user_path
from workbench.models import DATA
from workbench.tables import Table, header_of, read_table
from workbench.text import places_of, replace_words

FOLDER = DATA / "prompts"
ATTRIBUTE = {"prompt", "subject", "value", "replacement", "target", "target_value"}  # columns of an attribute's set
PAIR = ("positive", "negative")
LABELS = ("label", "text")
ARTICLE = re.compile(r"\ban?\b", re.IGNORECASE)
LEADING = re.compile(r"(?:(?:in|at|on|of) )?(?:(?:an?|the) )?", re.IGNORECASE)

Labels = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Prompt:
    """One prompt. subject: the words in it that name the attribute; value: what they say; replacement: other words for them, of as
    many tokens where positions shall stay; target: the whole prompt without the attribute, or with another value of it;
    target_value: its value there. All but the prompt are "" where there are none.

    >>> wb.Prompt("a zebra in winter", subject="in winter", value="winter", target="a zebra")
    Prompt(prompt='a zebra in winter', subject='in winter', value='winter', replacement='', target='a zebra', target_value='')
    """

    prompt: str
    subject: str = ""
    value: str = ""
    replacement: str = ""
    target: str = ""
    target_value: str = ""

    def __post_init__(self):
        for name, text in vars(self).items():
            if not isinstance(text, str):
                raise ValueError(f'Prompt({name}={shown(text)}): give a text, "" for none')
        for name, needed in (("replacement", "subject"), ("target_value", "target")):
            if getattr(self, name) and not getattr(self, needed):
                raise ValueError(f"Prompt({name}={getattr(self, name)!r}) says nothing without {needed}; give that too")


Prompts = "PromptSet | Prompt | str | Iterable[Prompt | str]"


@dataclass(frozen=True)
class PromptSet(Sequence[Prompt]):
    """Prompts of one attribute.

    labels: for each of its values, the texts that zero-shot classification compares with, equally many (a text alone is one); none
    where the prompts name no values.

    Raises ValueError for what is no `Prompt`, and for values without labels.

    >>> texts = ("a zebra at night", "a zebra in winter")
    >>> zebras = wb.PromptSet("zebras", [wb.Prompt(text, subject="zebra") for text in texts])
    >>> len(zebras), zebras[0].subject, len(zebras[:1])
    (2, 'zebra', 1)
    """

    name: str
    prompts: tuple[Prompt, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self):
        line(self.name, "name")
        fix = "give several wb.Prompt(...), or PromptSet.of for mere texts"
        object.__setattr__(self, "prompts", several(self.prompts, "prompts", fix))
        if wrong := [prompt for prompt in self.prompts if not isinstance(prompt, Prompt)]:
            raise ValueError(
                f"prompt set {self.name!r} holds {shown(wrong[0])}: give wb.Prompt(...), or PromptSet.of for mere texts"
            )
        object.__setattr__(self, "labels", label_texts(self.labels, f"prompt set {self.name!r}: labels"))
        if wrong := [label for label in self.labels if not isinstance(label, str)]:
            raise ValueError(f"prompt set {self.name!r}: a label is {shown(wrong[0])}; labels are texts, as values are")
        values = {text for prompt in self.prompts for text in (prompt.value, prompt.target_value) if text}
        if unknown := sorted(values - set(self.labels)):
            raise ValueError(
                f"prompt set {self.name!r} has the values {unknown}, which its labels lack: {list(self.labels)}; add texts "
                "for them"
            )

    @classmethod
    def of(
        cls,
        prompts: "PromptSet | Prompt | str | Iterable[Prompt | str]",
        *,
        subject: str = "",
        target: str = "",
        labels: Labels | None = None,
        name: str = "prompts",
    ) -> "PromptSet":
        """A set of what a person has at hand: a text, several, one `Prompt` or several; a set stays as it is.

        subject, target: of the texts among them. labels: left out, those of the attribute that comes with the workbench and knows the
        subject (or the prompts' values), such as the seasons for "in winter"; where none does, texts have no value and are
        measured by similarity alone, and values stand for themselves as "a photo of VALUE".

        >>> found = wb.PromptSet.of("a zebra in winter", subject="in winter", target="a zebra in summer")
        >>> found[0].value, found[0].target_value, list(found.labels)
        ('winter', 'summer', ['none', 'winter', 'summer', 'night'])
        """
        if isinstance(prompts, PromptSet):
            if subject or target or labels is not None:
                raise ValueError(
                    "a PromptSet has its own subjects, targets and labels; leave subject, target and labels out"
                )
            return prompts
        said(subject, "subject"), said(target, "target"), line(name, "name")
        fix = "give a text, a wb.Prompt, several of these, or a PromptSet"
        given = [prompts] if isinstance(prompts, (str, Prompt)) else several(prompts, "prompts", fix)
        texts = strings([one for one in given if not isinstance(one, Prompt)], "prompts", least=0)
        if given and not texts and (subject or target):
            raise ValueError(
                f"subject={subject!r}, target={target!r} are of texts; a wb.Prompt has its own: wb.Prompt(text, subject, target=...)"
            )
        if lacking := [text for text in texts if subject and not places_of(subject, text)]:
            raise ValueError(f"subject={subject!r} is not in the prompt {lacking[0]!r}; name words that it has")
        known = labels_of(subject) if labels is None else labels
        value = _value(subject, known)
        made = iter(
            [Prompt(text, subject, value, "", target, _target_value(text, subject, target, known)) for text in texts]
        )
        every = tuple(one if isinstance(one, Prompt) else next(made) for one in given)
        if not every:
            raise ValueError("prompts holds none; give at least one")
        values = [text for prompt in every for text in (prompt.value, prompt.target_value) if text]
        return cls(name, every, _labels_for(values) if labels is None else labels)

    def require(self, *columns: str, by: str):
        """Raise ValueError where a prompt lacks one of these, such as subject; by: what needs them.

        >>> prompts.require("subject", "target", by="LocoGen")
        """
        for column in columns:
            if without := [prompt.prompt for prompt in self.prompts if not getattr(prompt, column)]:
                raise ValueError(
                    f"{by} needs a {column} for every prompt, and {len(without)} of {len(self)} in prompt set {self.name!r} have "
                    f"none, the first {without[0]!r}; add a column {column} to its file, or give wb.Prompt(..., {column}=...)"
                )

    def table(self) -> pd.DataFrame:
        """One row for each prompt, with the columns that any of them fills.

        >>> prompts.table()[["prompt", "subject", "target_value"]]
                                       prompt  subject target_value
        0   a photo of a zebra in the savanna    zebra      giraffe
        1  a photo of a giraffe in the forest  giraffe         lion
        """
        table = pd.DataFrame([asdict(prompt) for prompt in self.prompts])
        return table[[column for column in table if table[column].any()]]

    def __getitem__(self, index):
        """One prompt, or with a slice a smaller set."""
        return (
            PromptSet(self.name, self.prompts[index], self.labels) if isinstance(index, slice) else self.prompts[index]
        )

    def __len__(self):
        return len(self.prompts)

    def __repr__(self):
        labels = f"labels {', '.join(self.labels)}" if self.labels else "no labels"
        return f"prompt set {self.name!r}: {len(self)} prompts, {labels}\n{self.table()}"

    def _repr_html_(self):
        return self.table().to_html(index=False)


def label_texts(labels: Labels, argument: str) -> dict[str, tuple[str, ...]]:
    """Texts of each label, as tuples of equally many.

    Raises ValueError for what is no mapping, and for no texts, empty ones, or different numbers of them.
    """
    if not isinstance(labels, Mapping):
        raise ValueError(
            f"{argument}={shown(labels)}: give a mapping of labels to texts, such as {{'zebra': 'a zebra', 'cow': 'a cow'}}"
        )
    texts = {label: strings(some, f"{argument}[{label!r}]") for label, some in labels.items()}
    if empty := [label for label, some in texts.items() if not all(text.strip() for text in some)]:
        raise ValueError(f"{argument}[{empty[0]!r}] holds an empty text; say what such a picture shows")
    if len({len(some) for some in texts.values()}) > 1:
        raise ValueError(
            f"{argument}: texts per label { ({label: len(some) for label, some in texts.items()}) }; give every label equally many"
        )
    return texts


def attributes() -> list[str]:
    """Names of the attributes whose sets come with the workbench."""
    return sorted(path.stem for path in FOLDER.glob("*.csv") if header_of(path) >= ATTRIBUTE)


def labels_of(words: str) -> dict[str, tuple[str, ...]]:
    """Zero-shot texts of every value of the attribute that knows this one, such as the seasons of "winter" or "in winter".

    An article or preposition in front does not count; none where no attribute knows it.
    """
    for name in attributes() if words else ():
        if _value(words, labels := prompt_set(name).labels):
            return labels
    return {}


def with_article(word: str) -> str:
    """A word as texts say it: a zebra, an elephant."""
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def prompt_pairs(source: str | Path) -> tuple[list[str], list[str]]:
    """Prompts with a concept and without, to make a direction from: "winter", "night", "watercolor", or a CSV file (columns
    positive, negative).

    Raises FileNotFoundError for no such set, ValueError for a file that cannot be read rightly; see `workbench.tables`.

    >>> positive, negative = wb.prompt_pairs("winter")
    >>> len(positive), len(negative)
    (100, 100)
    >>> positive[0], negative[0]
    ('a yellow car in the city in winter', 'a yellow car in the city in summer')
    """
    table = read_table(_found(source, "prompt_pairs", FOLDER / "steer", PAIR), PAIR, PAIR)
    table.require_values(*PAIR)
    return [row["positive"] for row in table.rows], [row["negative"] for row in table.rows]


def prompt_set(source: str | Path, *, labels: Labels | str | Path | None = None) -> PromptSet:
    r"""A prompt set by name, or from a CSV file with a column prompt and, where wanted, those others of `Prompt`.

    labels: texts of each value, or a CSV file of them (columns label, text). Left out, they are read from SOURCE_labels.csv beside
    the source, or labels.csv for a whole folder; without these each value is its own label, as "a photo of VALUE". Prompts
    without values have no labels.

    Raises FileNotFoundError for no such set, ValueError, with the file's name and the line, for a file that cannot be read rightly
    (see `workbench.tables`), a subject that its prompt lacks, and values that the labels lack.

    >>> objects = wb.prompt_set("object")
    >>> len(objects), objects[0].prompt
    (12, 'a photo of a zebra in the savanna')
    >>> with open("mine.csv", "w") as file:
    ...     _ = file.write("prompt,subject,value\na zebra,zebra,zebra\na lion,lion,lion\n")
    >>> wb.prompt_set("mine.csv").labels
    {'zebra': ('a photo of zebra',), 'lion': ('a photo of lion',)}
    """
    path = _found(source, "prompt_set", FOLDER, ("prompt",))
    columns = [column.name for column in fields(Prompt)]
    table = read_table(path, ("prompt",), columns)
    table.require_values("prompt", "subject", "value")
    prompts = tuple(_prompt(table, row, columns) for row in range(len(table.rows)))
    values = [text for prompt in prompts for text in (prompt.value, prompt.target_value) if text]
    if isinstance(labels, Mapping):
        return PromptSet(path.stem, prompts, labels)
    if (beside := _labels_file(path, labels, bool(values))) is None:
        return PromptSet(path.stem, prompts, _photos(values))
    try:
        return PromptSet(path.stem, prompts, _read_labels(beside))
    except ValueError as error:
        if labels is not None:
            raise
        raise ValueError(
            f"{error}. {path.name} takes its labels from {beside}, which stands beside it; if that is not meant for it, rename it "
            "or pass labels="
        ) from None


def _found(source: str | Path, function: str, folder: Path, columns: Sequence[str]) -> Path:
    """The file of a set that comes with the workbench, or a person's own."""
    path = user_path(source, f"{function}: source")
    if isinstance(source, str) and (own := folder / f"{source}.csv").is_file():
        return own
    if not path.exists():
        files = sorted(path for path in folder.rglob("*.csv") if header_of(path) >= set(columns))
        sets = ", ".join(path.relative_to(folder).with_suffix("").as_posix() for path in files)
        near = f"; did you mean {path}.csv?" if path.with_name(f"{path.name}.csv").exists() else ""
        raise FileNotFoundError(
            f"{function}({str(source)!r}): no such file, and no set of that name; the sets are {sets}{near}"
        )
    return _file(path, function)


def _file(path: Path, function: str) -> Path:
    """A file that is there; function: what asks for it."""
    if not path.exists():
        raise FileNotFoundError(f"{function}: {path}: no such file")
    if path.is_dir():
        raise ValueError(f"{function}: {path} is a folder; name a CSV file in it")
    return path


def _prompt(table: Table, row: int, columns: Sequence[str]) -> Prompt:
    values = table.rows[row]
    try:
        prompt = Prompt(**{column: values[column] for column in columns if column in values})
    except ValueError as error:
        raise table.error(row, str(error)) from None
    if prompt.subject and not places_of(prompt.subject, prompt.prompt):
        raise table.error(
            row,
            f"the subject {prompt.subject!r} is not in the prompt {prompt.prompt!r}; name words that it has (a prompt with commas "
            "stands in quotes)",
        )
    return prompt


def _labels_file(path: Path, labels: str | Path | None, valued: bool) -> Path | None:
    """Where a set's labels are, if anywhere."""
    if labels is not None:
        return _file(user_path(labels, "prompt_set: labels"), "prompt_set(labels=)")
    own, shared = path.with_name(f"{path.stem}_labels.csv"), path.with_name("labels.csv")
    return own if own.exists() else shared if valued and shared.exists() and shared != path else None


def _read_labels(path: Path) -> dict[str, tuple[str, ...]]:
    table = read_table(path, LABELS, LABELS)
    table.require_values(*LABELS)
    texts: dict[str, tuple[str, ...]] = {}
    for row in table.rows:
        texts[row["label"]] = (*texts.get(row["label"], ()), row["text"])
    return texts


def _photos(values: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {value: (f"a photo of {value}",) for value in values}


def _labels_for(values: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Labels that know all of these values: an attribute's, or the values themselves."""
    known = labels_of(values[0]) if values else {}
    return known if set(values) <= set(known) else _photos(values)


def _value(words: str, labels: Labels) -> str:
    """The label that words name: themselves, or without an article or preposition in front."""
    return next((text for text in (words, LEADING.sub("", words, count=1)) if text and text in labels), "")


def _target_value(text: str, subject: str, target: str, labels: Labels) -> str:
    """The label that a target shows: the one that makes it of the text when put in the subject's place, articles aside."""
    if not subject or not target:
        return ""
    plain = lambda words: ARTICLE.sub("a", words).lower()
    leading = subject.removesuffix(LEADING.sub("", subject, count=1))
    return next(
        (label for label in labels if plain(replace_words(text, subject, leading + label).text) == plain(target)),
        "",
    )
