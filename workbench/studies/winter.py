"""Winter is coming: steer thirty prompts towards winter, and see what is left of them: `workbench benchmark winter`.

Writes `steering*.{csv,png}`, and the submission, images and `submission.csv`, under `runs/`. `--redraw` draws from the tables in `--out`.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import tyro
import xarray as xr

from workbench.drawing import save
from workbench.experiments.results import averages, measured_by
from workbench.experiments.statistics import ends, resampled_means
from workbench.pictures import as_pil
from workbench.steering.experiment import STEERED, UNSTEERED, Steered, SteerSpec, Variant
from workbench.studies import winter_figures
from workbench.studies.winter_setting import SAID, SITES, TEXT, UNET, WinterOptions
from workbench.studies.winter_study import Winter

METRICS = ("concept", "concept_similarity", "similarity", "probability", "pixel_distance")
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the budget, where families are compared


def method_table(data: xr.Dataset, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """One row for each method and metric: mean, 95 % interval over prompts and seeds, number of images."""
    rows = []
    for metric in metrics:
        scores = measured_by(data, metric)
        found = averages({"value": scores.steered}, attrs={"metric": metric})
        plain = averages({"value": scores.unsteered}, attrs={"metric": metric})
        axes = [axis for axis in ("variant", "factor") if axis in found.value.dims]
        names = ["value", "value_low", "value_high"]
        rows.append(
            pd.DataFrame([{"variant": UNSTEERED, "metric": metric} | {name: float(plain[name]) for name in names}])
        )
        rows.append(found[names].to_dataframe().reset_index()[[*axes, *names]].assign(metric=metric))
    whole = pd.concat(rows, ignore_index=True).rename(columns={"value_low": "low", "value_high": "high"})
    whole = whole.assign(n=data.sizes["prompt"] * data.sizes["seed"])
    return whole[[*[c for c in ("variant", "factor") if c in whole], "metric", "value", "low", "high", "n"]].round(4)


def against(data: xr.Dataset, a: str, b: str, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """What one method has more than another, image by image."""
    rows = []
    for metric in metrics:
        scores = measured_by(data, metric)[STEERED]
        first, second = (scores.sel(variant=name, drop=True) for name in (a, b))
        found = averages({"value": first - second}, against={"value": second}, attrs={"metric": metric})
        low, high = float(found.value_low), float(found.value_high)
        rows.append(dict(variant=f"{a} minus {b}", metric=metric, value=float(found.value), low=low, high=high))
    return pd.DataFrame(rows).assign(n=data.sizes["prompt"] * data.sizes["seed"]).round(4)


def at_equal_fidelity(
    data: xr.Dataset, drops: Sequence[float], concept: str, fidelity: str = "similarity"
) -> pd.DataFrame:
    """How much of the concept each family has where it has lost as much fidelity, and what the UNet has more than the text encoder.

    data: scores over factors. drops: of fidelity, from the unsteered images. Between two factors, and from the unsteered images to
    the first, a straight line. Intervals are over prompts and seeds, the same resamples for all families; NaN where a family, in
    more than one resample of twenty, does not lose that much.
    """
    cells = {metric: _from_unsteered(measured_by(data, metric)) for metric in (concept, fidelity)}
    whole = {metric: each.mean(("prompt", "seed")).expand_dims("resample") for metric, each in cells.items()}
    drawn = {metric: resampled_means(each) for metric, each in cells.items()}
    rows = []
    for drop in drops:
        value, spread = (
            {
                variant: _at_drop(
                    means[concept].sel(variant=variant).values, means[fidelity].sel(variant=variant).values, drop
                )
                for variant in data.variant.values
            }
            for means in (whole, drawn)
        )
        for each in (value, spread):
            each |= {
                f"{UNET}, {layers} minus {TEXT}, {layers}": each[f"{UNET}, {layers}"] - each[f"{TEXT}, {layers}"]
                for layers in ("searched layers", "all layers")
            }
        for variant, found in spread.items():
            low, high = map(float, ends(found, missing=0.05))
            rows.append(
                dict(drop=drop, variant=variant, metric=concept, value=value[variant].item(), low=low, high=high)
            )
    return pd.DataFrame(rows).assign(n=data.sizes["prompt"] * data.sizes["seed"]).round(4)


def _from_unsteered(scores: xr.Dataset) -> xr.DataArray:
    """Scores by factor, from the unsteered images, factor 0, on."""
    steered = scores.steered.sortby("factor")
    return xr.concat(
        [scores.unsteered.expand_dims(variant=steered.variant, factor=[0.0]), steered], "factor"
    ).transpose(..., "factor")


def _at_drop(concept: np.ndarray, fidelity: np.ndarray, drop: float) -> np.ndarray:
    """The concept where fidelity first is that much below its first value: (resample,) of (resample, factor)."""
    level = fidelity[:, :1] - drop
    below = fidelity < level
    after = below.argmax(1)[:, None]
    (f0, f1), (c0, c1) = (
        [np.take_along_axis(curve, np.maximum(after - back, 0), 1) for back in (1, 0)] for curve in (fidelity, concept)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        found = c0 + (f0 - level) / (f0 - f1) * (c1 - c0)
    return np.where(below.any(1), found[:, 0], np.nan)


def submit(study: Winter, method: Variant):
    """The submission's images, one for each ID from the fixed seed, and its table."""
    folder = study.options.runs / "submission"
    folder.mkdir(parents=True, exist_ok=True)
    steered = Steered(
        study.model,
        study.held_out,
        study.concepts["winter"],
        SteerSpec(seeds=study.options.seeds[:1], num_inference_steps=study.options.num_inference_steps),
        study.scorer,
        study.options.batch_size,
    )
    images = as_pil(steered.run(steered.worlds(method)).images)
    for number, image in enumerate(images, 1):
        image.save(folder / f"{number}.png")
    prompts = [prompt.prompt for prompt in study.held_out]
    pd.DataFrame(
        dict(
            ID=range(1, len(images) + 1),
            prompt=prompts,
            variant=method.place["variant"],
            seed=study.options.seeds[0],
            winter_similarity=study.scorer.similarity(images, "winter").numpy().round(4),
            fidelity=study.scorer.similarity(images, prompts).numpy().round(4),
            image=[f"{number}.png" for number in range(1, len(images) + 1)],
        )
    ).to_csv(folder / "submission.csv", index=False)
    print(f"wrote {folder}/submission.csv and {len(images)} images beside it")


