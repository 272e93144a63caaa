"""Pictures of results. Every function takes `ax=None`, draws there, and returns the axes; none shows or saves."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes

from workbench.arguments import at_least_zero, checked, instance_of, mapping_of
from workbench.drawing import COLOURS, GREY, SMALL, WIDTH, cells, dots, intervals, place_names, room, wrapped
from workbench.engine import Run
from workbench.experiments.results import UNITS, drawable
from workbench.experiments.statistics import pareto
from workbench.inputs import flag, number, shown, text
from workbench.localize.compare import Comparison
from workbench.pictures import as_array
from workbench.recovery.results import BUDGETS, Recovery, said
from workbench.steering.direction import DIRECTION, Direction

LEAST = 0.05  # of an effect that gets a dot, in its own unit
FEW = 6  # prompts: of fewer, chance alone gives all the same sign in more than one case of twenty
NAMES = {
    "indirect_effect": "indirect effect",
    "direct_effect": "direct effect",
    "total_effect": "total effect",
    "kind": "component",
    "inputs": "what is given the target prompt",
    "concept_similarity": "similarity to the concept",
    "similarity": "similarity to the original prompt",
    "concept": "images classified as the concept",
    "probability": "right subject",
    "change": "change against unsteered",
    "steps": "denoising steps (share of the run)",
    "distance": "distance of the text states from the prompt's",
    "strength": "times the concept's vector",
    "share": "share of the steps by the unedited model",
    "updates": "gradient steps on the edited weights",
    "window": "cross-attention layers given the target prompt",
}
DOT = f"dot: at least {LEAST:g}, 95 % interval without 0"
# How texts name parts of the model, kinds of sites, and tokens.
PARTS = {
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "text_encoder_3": "third text encoder",
    "unet": "UNet",
    "transformer": "transformer",
}
WORDS = {
    "cross": "cross-attention",
    "joint": "joint attention",
    "self": "self-attention",
    "ff": "feed-forward",
    "hidden": "hidden state",
    "k": "keys",
    "v": "values",
    "kv": "keys and values",
    "startoftext": "start",
    "endoftext": "end",
    "eos": "end",
    "subject": "subject",
    "subject_last": "last subject token",
    "after_subject": "after the subject",
}

COMPARISON = instance_of("workbench.localize.compare:Comparison", "pandas:DataFrame")


def _grid_of(value: Any, argument: str) -> xr.DataArray:
    """Labelled pictures (ROW, COLUMN, y, x, colour), or a run's."""
    images = value.images if isinstance(value, Run) else value
    if not isinstance(images, xr.DataArray) or images.ndim != 5 or images.shape[-1] != 3:
        raise ValueError(f"{argument}={shown(value)}: give a run, or labelled pictures (ROW, COLUMN, y, x, colour)")
    as_array(images)  # which looks at the colours
    return images


@checked(effects=drawable, x=text, y=text, value=text, limit=partial(number, above=0), least=at_least_zero, bar=flag)
def heatmap(
    effects: xr.Dataset,
    x: str,
    y: str,
    value: str | None = None,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    limit: float | None = None,
    least: float = LEAST,
    bar: bool = True,
) -> Axes:
    """Effects over two of their axes: "token", "steps", "site", a site's "layer" and "kind", or LocoGen's "window".

    effects: what `workbench.effects` or `LocoGen.effects` returns, one number for each cell (select the rest:
    `effects.sel(token="eos")`). value: the indirect or direct effect when left out. Colours diverge from zero, up to `limit` when
    given. A dot marks cells of at least the size `least` whose interval leaves out zero and is over six prompts or more. bar:
    whether there is a colour bar. Raises ValueError for several numbers in one cell.

    >>> effects = wb.effects(trace, "probability")
    >>> axes = wb.plot.heatmap(effects, "steps", "layer", title="What brings the zebra back?")
    >>> axes.figure.savefig("heatmap.png")
    """
    value = value or effects.attrs.get("effect", "indirect_effect")
    table = _table(effects, value, x, y)
    if table[value].isna().all():
        axes = [axis for axis in (x, y) if axis in effects.coords]
        empty = "; ".join(f"{axis} {effects[axis].values.tolist()[:6]}" for axis in axes)
        raise ValueError(
            f"heatmap(value={value!r}): no cell has a value ({empty}): no prompt had what was asked there, or the total effect is zero, "
            "where no ratio is defined; draw the effects themselves"
        )
    _check_single("heatmap", effects, table, value, [x, y])
    table = table.assign(dot=(table.significant == True) & (table[value].abs() >= least) & (table.prompts >= FEW))  # noqa: E712
    order = {name: table[name].unique() for name in (x, y)}
    grid, marked = (
        table.pivot(index=y, columns=x, values=name).reindex(index=order[y], columns=order[x])
        for name in (value, "dot")
    )
    marked = marked == True  # noqa: E712, a cell without a value has none
    (across, columns), (down, rows) = (_shorten(order[name], name) for name in (x, y))
    limit = limit or float(np.nanmax(np.abs(grid.to_numpy(float)))) or 1.0
    if ax is None:
        size = (max(4.4, 2.4 + 0.42 * len(columns)), max(2.8, 1.6 + 0.3 * len(rows)))
        ax = plt.subplots(figsize=(min(WIDTH, size[0]), size[1]), layout="constrained")[1]
    label = _label(effects, value)
    if marked.to_numpy().any():
        label += f"\ndot: at least {least:g}, {effects.attrs.get('level', 0.95):.0%} interval without 0"
    cells(
        grid.set_axis(rows, axis=0).set_axis(columns, axis=1),
        ax=ax,
        limit=limit,
        notes=marked.map({True: "•", False: ""}.get).to_numpy() if marked.to_numpy().any() else None,
        bar=label if bar else "",
        title=title or "",
    )
    ax.set(xlabel=across, ylabel=down)
    return ax


