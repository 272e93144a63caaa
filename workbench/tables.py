"""CSV files that people wrote, read strictly: each value in its own column, or an error with the file's name, the line and the fix.

Taken as they come: a byte-order mark, any line ends, blank rows, spaces around a value, capitals in the header, a first column
of row numbers without a name, columns at the end that are empty throughout. Everything that could put a value into the
wrong column, or a letter into a word, is refused.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
WORKBOOK = b"PK\x03\x04"
SAVE_AS = 'save it as UTF-8 (in Excel: "CSV UTF-8 (comma delimited)")'
ALIKE = 0.85  # how similar the name of a column is to one that it was meant for


@dataclass(frozen=True)
class Table:
    """Rows of texts by column. lines: where each row stands in the file, the first line being 1."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]

    def error(self, row: int, text: str) -> ValueError:
        """An error about one row, to raise."""
        return ValueError(f"{self.path}, line {self.lines[row]}: {text}")

    def require_values(self, *columns: str):
        """Raise ValueError for a row that has nothing in one of these columns, those that the table has."""
        there = [column for column in columns if column in self.columns]
        for row, values in enumerate(self.rows):
            if empty := [column for column in there if not values[column]]:
                raise self.error(
                    row, f"{empty[0]} is empty; fill it in, or take the row, or the whole column, out of the file"
                )


def read_table(path: Path, needed: Sequence[str], known: Sequence[str] = ()) -> Table:
    """A table with at least the needed columns. known: all columns that mean something; others are read too.

    Raises FileNotFoundError for no such file, and ValueError, with the file's name and the line, for one that is empty or not in
    UTF-8, a quote that is not closed, a row of another length than the header, a needed column that is missing, or one whose name
    is nearly a known one's.
    """
    records = _records(path, _text(path))
    try:
        start, header = next(records)
    except StopIteration:
        raise ValueError(f"{path} is empty; give it a header, {','.join(needed)}, and rows") from None
    header = [name.strip().lower() for name in header]
    width = max(i for i, name in enumerate(header, 1) if name)  # empty columns behind the last name are dropped
    rows, lines = [], []
    for line, values in records:
        _check_length(path, line, values, header, width)
        rows.append([value.strip() for value in values[:width]])
        lines.append(line)
    names = header[:width]
    numbered = not names[0] and all(row[0].isdecimal() for row in rows)
    names, rows = (names[1:], [row[1:] for row in rows]) if numbered else (names, rows)
    _check_names(path, start, names, needed, known)
    if not rows:
        raise ValueError(f"{path} has a header but no rows; add some")
    return Table(path, tuple(names), tuple(dict(zip(names, row)) for row in rows), tuple(lines))


def header_of(path: Path) -> set[str]:
    """Names of a table's columns, as they stand."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return set(next(csv.reader(file), ()))


def _text(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a CSV file in it")
    data = path.read_bytes()
    if data.startswith(WORKBOOK):
        raise ValueError(f"{path} is an Excel workbook or another archive, not CSV; {SAVE_AS}")
    if data.startswith(UTF_16) or b"\0" in data:
        raise ValueError(f"{path} is in UTF-16, not UTF-8; {SAVE_AS}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start : error.start + 1]
        letter = byte.decode("cp1252", errors="replace")
        raise ValueError(
            f"{path}, line {line}: the byte {byte.hex()} is not UTF-8 (in Windows' cp1252 it is {letter!r}); {SAVE_AS}"
        ) from None


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that hold anything, with the line where each begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {line}: {error}; close the quote that is opened there, and write a quote inside a quoted "
                'text twice, as "a ""big"" zebra"'
            ) from None
        if reader.line_num > line:
            raise ValueError(
                f"{path}, line {line}: a quoted text goes on to line {reader.line_num}; close its quote, or write it on one line"
            )
        if any(value.strip() for value in values):
            yield line, values


def _check_length(path: Path, line: int, values: list[str], header: list[str], width: int):
    """Raise unless a row has as many values as the header has columns, those without a name being empty."""
    names = f"{width} columns ({', '.join(header[:width])})"
    more = [value.strip() for value in values[width:]]
    if any(more):
        raise ValueError(
            f"{path}, line {line}: {len(values)} values, but the header has {names}; put a text that has commas in quotes, "
            'as "a zebra, running"'
        )
    if len(values) > len(header):
        raise ValueError(f"{path}, line {line}: it ends in a comma, but the header has {names}; take the comma away")
    if len(values) < width:
        raise ValueError(
            f"{path}, line {line}: {len(values)} values, but the header has {names}; fill in the others, or write a comma for "
            "each that is empty"
        )


def _check_names(path: Path, line: int, names: Sequence[str], needed: Sequence[str], known: Sequence[str]):
    if "" in names:
        raise ValueError(f"{path}, line {line}: column {names.index('') + 1} has no name; name it, or take it out")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}, line {line}: the column {twice[0]} stands twice; take one out")
    for name in names:
        free = [column for column in (*needed, *known) if column not in names]
        if name not in known and (meant := get_close_matches(name, free, 1, ALIKE)):
            raise ValueError(f"{path}, line {line}: a column is called {name}; did you mean {meant[0]}?")
    if missing := [name for name in needed if name not in names]:
        other = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
        fix = f"its values are separated by {other!r}: save it with commas" if other else "add them"
        raise ValueError(f"{path} lacks the columns {missing}; found {list(names)}; {fix}")