def main(options: WinterOptions):
    study = Winter(options)
    if not options.redraw:
        measure(study, options)
    draw(study, options)


def measure(study: Winter, options: WinterOptions):
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        f"telling the model costs {study.budget:.3f} similarity to the original prompt, the budget, and brings winter a lead over summer "
        f"of {study.enough:.3f}, which is enough"
    )
    for where in SITES:
        stem = where.replace(" ", "_").lower()
        study.tables[where].round(4).to_csv(options.out / f"steering_sweep_{stem}.csv", index=False)
        study.searches[where].table.round(4).to_csv(options.out / f"steering_search_{stem}.csv", index=False)
        print(f"{where}, searched: { {site: round(strength, 2) for site, strength in study.searched[where].items()} }")
    print(f"fixed strengths {study.fixed}")
    study.adaptive.round(4).to_csv(options.out / "steering_adaptive.csv", index=False)
    methods = {method.place["variant"]: method for method in study.methods.values()}
    fixed, best = (
        next(name for name in methods if name.startswith(begin)) for begin in ("fixed strength", study.favourite)
    )
    report = method_table(study.report)
    pairs = [
        ("adaptive", fixed),
        ("adaptive", "three keyword classes"),
        (best, fixed),
        ("UNet, searched", "text encoder, searched"),
    ]
    report = pd.concat([report, *(against(study.report, a, b) for a, b in pairs)], ignore_index=True)
    report.to_csv(options.out / "steering.csv", index=False)
    print(
        report.pivot(index="variant", columns="metric", values="value")
        .reindex(report.variant.unique())[list(METRICS)]
        .round(3)
        .to_string()
    )
    submit(study, methods[best])
    curves = method_table(study.frontier)
    curves.to_csv(options.out / "steering_frontier.csv", index=False)
    drops = [part * study.budget for part in SHARES]
    equal = pd.concat(
        [at_equal_fidelity(study.frontier, drops, concept) for concept in ("concept_similarity", "concept")]
    )
    equal.to_csv(options.out / "steering_equal_fidelity.csv", index=False)
    print(equal.to_string(index=False))
    others = []
    for some in (("night",), ("watercolor",), ("winter", "watercolor")):
        strength, found = study.other(some)
        for name, data in found.items():
            others.append(method_table(data).assign(steered="+".join(some), measured=name, strength=strength))
        if len(some) > 1:
            both = both_at_once(list(found.values()))
            others.append(both.assign(steered="+".join(some), measured="both at once", strength=strength))
    others = pd.concat(others, ignore_index=True)
    others.to_csv(options.out / "steering_concepts.csv", index=False)
    print(others[others.metric == "concept"].drop(columns="metric").to_string(index=False))
    text = [study.directions[name, TEXT] for name in SAID]
    cosines = {f"{a}, {b}": round(float(x.cosine(y).mean()), 2) for (a, x), (b, y) in combinations(zip(SAID, text), 2)}
    print("cosine between the concepts' directions, mean over layers:", cosines)


def draw(study: Winter, options: WinterOptions):
    """All pictures, from the tables; directions and the images of the strips are made."""
    stems = {where: where.replace(" ", "_").lower() for where in SITES}
    names = ["steering", "steering_frontier", "steering_equal_fidelity"]
    names += [f"steering_{kind}_{stem}" for kind in ("sweep", "search") for stem in stems.values()]
    tables = {name: pd.read_csv(options.out / f"{name}.csv") for name in names}
    budget = float(tables["steering_equal_fidelity"]["drop"].max())
    text, unet = {name: study.directions[name, TEXT] for name in SAID}, study.directions["winter", UNET]
    strips = {}
    for where, stem in stems.items():
        search = tables[f"steering_search_{stem}"]
        strengths = study.chosen(search, budget)[list(study.directions["winter", where].sites)].dropna()
        strips[where] = study.strip(where, strengths.astype(float).to_dict())
    figures = {
        "steering": winter_figures.methods_figure(tables["steering"]),
        "steering_frontier": winter_figures.frontier_figure(tables["steering_frontier"]),
        "steering_layers": winter_figures.layers_figure(
            {where: tables[f"steering_sweep_{stem}"] for where, stem in stems.items()}
        ),
        "steering_directions": winter_figures.directions_figure(text, unet),
        "steering_images": winter_figures.strips_figure(strips),
    }
    for name, figure in figures.items():
        save(figure, options.out / f"{name}.png")


def both_at_once(found: Sequence[xr.Dataset]) -> pd.DataFrame:
    """Share of images that are every concept at once."""
    joint = found[0].copy()
    for kind in (STEERED, UNSTEERED):
        together = np.prod([measured_by(data, "concept")[kind].values for data in found], axis=0)
        joint[kind] = joint[kind].copy()
        joint[kind].loc[{"metric": "concept"}] = together
    return method_table(joint, ["concept"])


if __name__ == "__main__":
    main(tyro.cli(WinterOptions))
