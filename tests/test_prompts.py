"""Prompt sets: files as people write them are read rightly, or refused with the file's name, the line and what to do."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench.prompts import FOLDER, Prompt, PromptSet, attributes, labels_of, prompt_pairs, prompt_set
from workbench.tables import read_table

HEADER = "prompt,subject,value\n"
TWO = HEADER + "a red car,red,red\na blue car,blue,blue\n"


@pytest.fixture
def write(tmp_path):
    """A file of this content; prompts.csv unless it is named."""

    def written(content: str | bytes, name: str = "prompts.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def texts(found) -> list[str]:
    return [prompt.prompt for prompt in found]


# What a file must have, and no more.


def test_every_set_that_comes_with_the_workbench_is_read_as_pandas_reads_it():
    paths = [path for path in FOLDER.rglob("*.csv") if "labels" not in path.stem and path.parent.name != "steer"]
    paths.remove(FOLDER / "timed.csv")  # cases, whose columns are TIMED's
    assert len(paths) == 28
    for path in paths:
        found, table = prompt_set(path), pd.read_csv(path, dtype=str, keep_default_na=False)
        for column in set(table) & set(Prompt.__dataclass_fields__):
            assert [getattr(prompt, column) for prompt in found] == list(table[column])
        if "value" in table:
            file = path.with_name(f"{path.stem}_labels.csv")
            labels = pd.read_csv(file if file.exists() else path.with_name("labels.csv"), dtype=str)
            assert found.labels == {label: tuple(some.text) for label, some in labels.groupby("label", sort=False)}
    for path in (FOLDER / "steer").glob("*.csv"):
        if path.stem != "tune":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            assert prompt_pairs(path.stem) == (list(table.positive), list(table.negative))


def test_the_challenges_own_form_is_read(write):
    found = prompt_set("winter")
    assert len(found) == 30 and texts(found)[:2] == [
        "a photo of a zebra in the desert on a sunny summer day",
        "a photo of a giraffe in the savanna",
    ]
    assert found.labels == {} and found[0] == Prompt(found[0].prompt)
    own = prompt_set(write("ID,prompt\n1,a zebra\n2,a cow\n"))
    assert texts(own) == ["a zebra", "a cow"] and own.labels == {}
    assert texts(prompt_set(write("Prompt\na zebra\n"))) == ["a zebra"]  # a capital in the header


def test_own_prompt_sets(write):
    found = prompt_set(write(TWO))
    assert found[0] == Prompt("a red car", "red", "red") and len(found[:1]) == 1 and found[:1].labels == found.labels
    assert found.labels == {"red": ("a photo of red",), "blue": ("a photo of blue",)}
    assert prompt_set(str(write(TWO))).prompts == found.prompts
    subjects = prompt_set(write("prompt,subject\na red car,red\n"))
    assert subjects[0] == Prompt("a red car", "red") and subjects.labels == {}
    with pytest.raises(
        ValueError, match=r"prompts.csv lacks the columns \['prompt'\]; found \['subject', 'value'\]; add them"
    ):
        prompt_set(write("subject,value\nred,red\n"))
    with pytest.raises(
        FileNotFoundError,
        match=r"prompt_set\('objects'\): no such file, and no set of that name; the sets are action, colour, fact, object, .*swap/",
    ):
        prompt_set("objects")


def test_a_name_without_its_ending_is_told(write, monkeypatch, tmp_path):
    write(TWO, "mine.csv")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"did you mean mine\.csv\?"):
        prompt_set("mine")


def test_the_home_folder(write, monkeypatch, tmp_path):
    write(TWO, "mine.csv")
    write("positive,negative\nwinter,summer\n", "pairs.csv")
    write("label,text\nred,a red car\nblue,a blue car\n", "colours.csv")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(prompt_set("~/mine.csv")) == 2 and prompt_pairs("~/pairs.csv") == (["winter"], ["summer"])
    assert prompt_set("~/mine.csv", labels="~/colours.csv").labels["red"] == ("a red car",)


# Files as programs write them.


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TWO.encode(),  # Excel's byte-order mark
        TWO.replace("\n", "\r\n").encode(),
        TWO.replace("\n", "\r").encode(),
        b"\xef\xbb\xbf" + TWO.replace("\n", "\r\n").encode(),
        TWO.rstrip().encode(),  # no line end at the end
        (TWO + "\n\n").encode(),
        (TWO + ",,\n,,\n").encode(),  # blank rows of a spreadsheet
        (TWO + " , ,\n").encode(),
        b"\n" + TWO.replace("\n", "\n\n").encode(),
        TWO.replace(",", " , ").encode(),  # spaces around values
        TWO.replace("prompt,subject,value", "Prompt,Subject,VALUE").encode(),
        "".join(f"{line},,\n" for line in TWO.splitlines()).encode(),  # empty columns at the end throughout
        "".join(
            f"{number},{line}\n" for number, line in zip(["", 0, 1], TWO.splitlines())
        ).encode(),  # pandas' row numbers
        TWO.replace("a red car", '"a red car"').encode(),
    ],
)
def test_the_same_table_in_other_clothes(write, content):
    found = prompt_set(write(content))
    assert list(found) == [Prompt("a red car", "red", "red"), Prompt("a blue car", "blue", "blue")]


def test_texts_with_commas_quotes_and_accents(write):
    rows = '"a zebra, running","zebra",zebra\n"a ""big"" café",café,café\na 12" ruler,ruler,ruler\n'
    found = prompt_set(write(HEADER + rows))
    assert texts(found) == ["a zebra, running", 'a "big" café', 'a 12" ruler']


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            HEADER + "a zebra,zebra,zebra,\n",
            "line 2: it ends in a comma, but the header has 3 columns (prompt, subject, value)",
        ),
        (HEADER + "a cow,cow,cow\na zebra, running,zebra,zebra\n", "line 3: 4 values, but the header has 3 columns"),
        (
            "ID,prompt\n1,a zebra, running\n",
            "line 2: 3 values, but the header has 2 columns (id, prompt); put a text that has",
        ),
        ("prompt\na zebra, running\n", "line 2: 2 values, but the header has 1 columns (prompt)"),
        (
            HEADER + "a zebra, running,zebra\n",
            "line 2: the subject 'running' is not in the prompt 'a zebra'; name words that",
        ),
        (
            HEADER + "a zebra,zebra\n",
            "line 2: 2 values, but the header has 3 columns (prompt, subject, value); fill in the",
        ),
        (HEADER + "a zebra\n", "line 2: 1 values, but the header has 3 columns"),
        (
            HEADER + "a zebra,,zebra\n",
            "line 2: subject is empty; fill it in, or take the row, or the whole column, out",
        ),
        (HEADER + "a zebra,zebra,\n", "line 2: value is empty; fill it in"),
        (HEADER + ",zebra,zebra\n", "line 2: prompt is empty; fill it in"),
        (HEADER + "\n\na zebra,giraffe,zebra\n", "line 4: the subject 'giraffe' is not in the prompt 'a zebra'"),
        (
            HEADER + 'a cow,cow,cow\n"a zebra,zebra,zebra\n',
            "line 3: unexpected end of data; close the quote that is opened",
        ),
        (
            HEADER + '"a cow,cow,cow\na zebra,zebra,zebra\n"a lion",lion,lion\n',
            "line 2: ',' expected after '\"'; close",
        ),
        (
            HEADER + '"a cow\nand a zebra",cow,cow\n',
            "line 2: a quoted text goes on to line 3; close its quote, or write it",
        ),
        ("", "is empty; give it a header, prompt, and rows"),
        ("\n \n", "is empty; give it a header"),
        (b"\xef\xbb\xbf", "is empty; give it a header"),
        (HEADER, "has a header but no rows; add some"),
        (HEADER + ",,\n", "has a header but no rows; add some"),
        (
            (HEADER + "a café,café,café\n").encode("cp1252"),
            "line 2: the byte e9 is not UTF-8 (in Windows' cp1252 it is 'é'); save",
        ),
        (TWO.encode("utf-16"), 'is in UTF-16, not UTF-8; save it as UTF-8 (in Excel: "CSV UTF-8 (comma delimited)")'),
        (TWO.encode("utf-16-le"), "is in UTF-16, not UTF-8"),
        (TWO.encode("utf-16-be"), "is in UTF-16, not UTF-8"),
        (b"PK\x03\x04 and so on", "is an Excel workbook or another archive, not CSV; save it as UTF-8"),
        (
            TWO.replace(",", ";"),
            "lacks the columns ['prompt']; found ['prompt;subject;value']; its values are separated by ';'",
        ),
        (TWO.replace(",", "\t"), "its values are separated by '\\t': save it with commas"),
        ("prompt,subjct,value\na cow,cow,cow\n", "line 1: a column is called subjct; did you mean subject?"),
        (
            "prompt,subject,value,targets\na cow,cow,cow,a zebra\n",
            "line 1: a column is called targets; did you mean target?",
        ),
        ("prompt,prompt\na cow,a cow\n", "line 1: the column prompt stands twice; take one out"),
        ("prompt,,value\na cow,cow,cow\n", "line 1: column 2 has no name; name it, or take it out"),
        (",prompt\nx,a cow\n", "line 1: column 1 has no name"),
        (
            "prompt,value,replacement\na cow,cow,zebra\n",
            "line 2: Prompt(replacement='zebra') says nothing without subject",
        ),
        ("prompt,target_value\na cow,zebra\n", "line 2: Prompt(target_value='zebra') says nothing without target"),
    ],
)
def test_what_cannot_be_read_rightly_is_told_with_file_line_and_fix(write, content, text):
    path = write(content)
    with pytest.raises(ValueError) as error:
        prompt_set(path)
    assert str(error.value).startswith(str(path)) and text in str(error.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a CSV file in it"):
        prompt_set(tmp_path)
    with pytest.raises(ValueError, match="prompt_set: source=3: give the path of a file"):
        prompt_set(3)


def test_pairs_of_unequal_columns_are_refused(write):
    path = write("positive,negative\na cow in winter,a cow\na zebra in winter,\n")
    with pytest.raises(ValueError, match=r"prompts.csv, line 3: negative is empty; fill it in"):
        prompt_pairs(path)
    with pytest.raises(ValueError, match=r"prompts.csv lacks the columns \['negative'\]; found \['positive'\]"):
        prompt_pairs(write("positive\na cow\n"))
    with pytest.raises(
        FileNotFoundError, match=r"prompt_pairs\('spring'\): .* the sets are night, watercolor, winter$"
    ):
        prompt_pairs("spring")


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0", exclude_categories=["Cc", "Cs"]), min_size=1)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_what_pandas_writes_comes_back(tmp_path_factory, rows):
    rows = [tuple(text.strip() for text in row) for row in rows]
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    pd.DataFrame(rows, columns=["prompt", "note"]).to_csv(path, index=False)
    held = [row for row in rows if any(row)]
    if not held:
        return
    found = read_table(path, ("prompt",), ("prompt",))
    assert [(row["prompt"], row["note"]) for row in found.rows] == held


@given(st.text(max_size=80) | st.binary(max_size=80))
def test_any_file_is_read_or_refused_by_name(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("csv") / "fuzz.csv"
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    try:
        found = prompt_set(path)
    except ValueError as error:
        assert str(error).startswith(str(path))
    else:
        assert all(prompt.prompt for prompt in found)


# Labels.


def test_labels_are_read_beside_the_file_for_it_or_for_the_folder(write):
    path = write(TWO)
    write("label,text\nred,a red house\nblue,a blue house\n", "labels.csv")
    assert prompt_set(path).labels == {"red": ("a red house",), "blue": ("a blue house",)}
    write("label,text\nred,a red car\nred,a red hat\nblue,a blue car\nblue,a blue hat\n", "prompts_labels.csv")
    assert prompt_set(path).labels["red"] == ("a red car", "a red hat")
    assert prompt_set(path, labels={"red": "red!", "blue": ["blue!"]}).labels == {"red": ("red!",), "blue": ("blue!",)}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            "label,text\nzebra,a zebra\ncow,a cow\n",
            "has the values ['blue', 'red'], which its labels lack: ['zebra', 'cow']",
        ),
        ("name,number\nzebra,3\n", "labels.csv lacks the columns ['label', 'text']; found ['name', 'number']"),
        ("label,text\nred,a red car\nred,\n", "labels.csv, line 3: text is empty"),
        (
            "label,text\nred,a\nred,b\nblue,c\n",
            "labels: texts per label {'red': 2, 'blue': 1}; give every label equally many",
        ),
    ],
)
def test_a_stray_labels_file_is_named(write, content, text):
    path, beside = write(TWO), write(content, "labels.csv")
    with pytest.raises(ValueError) as error:
        prompt_set(path)
    assert text in str(error.value)
    assert f"prompts.csv takes its labels from {beside}, which stands beside it" in str(error.value)
    assert "rename it or pass labels=" in str(error.value)
    assert prompt_set(path, labels={"red": "a red car", "blue": "a blue car"}).labels["red"] == ("a red car",)


def test_a_stray_labels_file_does_not_touch_a_set_without_values(write):
    path = write("ID,prompt\n1,a zebra\n")
    write("name,number\nzebra,3\n", "labels.csv")
    assert prompt_set(path).labels == {}


def test_texts_of_a_label_given_as_a_string_are_one():
    found = PromptSet("x", (Prompt("a cow", "cow", "cow"),), {"cow": "a cow", "zebra": ["a zebra"]})
    assert found.labels == {"cow": ("a cow",), "zebra": ("a zebra",)}


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (["cow"], "prompt set 'x': labels=['cow']: give a mapping of labels to texts"),
        ({"cow": 3}, "prompt set 'x': labels['cow']=3: give a text"),
        ({"cow": []}, "prompt set 'x': labels['cow'] holds 0 texts"),
        ({"cow": ["a cow", " "]}, "prompt set 'x': labels['cow'] holds an empty text"),
        (
            {"cow": ["a", "b"], "zebra": "a zebra"},
            "texts per label {'cow': 2, 'zebra': 1}; give every label equally many",
        ),
        (
            {"zebra": "a zebra"},
            "prompt set 'x' has the values ['cow'], which its labels lack: ['zebra']; add texts for them",
        ),
        ({3: "a cow"}, "prompt set 'x': a label is 3; labels are texts, as values are"),
    ],
)
def test_labels_that_do_not_fit(labels, text):
    with pytest.raises(ValueError) as error:
        PromptSet("x", (Prompt("a cow", "cow", "cow"),), labels)
    assert text in str(error.value)


def test_a_value_finds_the_labels_of_its_attribute():
    seasons = wb.prompt_set("season").labels
    assert (
        labels_of("winter") == labels_of("in winter") == seasons
        and labels_of("watercolor") == wb.prompt_set("style").labels
    )
    assert set(labels_of("a zebra")) == set(wb.prompt_set("object").labels)
    assert labels_of("spring") == labels_of("zebra crossing") == labels_of("") == labels_of("a ") == {}
    assert attributes() == ["action", "colour", "fact", "object", "position", "season", "style"]


# Sets of what is at hand.


def test_a_set_of_a_text_finds_its_value_and_labels():
    found = PromptSet.of("a zebra in the savanna", subject="zebra", target="a giraffe in the savanna")
    (prompt,) = found
    assert prompt == Prompt("a zebra in the savanna", "zebra", "zebra", "", "a giraffe in the savanna", "giraffe")
    assert found.labels == labels_of("zebra")
    assert PromptSet.of("a cow in winter", subject="in winter", target="a cow in summer")[0].target_value == "summer"
    assert PromptSet.of("a zebra", subject="a zebra", target="an elephant")[0].target_value == "elephant"
    other = PromptSet.of("a zebra in the city", subject="zebra", target="a zebra crossing in the city")
    assert other[0].value == "zebra" and other[0].target_value == ""
    unknown = PromptSet.of("an axolotl", subject="axolotl")
    assert unknown[0] == Prompt("an axolotl", "axolotl") and unknown.labels == {}
    own = PromptSet.of("an axolotl", subject="axolotl", labels={"axolotl": "an axolotl", "newt": "a newt"})
    assert own[0].value == "axolotl" and set(own.labels) == {"axolotl", "newt"}


def test_sets_of_lists():
    assert texts(PromptSet.of(["a zebra", "a cow"])) == ["a zebra", "a cow"]
    mixed = PromptSet.of(["a zebra", Prompt("a cow", "cow", "cow"), "a lion"])
    assert texts(mixed) == ["a zebra", "a cow", "a lion"] and mixed.labels == labels_of("cow")
    made = PromptSet.of(Prompt(f"a {each}", each, each) for each in ("newt", "axolotl"))
    assert made.labels == {"newt": ("a photo of newt",), "axolotl": ("a photo of axolotl",)}
    assert PromptSet.of(made) is made


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: PromptSet.of([]), "prompts holds none; give at least one"),
        (lambda: PromptSet.of(["a zebra", 3]), "prompts holds 3, a int: give a text"),
        (
            lambda: PromptSet.of("a cow", subject="zebra"),
            "subject='zebra' is not in the prompt 'a cow'; name words that",
        ),
        (lambda: PromptSet.of(wb.prompt_set("object"), subject="zebra"), "a PromptSet has its own subjects"),
        (lambda: PromptSet("x", ("a zebra",)), "prompt set 'x' holds 'a zebra': give wb.Prompt(...), or PromptSet.of"),
        (lambda: Prompt("a cow", 3), 'Prompt(subject=3): give a text, "" for none'),
        (lambda: Prompt("a cow", None), "Prompt(subject=None): give a text"),
        (
            lambda: prompt_set("winter").require("subject", by="causal_trace"),
            "causal_trace needs a subject for every prompt, and 30 of 30 in prompt set 'winter' have none, the first 'a photo of",
        ),
    ],
)
def test_what_makes_no_set_is_told(call, text):
    with pytest.raises(ValueError) as error:
        call()
    assert text in str(error.value)


def test_a_set_shows_itself():
    found = wb.prompt_set("object")[:2]
    assert repr(found).startswith("prompt set 'object': 2 prompts, labels zebra, giraffe") and "target_value" in repr(
        found
    )
    assert "<table" in found._repr_html_() and "target" not in wb.prompt_set("winter")._repr_html_()
    assert repr(wb.prompt_set("winter")).startswith("prompt set 'winter': 30 prompts, no labels")
