"""Do the intervals hold what they promise? `python -m workbench.studies.coverage`.

A causal trace of 200 prompts and 4 seeds stands for the population: small studies, as people make them, are drawn from it, and it is
counted how often the 95 % interval of `workbench.effects` holds the population's effect. Then the same for p-values: the signs of whole
prompts' effects are exchanged at random, so that no site has an effect, and it is counted how often one is found.

Bootstraps stand beside it. Writes `coverage.csv` (a row for each size of study, metric and sort of interval), `coverage_sites.csv` (for
each site too), `false_alarms.csv` and `coverage.png`. Finished prompts are kept in `runs/coverage`, which several processes may fill
together.
`--redraw` draws from the tables in `--out`.
"""

import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
import xarray as xr
from matplotlib.figure import Figure

import workbench as wb
from workbench.drawing import COLOURS, GREY, WIDTH, house, intervals, save
from workbench.experiments.statistics import ends, expanded, resampled_means, share
from workbench.menagerie.captions import caption
from workbench.menagerie.world import sample_scene
from workbench.progress import Bar
from workbench.studies.attribution import log_odds

SIZES = ((6, 1), (6, 2), (12, 1), (12, 2), (24, 1), (24, 2))  # prompts and seeds of a small study
KEYS = ["metric", "interval", "prompts", "seeds"]
INTERVALS = ("effects", "percentile", "expanded")
METRICS = ("probability", "log_odds")
NOMINAL, PASSES = 0.95, (0.90, 0.98)
ALPHA = 0.05


@dataclass
class CoverageOptions:
    prompts: int = 200
    """Of the population."""
    seeds: int = 4
    """Of the population."""
    studies: int = 400
    """Small studies of each size."""
    noise_multiple: float = 6.0
    num_inference_steps: int = 8
    batch_size: int = 32
    device: str = "cpu"
    runs: Path = Path("runs/coverage")
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the tables in `out`."""


def main(options: CoverageOptions):
    if not options.redraw:
        population = traced(options)
        options.out.mkdir(parents=True, exist_ok=True)
        sites = coverage(population, options.studies)
        for name, table in {
            "coverage": summary(sites),
            "coverage_sites": sites,
            "false_alarms": false_alarms(population, options.studies),
        }.items():
            table.round(4).to_csv(options.out / f"{name}.csv", index=False)
    table, alarms = (pd.read_csv(options.out / f"{name}.csv") for name in ("coverage", "false_alarms"))
    print(table.to_string(index=False), alarms.to_string(index=False), sep="\n\n")
    save(figure(table, alarms), options.out / "coverage.png")


def traced(options: CoverageOptions) -> xr.Dataset:
    """The population: a causal trace of six layers' components in the text encoder, at all tokens."""
    spec = wb.TraceSpec(
        sites=("text_encoder.{0,1,2,4,8,11}.{attention,mlp}",),
        tokens=("all",),
        noise_multiple=options.noise_multiple,
        draws=1,
        seeds=tuple(range(options.seeds)),
        num_inference_steps=options.num_inference_steps,
    )
    return wb.causal_trace(
        wb.load(device=options.device),
        population_of(options.prompts),
        spec,
        scorer=wb.Scorer(device=options.device),
        folder=options.runs,
        batch_size=options.batch_size,
    )


def population_of(count: int) -> wb.PromptSet:
    """Different captions of the world's own grammar, of one subject that is called by its name."""
    rng, texts, labels = random.Random("coverage"), {}, wb.prompt_set("object").labels
    while len(texts) < count:
        scene = sample_scene(rng)
        plain = scene.count == 1 and not (scene.beside or scene.individual or scene.hat)
        if plain and scene.subject in labels:  # of which a zebra crossing is none
            text = caption(scene, rng, paraphrase=0)
            texts[text] = wb.Prompt(text, subject=scene.subject, value=scene.subject)
    return wb.PromptSet("captions", tuple(texts.values()), labels)


def measured(population: xr.Dataset, metric: str) -> xr.Dataset:
    """The population on the probability or its log-odds, as the metric that `effects` is asked for."""
    chosen = population.sel(metric=["probability"])
    if metric == "log_odds":
        chosen = chosen.map(log_odds, keep_attrs=True)
    return chosen.assign_coords(metric=[metric])


def drawn(population: xr.Dataset, prompts: int, seeds: int, rng: np.random.Generator) -> xr.Dataset:
    """One small study: prompts drawn with replacement, so that the population is all there is; different seeds."""
    one = population.isel(
        prompt=rng.integers(population.sizes["prompt"], size=prompts),
        seed=rng.choice(population.sizes["seed"], size=seeds, replace=False),
    )
    return one.assign_coords(prompt=np.arange(prompts))


def ends_of(study: xr.Dataset, metric: str, interval: str) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals of a small study's effects, (site,): as `workbench.effects` has them, or percentiles of the bootstrap."""
    if interval == "effects":
        effects = wb.effects(study, metric)
        return effects.indirect_effect_low.values.ravel(), effects.indirect_effect_high.values.ravel()
    level = expanded(NOMINAL, study.sizes["prompt"]) if interval == "expanded" else NOMINAL
    return ends(resampled_means(single(study)).mean("draw").transpose("resample", "site").values, level)


