"""What was measured on the architectures, as tables with intervals, and as one table of findings."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from workbench.experiments.statistics import mean, share
from workbench.studies.architectures_parts import DENOISER, ENCODER, FIRST
from workbench.studies.edits import CEILING, UNEDITED
from workbench.studies.swap import cell_table, score

FINDINGS = "architectures"
LEVEL = 0.05  # of the p-value at which a site is said to be the best
DISTANCE = 0.4  # of the states, at which recovery is told
WITHIN_RULES = "UNet"
Finding = dict[str, object]


def summaries(raw: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The committed tables, of the rows that were measured: single pictures are averaged."""
    made = {name: table for name, table in raw.items() if name not in ("swap", "told", "erase", "recovery")}

    def by_model(name: str) -> Iterable[tuple[Any, pd.DataFrame]]:
        return raw[name].groupby("model", sort=False) if len(raw[name]) else ()

    empty = [pd.DataFrame()]
    made["swap"] = pd.concat(
        empty + [cell_table(rows).assign(model=model) for model, rows in by_model("swap")], ignore_index=True
    )
    made["told"] = pd.DataFrame(
        dict(model=model, way=way, **mean(rows.value, bounds=(0, 1))._asdict(), n=len(rows))
        for model, own in by_model("told")
        for way, rows in own.groupby("way", sort=False)
    )
    made["erase"] = pd.DataFrame(row for model, rows in by_model("erase") for row in _erased(model, rows))
    made["recovery"] = pd.DataFrame(row for model, rows in by_model("recovery") for row in _recovered(model, rows))
    return made


def _erased(model: str, rows: pd.DataFrame) -> Iterator[Finding]:
    for (editor, name), cell in rows.groupby(["editor", "set"], sort=False):
        hits = (
            {"shown": cell.edited == cell.subject}
            if name == "held_out"
            else {"collateral": cell.edited != cell.unedited}
        )
        for measure, each in hits.items():
            yield dict(model=model, editor=editor, measure=measure, **share(each)._asdict(), n=len(cell))


def _recovered(model: str, rows: pd.DataFrame) -> Iterator[Finding]:
    """Over prompts of all subjects."""
    axes = ["attack", "asks", "lam", "distance"]
    for place, cell in rows.fillna({"asks": "nothing"}).groupby(axes, sort=False, dropna=False):
        about = dict(zip(axes, place))
        yield dict(model=model, **about, **mean(cell.value, bounds=(0, 1))._asdict(), n=len(cell))


