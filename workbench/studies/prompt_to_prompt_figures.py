"""Pictures of the Prompt-to-Prompt benchmark."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr

from workbench import plot
from workbench.interventions import World
from workbench.models import Model
from workbench.p2p.edit import LocalBlend, prompt_to_prompt

# Arms of the study swap by the share of the steps that they inject: (share, arm), by curve.
CURVES = {
    "cross-attention, self 0": [(0.0, "new prompt"), *((f, f"cross {f:g}") for f in (0.2, 0.4, 0.6, 0.8, 1.0))],
    "self-attention to 1/4, cross 0.8": [
        (0.0, "cross 0.8"),
        (0.2, "self 0.2"),
        (0.4, "P2P"),
        (0.8, "self 0.8"),
        (1.0, "self 1"),
    ],
    "self-attention of all sizes, cross 0.8": [
        (0.0, "cross 0.8"),
        (0.4, "self 0.4, all sizes"),
        (0.8, "self 0.8, all sizes"),
    ],
    "cross-attention of the new word, others 0.8, self 0.4": [
        *((f, f"word {f:g}") for f in (0.0, 0.2, 0.4)),
        (0.8, "P2P"),
    ],
}
SHOWN = {
    "target": "share that shows the target",
    "background": "change outside both subjects (0 to 1)",
    "position kept": "share with the position kept",
}


def curves(table: pd.DataFrame, path: Path):
    """What the injected share of the steps does, targets against background for every arm, and reweighting."""
    cells = table[table.study == "swap"].set_index(["measure", "arm"])[["value", "low", "high"]]
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    for ax, (measure, label) in zip(axes[0], SHOWN.items()):
        for offset, (name, points) in enumerate(CURVES.items()):
            rows = cells.loc[measure].loc[[arm for _, arm in points]]
            at = [share + 0.006 * (offset - 1.5) for share, _ in points]
            ax.errorbar(
                at, rows.value, [rows.value - rows.low, rows.high - rows.value], marker="o", ms=4, capsize=2, label=name
            )
        ax.set(xlabel="share of the steps that are injected", ylabel=f"{label}, 95 % interval", ylim=(0, None))
    axes[0, 0].set_title(f"One animal for another, {int(table[table.study == 'swap'].n.max())} pairs")
    axes[0, 1].set_title("What changes beside them")
    axes[0, 2].set_title("Whether it stays left or right (grader)")
    axes[0, 1].legend(fontsize=8)
    paired(axes[1, 0], cells)
    for ax, (measure, label) in zip(
        axes[1, 1:],
        (
            ("target probability", "grader's probability of it"),
            ("similarity to the target", "grader's similarity to the prompt (cosine)"),
        ),
    ):
        rows = table[(table.study == "reweight") & (table.measure == measure) & (table.arm != "source")]
        at = [float(arm.removeprefix("c ")) for arm in rows.arm]
        ax.errorbar(at, rows.value, [rows.value - rows.low, rows.high - rows.value], marker="o", capsize=3)
        ax.axvline(1, color="grey", ls=":", label="c = 1: the source")
        ax.set(
            xlabel="c, factor of the word's attention",
            ylabel=f"{label}, 95 %",
            title=f"Reweighting a season or a style, {int(rows.n.max())} prompts",
        )
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def paired(ax, cells: pd.DataFrame):
    """Change outside the subjects, of every arm less the new prompt's of the same pairs; beside it the share that shows the target."""
    rows = cells.loc["background, minus new prompt"].iloc[::-1]
    ax.errorbar(
        rows.value, range(len(rows)), xerr=[rows.value - rows.low, rows.high - rows.value], fmt="o", ms=4, capsize=2
    )
    ax.axvline(0, color="grey", ls=":")
    ax.locator_params(axis="x", nbins=5)
    shares = cells.loc["target"].value
    ax.set_yticks(range(len(rows)), [f"{arm} ({shares[arm]:.2f})" for arm in rows.index], fontsize=7)
    ax.set(
        xlabel="change outside both subjects, minus the new prompt's, 95 %",
        ylabel="",
        title=f"Left of 0 keeps more (target there; new prompt {shares['new prompt']:.2f})",
    )


def pictures(model: Model, pairs, path: Path, steps: int | None):
    """Pairs as rows: the source, the new prompt from the same noise, and edits."""
    rows = []
    for i, pair in enumerate(pairs):
        blend = LocalBlend(pair.words, resolution=0.5, threshold=0.7)
        arms = {
            "P2P": {},
            "P2P, blend 0.5,\nthreshold 0.7": dict(blend=blend),
            "self 0.8, all sizes": dict(self_replace_steps=0.8, self_resolution=1.0),
        }
        edits = [prompt_to_prompt(model, pair.source, {name: pair.target}, **more)[1] for name, more in arms.items()]
        worlds = [World("source", pair.source), World("new prompt", pair.target), *edits]
        run = model.run(worlds, seeds=[1000 + i], num_inference_steps=steps, progress=False)
        rows.append(run.images.isel(seed=0, drop=True))
    names = [f"{pair.words[0]} -> {pair.words[1]}\n{pair.source.split(maxsplit=2)[2]}" for pair in pairs]
    sheet = (
        xr.concat(rows, dim=pd.Index(names, name="pair")).rename(world="drawn by").transpose("pair", "drawn by", ...)
    )
    ax = plt.subplots(figsize=(8.5, 1.5 * len(pairs)), layout="constrained")[1]
    plot.image_grid(sheet, ax=ax, title="One starting noise in each row").set_ylabel("")
    ax.tick_params(axis="x", rotation=0, labelsize=8)
    ax.figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(ax.figure)