def coverage(population: xr.Dataset, studies: int) -> pd.DataFrame:
    """How often a site's interval holds the population's effect, lies below or above it, by interval, size of study and metric.

    interval: "effects", as `workbench.effects` has it; "percentile", of the bootstrap over prompts and seeds; "expanded", the same
    at the level that so few prompts ask for, which is what `effects` does for metrics that have no bounds.
    """
    rows = []
    with Bar(len(INTERVALS) * len(METRICS) * len(SIZES) * studies, "coverage", unit="interval") as bar:
        for metric, interval in product(METRICS, INTERVALS):
            everything = measured(population, metric)
            by_seed = single(everything).mean(["prompt", "draw"])
            for prompts, seeds in SIZES:
                rng, both, truth = np.random.default_rng((prompts, seeds)), [], []
                for _ in range(studies):
                    one = drawn(everything, prompts, seeds, rng)
                    both.append(ends_of(one, metric, interval))
                    # an interval over one seed speaks of that seed
                    spoken_of = by_seed.sel(seed=one.seed) if seeds == 1 else by_seed
                    truth.append(spoken_of.mean("seed").values)
                    bar.update(1)
                (low, high), known = np.array(both).swapaxes(0, 1), np.array(truth)
                about = dict(
                    metric=metric, interval=interval, prompts=prompts, seeds=seeds, site=population.site.values
                )
                about |= dict(effect=by_seed.mean("seed").values, covered=((low <= known) & (known <= high)).mean(0))
                about |= dict(
                    too_low=(high < known).mean(0), too_high=(low > known).mean(0), width=(high - low).mean(0)
                )
                rows.append(pd.DataFrame(about).assign(studies=studies))
    return pd.concat(rows, ignore_index=True)


def single(population: xr.Dataset) -> xr.DataArray:
    """Indirect effects of single images, (prompt, draw, seed, site)."""
    effect = population.restored - population.corrupted
    return effect.squeeze(["metric", "token", "steps"], drop=True).transpose("prompt", "draw", "seed", "site")


def summary(sites: pd.DataFrame) -> pd.DataFrame:
    """Over sites: the mean coverage, the least and the most covered, how many are between 0.90 and 0.98."""
    rows = []
    for key, of in sites.groupby(KEYS, sort=False):
        rows.append(
            dict(
                **dict(zip(KEYS, key)),
                covered=of.covered.mean(),
                least=of.covered.min(),
                most=of.covered.max(),
                sites_within=int(of.covered.between(*PASSES).sum()),
                sites=len(of),
                width=of.width.mean(),
                studies=int(of.studies.iloc[0]),
            )
        )
    return pd.DataFrame(rows)


def false_alarms(population: xr.Dataset, studies: int) -> pd.DataFrame:
    """Small studies in which no site has an effect: how often one is found, by the best site's p, and by any site's interval."""
    rows = []
    for metric in METRICS:
        everything = measured(population, metric)
        for prompts, seeds in SIZES:
            rng = np.random.default_rng((prompts, seeds, 1))
            best, any_interval, one_interval = [], [], []
            for _ in range(studies):
                one = drawn(everything, prompts, seeds, rng)
                signs = xr.DataArray(
                    rng.choice([-1.0, 1.0], size=prompts), dims="prompt", coords={"prompt": one.prompt}
                )
                nothing = one.assign(restored=one.corrupted + signs * (one.restored - one.corrupted))
                effects = wb.effects(nothing, metric)
                best.append(float(effects.p.min()) <= ALPHA)
                any_interval.append(bool(effects.significant.any()))
                one_interval.append(float(effects.significant.mean()))
            value, low, high = share(np.array(best))
            rows.append(
                dict(
                    metric=metric,
                    prompts=prompts,
                    seeds=seeds,
                    best_p=value,
                    best_p_low=low,
                    best_p_high=high,
                    any_site_significant=float(np.mean(any_interval)),
                    a_site_significant=float(np.mean(one_interval)),
                    studies=studies,
                )
            )
    return pd.DataFrame(rows)


@house
def figure(table: pd.DataFrame, alarms: pd.DataFrame) -> Figure:
    """Coverage over sites for every size of study, and how often something is found where there is nothing."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2), layout="constrained", sharey=True)
    labels = [f"{prompts} prompts, {seeds} seed{'s' if seeds > 1 else ''}" for prompts, seeds in SIZES]
    for number, (metric, label) in enumerate(zip(METRICS, ("probability", "log-odds"))):
        at = np.arange(len(SIZES)) + 0.2 * (number - 0.5)
        rows = table[(table.metric == metric) & (table.interval == "effects")]
        intervals(axes[0], at, rows.covered, rows.least, rows.most, lying=True, color=COLOURS[number], label=label)
        rows = alarms[alarms.metric == metric]
        of_best = rows.best_p_low, rows.best_p_high
        intervals(axes[1], at, rows.best_p, *of_best, lying=True, color=COLOURS[number], label=label)
    axes[0].axvspan(*PASSES, color=GREY, alpha=0.15, linewidth=0)
    axes[0].axvline(NOMINAL, color=GREY, ls="--", lw=1)
    axes[1].axvline(ALPHA, color=GREY, ls="--", lw=1)
    axes[0].set_yticks(range(len(SIZES)), labels)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="share of studies; mean of sites, least to most")
    axes[1].set(xlabel="share of studies, 95% interval", xlim=(-0.01, 0.31))
    axes[0].set_title("95% intervals that hold the effect", loc="left")
    axes[1].set_title("best site found where none has an effect", loc="left")
    axes[1].legend(loc="lower right")
    return fig


if __name__ == "__main__":
    main(tyro.cli(CoverageOptions, description=__doc__))
