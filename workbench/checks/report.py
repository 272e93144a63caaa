"""Claims about a model: taken down while it is checked, and shown."""

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import TypeVar

import pandas as pd

COLUMNS = ("site", "claim", "expected", "seen", "passed")
SHOWN = 20  # rows of a kind in the repr
Value = TypeVar("Value")


@dataclass(frozen=True, repr=False)
class ModelCheck:
    """What `workbench.check` found.

    table: one row for each claim, with the columns site ("" for the whole pipeline), claim, expected, seen and passed, which is
    missing where the pipeline cannot be asked; `seen` then says why. calls: of the denoiser that it took. about: the model and the
    settings.

    >>> found = wb.check(model, height=32, width=32, progress=False)
    >>> found.passed, found.calls, len(found.failures)
    (True, 16, 0)
    >>> list(found.table)
    ['site', 'claim', 'expected', 'seen', 'passed']
    """

    table: pd.DataFrame
    calls: int
    about: str

    @property
    def passed(self) -> bool:
        """Whether every claim holds that could be asked."""
        return self.failures.empty

    @property
    def failures(self) -> pd.DataFrame:
        """The claims that do not hold."""
        return self.table[self.table.passed.eq(False).fillna(False)]

    @property
    def unasked(self) -> pd.DataFrame:
        """What the pipeline cannot be asked, and why."""
        return self.table[self.table.passed.isna()]

    def counts(self) -> pd.DataFrame:
        """How often each claim holds, does not, and could not be asked.

        >>> found = wb.check(model, height=32, width=32, progress=False)
        >>> int(found.counts()["does not"].sum())
        0
        """
        said = self.table.passed.map({True: "holds", False: "does not"}, na_action="ignore").fillna("not asked")
        counted = pd.crosstab(self.table.claim, said).reindex(columns=["holds", "does not", "not asked"], fill_value=0)
        return counted.reindex(self.table.claim.unique()).rename_axis(columns=None)

    def _summary(self) -> str:
        wrong, unasked = len(self.failures), len(self.unasked)
        return (
            f"{self.about}: {len(self.table) - wrong - unasked} claims hold, {wrong} do not, {unasked} could not be asked; "
            f"{self.calls} calls of the denoiser"
        )

    def __repr__(self):
        lines = [self._summary()]
        for title, rows in (("does not hold", self.failures), ("not asked", self.unasked)):
            lines += [
                f"{title}: {' '.join(filter(None, (row.site, row.claim)))}: {row.seen}; expected: {row.expected}"
                for row in rows.head(SHOWN).itertuples()
            ]
            lines += [f"{title}: {len(rows) - SHOWN} more, see .table"] if len(rows) > SHOWN else []
        return "\n".join(lines)

    def _repr_html_(self):
        rows = pd.concat([self.failures.head(SHOWN), self.unasked.head(SHOWN)])
        shown = "" if rows.empty else rows.to_html(index=False)
        return f"<p>{escape(self._summary())}</p>{shown}{self.counts().to_html()}"


@dataclass
class Claims:
    """Rows of the table to be."""

    rows: list[tuple[str, str, str, str, bool | None]] = field(default_factory=list)

    def say(self, site: str, claim: str, expected: str, seen: str, passed: bool):
        """Take a claim down."""
        self.rows.append((site, claim, expected, seen, bool(passed)))

    def say_unless(self, site: str, claim: str, expected: str, wrong: str | None):
        """Take a claim down that holds unless something is wrong."""
        self.say(site, claim, expected, expected if wrong is None else wrong, wrong is None)

    def unasked(self, site: str, claim: str, expected: str, why: str):
        """Take down what the pipeline cannot be asked."""
        self.rows.append((site, claim, expected, why, None))

    def tried(self, claim: str, expected: str, run: Callable[[], Value]) -> Value | None:
        """What a run returns; None, with the claim failed, where it raises."""
        try:
            return run()
        except Exception as error:  # of whatever kind: the check goes on, and the table says what happened
            self.say("", claim, expected, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", False)
            return None

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=list(COLUMNS)).astype({"passed": "boolean"})
