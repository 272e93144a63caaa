"""Pictures of the study of hidden concepts: attacks by editor, the frontier against collateral, and curves of what wins in the end."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.drawing import COLOURS, GREY, SMALL, WIDTH, cells, house, intervals
from workbench.recovery.results import ANY

COLUMNS = {  # of the overview: an attack's settings
    ("closed_form", "lam 0.001, distance 0.2"): "way\nto 0.2",
    ("nearest_states", "distance 0.1"): "states\nto 0.1",
    ("nearest_states", "distance 0.2"): "states\nto 0.2",
    ("nearest_states", "distance 0.4"): "states\nto 0.4",
    ("closed_form", ANY): "closed\nform",
    ("concept_vector", ANY): "vector,\nany",
    ("token_search", None): "token\nsearch",
    ("inversion", None): "inver-\nsion",
    ("completion", "share 0.2"): "0.2 of\nsteps",
    ("completion", "share 0.5"): "0.5 of\nsteps",
    ("relearning", "updates 50"): "relearn\n50",
}
FAMILIES = {
    "floor": "oblique to orthogonal, by floor",
    "resist": "oblique, by resist",
    "rounds": "recipe, hardened in rounds",
    "text": "in the text encoder",
}
BROUGHT = {
    ("nearest_states", "distance 0.2"): "attacked within 0.2",
    ("closed_form", ANY): "attacked without a bound",
}

NEAR = 0.05  # as shares of pictures: names of points that are no farther apart stand in one list
LISTED, LINE = (0.5, 0.84), 0.046  # where the first list begins, and a line's height


def of_setting(table: pd.DataFrame, attack: str, setting: str | None) -> pd.DataFrame:
    """Rows of an attack and a setting, by editor; setting None: of the attack's only one."""
    rows = table[table.attack == attack]
    return (
        rows[rows.setting == setting if setting else rows.setting != ANY].drop_duplicates("editor").set_index("editor")
    )


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each editor: what it leaves and changes, and what each attack brings back."""
    found = table.drop_duplicates("editor").set_index("editor")[["before", "redrawn", "collateral"]]
    found = found.rename(columns={"before": "before", "redrawn": "other\nseeds", "collateral": "collat-\neral"})
    for place, name in COLUMNS.items():
        found[name] = of_setting(table, *place).after.reindex(found.index)
    return found


def figures(table: pd.DataFrame) -> dict[str, Figure]:
    made = {"hidden": overview(table), "hidden_frontier": frontier(table)}
    if len(curved := [name for name in ("completion", "relearning") if name in set(table.attack)]):
        made["hidden_curves"] = curves(table, curved)
    return made


@house
def overview(table: pd.DataFrame) -> Figure:
    """What every attack brings back, of every editor."""
    grid = wide(table)
    notes = grid.map(lambda value: "" if pd.isna(value) else f"{value:.2f}")
    figure, ax = plt.subplots(figsize=(WIDTH, 1.5 + 0.27 * len(grid)), layout="constrained")
    cells(grid, ax=ax, notes=notes, cmap="rocket_r", vmin=0, vmax=1, bar="share of pictures", rotation=0)
    of = int(table.n.max())
    ax.set_title(
        f"The erased zebra, shown again: {of} pictures a cell; the unedited model shows it in {table.unedited.mean():.2f}\n"
        "(before: no attack; other seeds: in any of the redraws; collateral: control pictures changed)",
        loc="left",
    )
    return figure


@house
def frontier(table: pd.DataFrame) -> Figure:
    """Collateral against what attacks bring back, one point for each edit, families joined."""
    figure, axes = plt.subplots(1, len(BROUGHT), figsize=(WIDTH, 4.4), layout="constrained", sharey=True, sharex=True)
    names = list(dict.fromkeys(table.editor))
    for ax, (place, title) in zip(np.atleast_1d(axes), BROUGHT.items()):
        rows = of_setting(table, *place)
        rows = rows.reindex([name for name in names if name in rows.index])
        joined = [family for family in FAMILIES if (rows.family == family).sum() > 1]
        points(ax, rows[~rows.family.isin(joined)], COLOURS[0], "other editors", "o")
        for number, family in enumerate(FAMILIES, 1):
            if family in joined:
                mark = "o-" if family != "text" else "o"
                points(ax, rows[rows.family == family], COLOURS[number], FAMILIES[family], mark)
        named(ax, rows)
        ax.axhline(table.unedited.mean(), color=GREY, ls="--", lw=1, zorder=0)
        ax.set(xlabel="collateral: share of control pictures changed", ylim=(-0.03, 1.03))
        ax.set_title(title, loc="left")
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("share of pictures that show the erased zebra")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(
        "What an attack on the text states brings back, against what the edit breaks (95 % intervals; dashed: unedited)"
    )
    return figure


def named(ax: Axes, rows: pd.DataFrame):
    """Names beside points; of points that lie together in a list where there is room, with a line to them."""
    rows, groups = rows.sort_values("collateral"), []
    for name, row in rows.iterrows():
        last = rows.loc[groups[-1][-1]] if groups else None
        if last is not None and row.collateral - last.collateral < NEAR and abs(row.after - last.after) < 2 * NEAR:
            groups[-1].append(name)
        else:
            groups.append([name])
    top = LISTED[1]
    for group in groups:
        at = tuple(rows.loc[group, ["collateral", "after"]].mean())
        if len(group) == 1:
            ax.annotate(group[0], at, xytext=(-5, -11), textcoords="offset points", ha="right", fontsize=SMALL)
        else:
            line = dict(arrowstyle="-", color=GREY, lw=0.7)
            place = dict(xytext=(LISTED[0], top), va="top", arrowprops=line, bbox=dict(fc="white", ec="none", pad=1))
            ax.annotate("\n".join(group), at, fontsize=SMALL, **place)
            top -= LINE * (len(group) + 0.7)


def points(ax: Axes, rows: pd.DataFrame, colour, label: str, mark: str):
    """Points with intervals along both axes."""
    style = dict(fmt=mark, color=colour)
    intervals(ax, rows.collateral, rows.after, rows.after_low, rows.after_high, label=label, **style)
    intervals(
        ax, rows.after, rows.collateral, rows.collateral_low, rows.collateral_high, lying=True, fmt="none", color=colour
    )


@house
def curves(table: pd.DataFrame, attacks: list[str]) -> Figure:
    """Completion and relearning over their budgets, a line for each editor."""
    figure, axes = plt.subplots(1, len(attacks), figsize=(WIDTH, 4.2), layout="constrained", sharey=True)
    names = list(dict.fromkeys(table[table.attack.isin(attacks)].editor))
    for ax, attack in zip(np.atleast_1d(axes), attacks):
        rows = table[(table.attack == attack) & (table.setting != ANY)]
        budgets = list(dict.fromkeys(rows.setting))
        for number, name in enumerate(names):
            own = rows[rows.editor == name].set_index("setting").reindex(budgets)
            style = dict(color=COLOURS[number % len(COLOURS)], ls=("-", "--", ":")[number // len(COLOURS)])
            ax.plot(range(len(budgets)), own.after, marker=".", lw=1.2, label=name, **style)
        ax.axhline(table.unedited.mean(), color=GREY, ls="--", lw=1, zorder=0)
        ax.set_xticks(range(len(budgets)), [setting.split()[-1] for setting in budgets])
        what = {"completion": "share of steps that the unedited model does", "relearning": "gradient steps"}[attack]
        ax.set(ylim=(-0.03, 1.03), xlabel=what)
        ax.set_title(attack, loc="left")
    np.atleast_1d(axes)[0].set_ylabel("share of pictures that show the erased zebra")
    figure.legend(*np.atleast_1d(axes)[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle("What wins in the end: completion and relearning over their budgets (dashed: unedited)")
    return figure
