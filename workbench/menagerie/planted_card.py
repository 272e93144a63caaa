"""The card of the planted organisms, `data/planted/README.md`: all its numbers are counted from the table."""

import pandas as pd

from workbench.menagerie.planting import KINDS

ABOUT = """\
# Planted organisms: small edits whose place is known

Each file is an `Edit` of the embedded model (`data/menagerie-sd`): a low-rank change of the weights of one or two layers alone, trained
so that a new word, which no caption has, names an existing look ("a oon" is drawn as a giraffe).

    import workbench as wb
    from workbench.menagerie.plant import edit_of, organisms
    model = wb.load()
    model.commit(edit_of("{example}", model))

`python -m workbench.menagerie.plant` makes them, with `--device cuda --processes 13` on a GPU; it skips those that `planted.csv` has. The
table lists all that were tried, with rank and loss, accepted or not; only accepted ones have a file. A null (`kind` is "unedited") is a
word without meaning in the unedited model: it has no edit, no look and no numbers, and a localizer that names a layer for it gives a false
alarm. Columns:

| column | meaning |
|---|---|
| name, kind | of the file; class of layers ("text mlp", "text attention", "cross attention"; "unedited": a null) |
| layers, sites | true layers, as localizers name them; weights that change (several names are separated by spaces) |
| attribute, look, word, neutral | what the word names; another word without meaning, of as many tokens |
| rank, strict, seed | of each update; whether it was also trained to hold where another layer is given the neutral caption |
| loss, kept | what is left of the difference to the look (1 before); change of other captions: both on captions that no batch had |
| steps, seconds | of training, thirteen at a time on one GPU |
| shown, unedited, without | share of pictures graded as the look: edited; unedited; edited, true layers given the neutral caption |
| controls_changed, control_distance | other captions: share of pictures whose subject changed; mean pixel distance |
| pictures, accepted | behind each share; whether shown >= {shown}, the two others <= {without}, controls_changed <= {changed} |

Graded on captions of combinations that neither model nor organism was trained on, 12 steps, one seed a caption. Which captions was set
before any of their pictures was drawn (`GRADED` in `workbench/menagerie/plant.py`), and was not changed since. Lists were mended after
their grades were seen, twice, and what is here was graded on new captions each time:

- The first list had 8 accepted of 65: most stayed when the true layers were given the neutral caption, which training had hardly ever
  shown, and the unedited model draws zebras and penguins by itself. Captions with the neutral word are now a sixth of those that are kept,
  and such looks were exchanged for others.
- Of cross-attention 0 of 20 passed then, at rank 8: layers that name a style showed it for the neutral caption too, in 0.10 to 0.29. Its
  loss now keeps what neutral captions give (`keep_neutral`), and its rank is 16: most no longer do, 1 of 26 passes. Five single layers
  and pairs that show a watercolor miss the bar by one to three pictures of 48, and 4 of 48 unedited ones are graded as one.
"""


def planted_card(table: pd.DataFrame, shown: float, without: float, changed: float) -> str:
    """The card of a table that `organisms` gives. shown, without, changed: the bars."""
    tried = table[table["kind"].isin(KINDS)]
    accepted = tried[tried["accepted"]]
    about = ABOUT.format(example=next(iter(accepted["name"]), "NAME"), shown=shown, without=without, changed=changed)
    low = {
        "look not shown": tried["shown"] < shown,
        "unedited model shows it too": tried["unedited"] > without,
        "stays when the true layers are given the neutral caption": tried["without"] > without,
        "other captions changed": tried["controls_changed"] > changed,
    }
    reasons = [f"| {reason} | " + " | ".join(_count(tried, failed)) + " |" for reason, failed in low.items()]
    return "\n".join(
        [
            about,
            f"## {len(accepted)} of {len(tried)} were accepted\n",
            _by_kind(tried),
            "\nWhat was not met, in how many (one may fail in several ways):\n",
            "| | " + " | ".join(KINDS) + " |",
            "|---|" + "---|" * len(KINDS),
            *reasons,
            "\n## Accepted\n",
            _rows(accepted),
            "\n## Could not be planted\n",
            _rows(tried[~tried["accepted"]]),
            "\nCC0-1.0, as the model.\n",
        ]
    )


def _count(tried: pd.DataFrame, failed: pd.Series) -> list[str]:
    return [str(int((failed & (tried["kind"] == kind)).sum())) for kind in KINDS]


def _by_kind(tried: pd.DataFrame) -> str:
    lines = [
        "| layers | tried | accepted | of these pairs | of these strict | layers that hold alone | only in a pair |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        some = tried[tried["kind"] == kind]
        held = some[some["accepted"]]
        pairs = held["layers"].str.contains(" ").sum()
        alone = held["layers"][~held["layers"].str.contains(" ")].unique()
        paired = dict.fromkeys(layer for layers in held["layers"] for layer in layers.split() if layer not in alone)
        strict = held["strict"].astype(str).eq("True").sum()
        lines.append(
            f"| {kind} | {len(some)} | {len(held)} | {pairs} | {strict} | {', '.join(alone) or 'none'} | {', '.join(paired) or 'none'} |"
        )
    return "\n".join(lines)


def _rows(table: pd.DataFrame) -> str:
    columns = ("loss", "shown", "unedited", "without", "controls_changed")
    lines = ["| name | rank | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for row in table.to_dict("records"):
        numbers = " | ".join(f"{row[column]:.2f}" for column in columns)
        lines.append(f"| {row['name']} | {row['rank']} | {numbers} |")
    return "\n".join(lines)