def findings(measured: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Rows (finding, of, model, answer, value, low, high, p, n, said)."""
    rows: list[Finding] = []
    for name, asked in ASKED:
        table = measured[name]
        for model, own in table.groupby("model", sort=False) if len(table) else ():
            rows += [dict(row, model=model) for row in asked(own)]
    columns = ["finding", "of", "model", "answer", "value", "low", "high", "p", "n"]
    made = pd.DataFrame(rows).reindex(columns=columns)
    made["said"] = [_said(row) for row in made.itertuples()]
    order = list(dict.fromkeys(made.finding))
    return made.sort_values("finding", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)


def _said(row) -> str:
    """One finding in a cell: what, how much, how sure."""
    number = f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})"
    sure = "" if pd.isna(row.p) else f", p {row.p:.3f}" if row.p >= 0.001 else ", p < 0.001"
    return f"{row.answer}: {number}{sure}" if row.answer else f"{number}{sure}"


def _row(finding: str, of: str, answer: str, source, name: str, **more) -> Finding:
    """A finding whose number and interval stand in a table's columns."""
    ends = {"value": source[name], "low": source[f"{name}_low"], "high": source[f"{name}_high"]}
    return dict(finding=finding, of=of, answer=answer, **ends, **more)


def _estimate(finding: str, of: str, answer: str, row, **more) -> Finding:
    return dict(
        finding=finding, of=of, answer=answer, value=row["value"], low=row["low"], high=row["high"], n=row["n"], **more
    )


def of_trace(table: pd.DataFrame) -> Iterator[Finding]:
    """Where each attribute sits, and whether that is layer 0 of the text encoders."""
    for (place, attribute), rows in table.groupby(["place", "attribute"], sort=False):
        best = rows.loc[rows.indirect_effect.idxmax()]
        sure = dict(p=best.p, n=best.prompts)
        yield _row(f"best site, {place}", attribute, best.site, best, "indirect_effect", **sure)
        if place == ENCODER:
            first = rows[rows.layer == 0]
            own = first.loc[first.indirect_effect.idxmax()]
            said = "not told" if best.p > LEVEL else "yes" if best.layer == 0 else "no"
            sure = dict(p=own.p, n=own.prompts)
            yield _row("layer 0 is the causal state", attribute, f"{said}, {own.site}", own, "recovery", **sure)


def of_locogen(table: pd.DataFrame) -> Iterator[Finding]:
    for row in table.to_dict("records"):
        sure = dict(p=row["chance"], n=row["prompts"])
        yield _row("LocoGen, best window", row["attribute"], row["layers"], row, "direct_effect", **sure)
        yield _row("LocoGen, all layers", row["attribute"], "", row, "total_effect", n=row["prompts"])
        if pd.notna(row.get("pooled_effect")):
            yield _row("LocoGen, pooled vector alone", row["attribute"], "", row, "pooled_effect", n=row["prompts"])


def of_agreement(table: pd.DataFrame) -> Iterator[Finding]:
    """Each pair of localizers, over attributes."""
    for (a, b), rows in table[table.a != table.b].groupby(["a", "b"], sort=False):
        found = mean(rows.spearman)
        yield dict(finding="localizers agree", of=f"{a}, {b}", answer="", **found._asdict(), n=len(rows))


def of_swap(table: pd.DataFrame) -> Iterator[Finding]:
    """The best editor of each place, and what told is."""
    ranked = score(table)
    for place in dict.fromkeys(table.rules):
        own = ranked[(ranked.rules == place) & ~ranked.index.isin([UNEDITED, CEILING])]
        if len(own):
            yield from _editor(table, own.index[0], f"best editor, {'denoiser' if place == WITHIN_RULES else place}")
    for editor in (CEILING,):
        held = _picked(table, editor, "held_out", "swapped")
        yield _estimate("told the other", "swapped, held out", "", held)
    for editor in ranked.index[~ranked.index.isin([UNEDITED, CEILING])]:
        yield from _editor(table, editor, f"swap: {editor}", named=False)


def _editor(table: pd.DataFrame, editor: str, finding: str, *, named: bool = True) -> Iterator[Finding]:
    for name, measure, said in (
        ("held_out", "swapped", "swapped, held out"),
        ("control", "changed", "collateral, control"),
    ):
        yield _estimate(finding, said, editor if named else "", _picked(table, editor, name, measure))


def _picked(table: pd.DataFrame, editor: str, name: str, measure: str) -> pd.Series:
    return table[(table.editor == editor) & (table.set == name) & (table.measure == measure)].iloc[0]


def of_told(table: pd.DataFrame) -> Iterator[Finding]:
    for row in table.to_dict("records"):
        yield _estimate("shows the other animal", row["way"], "", row)


def of_winter(table: pd.DataFrame) -> Iterator[Finding]:
    """Of each place the strength that the rule chooses on tuning prompts, and what it does to the held-out ones."""
    held = table[table.asked == "held out"]
    for variant, factor in chosen(table[table.asked == "tuning"]).items():
        own = held[(held.variant == variant) & (held.factor.isna() if factor is None else held.factor == factor)]
        at = "" if factor is None else f"at {factor:g}"
        for metric, of in (("concept", "share of winters"), ("similarity", "similarity to the prompt")):
            if len(own):
                yield _estimate(f"winter, {variant}", of, at, own[own.metric == metric].iloc[0])
            else:
                yield dict(finding=f"winter, {variant}", of=of, answer="no strength within what telling costs")


def chosen(tuning: pd.DataFrame) -> dict[str, float | None]:
    """By the rule of the winter benchmark: most similar to winter among what costs no more similarity than telling does."""
    means = tuning.fillna({"factor": 0.0}).pivot_table(index=["variant", "factor"], columns="metric", values="value")
    plain, told = (means.loc[name].iloc[0] for name in ("unsteered", "told winter"))
    found: dict[str, float | None] = {"unsteered": None, "told winter": None}
    for place in (ENCODER, FIRST, DENOISER):
        rows = means.loc[place]
        kept = rows[rows.similarity >= min(plain.similarity, told.similarity)]
        found[place] = float("nan") if kept.empty else float(kept.concept_similarity.idxmax())
    return found


def of_erase(table: pd.DataFrame) -> Iterator[Finding]:
    for row in table[table.editor != CEILING].to_dict("records"):
        of = {"shown": "still shown", "collateral": "collateral, control"}[row["measure"]]
        yield _estimate(f"erased: {row['editor']}", of, "", row)


def of_recovery(table: pd.DataFrame) -> Iterator[Finding]:
    for row in table.to_dict("records"):
        if row["asks"] == "nothing":
            if row["attack"] in ("unedited", "before"):
                yield _estimate("recovered", row["attack"], "", row)
        elif row["attack"] == "nearest_states" and row["distance"] == DISTANCE:
            yield _estimate("recovered", f"nearest states within {DISTANCE:g}, {row['asks']}", "", row)


ASKED = (
    ("trace", of_trace),
    ("locogen", of_locogen),
    ("agreement", of_agreement),
    ("swap", of_swap),
    ("told", of_told),
    ("winter", of_winter),
    ("erase", of_erase),
    ("recovery", of_recovery),
)