@checked(effects=drawable, value=text)
def profile(effects: xr.Dataset, value: str | None = None, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Effects of sites by layer in execution order, with their intervals, one colour for each kind; the dashed line is the total.

    effects: one number for each site (select the rest); value: the indirect or direct effect when left out. Raises ValueError for
    several.

    >>> axes = wb.plot.profile(wb.effects(trace, "similarity"))
    >>> axes = wb.plot.profile(windows.effects(width=2))
    """
    value = value or effects.attrs.get("effect", "indirect_effect")
    table = _table(effects, value, "site")
    _check_single("profile", effects, table, value, ["site"])
    windows = "window" in table
    layers = list(dict.fromkeys(table["window" if windows else "layer"]))
    kinds = list(dict.fromkeys(table.kind))
    if ax is None:
        size = (min(WIDTH, max(4.4, 1.6 + 0.36 * len(layers))), 3.4)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    for i, kind in enumerate(kinds):
        rows = table[table.kind == kind]
        at = [layers.index(layer) for layer in rows["window" if windows else "layer"]]
        aside = 0.7 * ((i + 0.5) / len(kinds) - 0.5)  # kinds of one layer stand side by side
        ends = rows[f"{value}_low"], rows[f"{value}_high"]
        intervals(ax, np.add(at, aside), rows[value], *ends, color=COLOURS[i], label=WORDS.get(kind, kind))
    ax.axhline(0, color="black", lw=0.8)
    if value.endswith("direct_effect"):
        ax.axhline(float(effects.total_effect), color=GREY, ls="--", lw=1, label="total effect")
    label, names = (NAMES["window"], layers) if windows else _shorten(layers, "layer")
    place_names(ax, names, label=label if windows else f"{label}, in execution order")
    level = effects.attrs.get("level", 0.95)
    ax.set(ylabel=f"{_label(effects, value)},\n{level:.0%} interval")
    ax.set_title(title or "", loc="left")
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend(
            fontsize=SMALL,
            ncols=len(kinds) + 1,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            borderpad=0,
            columnspacing=1,
            handletextpad=0.3,
        )
    return ax


@checked(images=_grid_of)
def image_grid(images: xr.DataArray | Run, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Images (ROW, COLUMN, y, x, colour) in [0, 1], or a run's (world, seed, ...); transpose them to lay them otherwise.

    >>> axes = wb.plot.image_grid(run)
    >>> axes = wb.plot.image_grid(run.images.transpose("seed", "world", ...), title="Two seeds")
    """
    rows, columns, height, width = images.shape[:4]
    names = [[str(label) for label in images[axis].values] for axis in images.dims[:2]]
    if ax is None:
        beside = 0.7 + 0.065 * min(24, max(map(len, names[0])))  # inches
        each = min(1.2, (WIDTH - beside) / columns)
        below = 0.8 + 0.15 * max(len(name) // 12 for name in names[1])
        size = (max(2.4, beside + each * columns), below + each * rows * height / width)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    sheet = np.ones((rows * (height + 2), columns * (width + 2), 3), np.float32)
    for r in range(rows):
        for c in range(columns):
            top, left = r * (height + 2), c * (width + 2)
            sheet[top : top + height, left : left + width] = images[r, c]
    ax.imshow(sheet)
    letters = room(ax, columns, SMALL)
    captions = [wrapped(name, letters) for name in names[1]]
    long = any(len(line) > letters for caption in captions for line in caption.split("\n"))
    at = [np.arange(count) * (length + 2) + length / 2 for count, length in ((rows, height), (columns, width))]
    ax.set_xticks(at[1], names[1] if long else captions, rotation=90 if long else 0)
    ax.set_yticks(at[0], [wrapped(name, 24) for name in names[0]])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel=images.dims[1], title=title or "")
    if images.dims[0] != "world":
        ax.set_ylabel(images.dims[0])
    return ax


@checked(word_map=instance_of("xarray:DataArray", fix="a map (y, x), such as maps.word('zebra')[0, 0, 0, 0, 0]"))
def overlay(
    image, word_map: xr.DataArray, *, ax: Axes | None = None, title: str | None = None, bar: bool = True
) -> Axes:
    """A word's attention map (y, x) over its image (y, x, colour) in [0, 1] or a PIL one. bar: whether there is a colour bar.

    >>> zebra = maps.word("zebra").mean(["site", "steps", "head"])
    >>> axes = wb.plot.overlay(maps.images[0, 0], zebra[0, 0], title="zebra")
    """
    (picture,) = as_array(image)
    image = picture
    ax = ax or plt.subplots(figsize=(3.6, 3), layout="constrained")[1]
    place = (0, image.shape[1], image.shape[0], 0)
    ax.imshow(image, extent=place)
    shown = ax.imshow(
        word_map.transpose("y", "x"), extent=place, cmap="inferno", alpha=0.55, interpolation="bilinear", vmin=0
    )
    if bar:
        ax.figure.colorbar(shown, ax=ax, label="attention probability")
    ax.set_axis_off()
    ax.set_title(title or "")
    return ax


@checked(comparison=COMPARISON)
def ranks(comparison: Comparison | pd.DataFrame, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """A `Comparison`'s layers as each localizer ranks them, 1 for the strongest; or such a table, which `Comparison.table` gives.

    >>> axes = wb.plot.ranks(comparison)
    """
    table = comparison.table(resamples=2) if isinstance(comparison, Comparison) else comparison
    grid = table.pivot(index="layer", columns="localizer", values="rank")
    grid = grid.reindex(index=table.layer.unique(), columns=table.localizer.unique())
    ax = ax or plt.subplots(figsize=(4.4, 4.8), layout="constrained")[1]
    _, short = _shorten([name.removesuffix(".cross") for name in grid.index], "layer")
    grid.index = [f"{name} ({number})" for number, name in enumerate(short)]
    grid.columns = [name.replace(" ", "\n") for name in grid]
    cells(grid, ax=ax, cmap="viridis_r", notes=grid.astype(int), title=title or "")
    ax.set(xlabel="localizer", ylabel="cross-attention layer (number)")
    return ax


@checked(comparison=COMPARISON)
def agreement(comparison: Comparison | pd.DataFrame, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Spearman correlations over layers between a `Comparison`'s localizers, with their intervals; on the diagonal, between halves of
    the prompts. Or a table of them, which `Comparison.agreement` gives.

    >>> axes = wb.plot.agreement(comparison)
    """
    table = comparison.agreement() if isinstance(comparison, Comparison) else comparison
    names = list(dict.fromkeys([*table.a, *table.b]))
    grid = pd.DataFrame(np.nan, names, names)
    notes = pd.DataFrame("", names, names)
    for row in table.itertuples():
        for a, b in ((row.a, row.b), (row.b, row.a)):
            grid.loc[a, b], notes.loc[a, b] = row.spearman, f"{row.spearman:.2f}\n({row.low:.2f} to\n{row.high:.2f})"
    ax = ax or plt.subplots(figsize=(4.6, 3.6), layout="constrained")[1]
    grid.columns = [name.replace(" ", "\n") for name in grid]
    cells(grid, ax=ax, limit=1.0, notes=notes, title=title or "")
    ax.set(xlabel="Spearman correlation over layers (95 % interval)")
    return ax


@checked(
    table=instance_of("pandas:DataFrame", fix="a table, as Sweep.table() or Search.table gives it"),
    concept=text,
    fidelity=text,
    by=text,
)
def frontier(
    table: pd.DataFrame,
    concept: str,
    fidelity: str,
    *,
    by: str | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Fidelity against concept of each row, with intervals, and a line through those that no other row of its kind beats.

    table: as `Sweep.table` and `Search.table` give it: NAME, NAME_low, NAME_high. by: a column whose values are drawn as kinds apart.

    >>> concept, two = wb.Concept("a photo in winter"), winter.at("text_encoder.[01].mlp")
    >>> sweep = wb.steer_sweep(model, prompts, two, concept, wb.SweepSpec(strengths=(1.0, 2.0)))
    >>> axes = wb.plot.frontier(sweep.table(), "concept_similarity", "similarity")
    """
    columns = {"concept": concept, "fidelity": fidelity} | ({} if by is None else {"by": by})
    for argument, name in columns.items():
        ends = ("",) if argument == "by" else ("", "_low", "_high")
        if lost := [f"{name}{end}" for end in ends if f"{name}{end}" not in table]:
            raise KeyError(
                f"{argument}={name!r}: the table has no column {lost[0]!r}; it has {', '.join(map(str, table))}"
            )
    ax = ax or plt.subplots(figsize=(5.6, 4), layout="constrained")[1]
    kinds = [(None, table)] if by is None else list(table.groupby(by, sort=False))
    for colour, (kind, rows) in zip(COLOURS, kinds):
        at, up = ((rows[name], rows[f"{name}_low"], rows[f"{name}_high"]) for name in (concept, fidelity))
        pale = dict(color=colour, alpha=0.5, lw=0.6, capsize=0)
        intervals(ax, at[0], *up, **pale, label=kind)
        intervals(ax, up[0], *at, lying=True, **pale)
        front = rows[pareto(rows, concept, fidelity)].sort_values(concept)
        ax.plot(front[concept], front[fidelity], color=colour, lw=1.5, label="Pareto front" if by is None else None)
    across, up = (f"{NAMES.get(name, name)} ({UNITS.get(name, name)})" for name in (concept, fidelity))
    ax.set(xlabel=f"{across}, 95 % interval", ylabel=f"{up}, 95 % interval", title=title or "")
    ax.legend(fontsize=SMALL)
    return ax


@checked(recovery=instance_of("workbench.recovery.results:Recovery"))
def recovery(recovery: Recovery, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """How often a concept is shown after each attack of a `Recovery`, with intervals, beside what its controls bring back; lines: by the
    unedited model, and by the edited one before any attack.

    >>> axes = wb.plot.recovery(recovered)
    """
    table = recovery.table()
    rows = table.rename(columns={"after": "value", "after_low": "low", "after_high": "high"})
    rows.index = [
        f"{name.replace('_', ' ')}{f', {setting}' if setting else ''}"
        for name, setting in zip(table.attack, table.setting)
    ]
    if ax is None:
        ax = plt.subplots(figsize=(WIDTH, 1.4 + 0.2 * len(rows)), layout="constrained")[1]
    for asks, mark, what in (
        ("control", "x", f"the same, asking for {recovery.control!r}"),
        ("random", "|", "at random"),
    ):
        ax.plot(rows[asks], np.arange(len(rows)), mark, color=COLOURS[1], ms=6, mew=1.5, label=what)
    lines = {"edited": table.before[0], "unedited": table.unedited[0]}
    dots(rows, ax=ax, lines=lines, title=title or "", color=COLOURS[0], label="after the attack")
    count = recovery.data.sizes["prompt"] * recovery.data.sizes["seed"]
    ax.set(xlim=(-0.03, 1.03), xlabel=f"share of {count} pictures that show {recovery.concept!r} (95 % interval)")
    ax.legend(fontsize=SMALL, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@checked(recovery=instance_of("workbench.recovery.results:Recovery"), attack=text)
def recovery_curve(
    recovery: Recovery, attack: str = "relearning", *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """How often a concept is shown over an attack's budget, by what was asked for, with intervals; lines as of `recovery`.

    >>> axes = wb.plot.recovery_curve(recovered, "completion")
    """
    table, budget = recovery.curve(attack), BUDGETS[attack]
    places = sorted(table[budget].unique())
    ax = ax or plt.subplots(figsize=(5.6, 3.4), layout="constrained")[1]
    for colour, (asks, rows) in zip(COLOURS, table.groupby("asks", sort=False)):
        label = {"concept": recovery.concept, "control": f"control: {recovery.control}"}.get(asks, asks)
        at = [places.index(each) for each in rows[budget]]
        intervals(ax, at, rows.value, rows.low, rows.high, fmt="o-", color=colour, label=label)
    for name, dash in (("unedited", "--"), ("before", ":")):
        value = float(recovery.data[name].sel(metric="concept").mean())
        ax.axhline(value, color=GREY, ls=dash, lw=1, zorder=0, label={"before": "edited"}.get(name, name))
    place_names(ax, [said(each) for each in places], label=NAMES[budget])
    ax.set(ylim=(-0.03, 1.03), ylabel=f"share that shows {recovery.concept!r}", title=title or "")
    ax.legend(fontsize=SMALL, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@checked(directions=mapping_of(DIRECTION, "{'winter': wb.direction(...)}"))
def activation_difference(
    directions: Mapping[str, Direction], *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """How far each concept moves the activations at each site, in multiples of their mean norm; bars are standard errors.

    >>> axes = wb.plot.activation_difference({"winter": winter, "half of it": winter * 0.5})
    """
    sites = list(dict.fromkeys(site for direction in directions.values() for site in direction.sites))
    if ax is None:
        size = (min(WIDTH, max(4.4, 1.6 + 0.36 * len(sites))), 3.4)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    for colour, (name, direction) in zip(COLOURS, directions.items()):
        rows = direction.table()
        at = [sites.index(site) for site in rows.site]
        ends = rows.relative_length - rows.relative_error, rows.relative_length + rows.relative_error
        intervals(ax, at, rows.relative_length, *ends, fmt="o-", color=colour, label=name)
    label, names = _shorten(sites, "site")
    place_names(ax, names, label=f"{label}, in execution order")
    ax.set(ylabel="difference of means / mean activation norm", title=title or "")
    ax.set_ylim(0, auto=True)  # a shared axis goes on to grow
    ax.legend(fontsize=SMALL)
    return ax


def _table(effects: xr.Dataset, value: str, *axes: str) -> pd.DataFrame:
    names = [value, f"{value}_low", f"{value}_high", "significant", "prompts"]
    if lost := [name for name in names if name not in effects.data_vars]:
        known = [str(name).removesuffix("_low") for name in effects.data_vars if str(name).endswith("_low")]
        raise KeyError(f"value={value!r}: the effects have no {lost[0]!r}; value may be {', '.join(map(repr, known))}")
    for argument, axis in zip(("x", "y") if len(axes) > 1 else ("effects",), axes):
        if axis not in effects.coords:
            raise KeyError(f"{argument}={axis!r}: the effects have the axes {', '.join(map(str, effects.coords))}")
    return effects[names].to_dataframe().reset_index().dropna(subset=[value])


def _check_single(name: str, effects: xr.Dataset, table: pd.DataFrame, value: str, places: list[str]):
    """Raise unless a table has one value for each place."""
    if not table.duplicated(places).any():
        return
    first, apart = places[0], [axis for axis in effects[value].dims if axis not in places]
    apart = [axis for axis in apart if table.groupby(places)[axis].nunique().max() > 1]
    given, each = (f"x={first!r}, y={places[1]!r}", "cell") if len(places) > 1 else ("", first)
    raise ValueError(
        f"{name}({given}): several values for one {each}, which differ in {apart}; select one, as in "
        f"effects.sel({apart[0]}={table[apart[0]].iloc[0]!r})"
    )


def _label(effects: xr.Dataset, value: str) -> str:
    unit = "of the total effect" if value in ("recovery", "share") else effects.attrs["unit"]
    return f"{NAMES.get(value, value)} ({unit})"


def _shorten(labels: Sequence, axis: str) -> tuple[str, list[str]]:
    """An axis in words, and its labels without what all begin with, up to a dot; tokens as words, not numbers."""
    labels = [str(label) for label in labels]
    name = NAMES.get(axis, axis)
    if axis == "token":
        labels = [label.split(":", 1)[1] if label.split(":")[0].isdecimal() else label for label in labels]
    if axis not in ("layer", "site"):
        return name, [WORDS.get(label, label) for label in labels]
    parts = [label.split(".") for label in labels if "." in label]  # "all" is no place
    shared = 0
    while len(parts) > 1 and len({tuple(part[: shared + 1]) for part in parts}) == 1:
        shared += 1
    begin = ".".join(parts[0][:shared]) + "." if shared else ""
    of = ".".join([PARTS.get(parts[0][0], parts[0][0]), *parts[0][1:shared]]) if shared else ""
    return f"{of} {name}".strip(), [label.removeprefix(begin) for label in labels]
