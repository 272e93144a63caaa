"""How right is attribution, how fast, and what does screening save? `python -m workbench.studies.attribution`.

Attribution against exact patching, by kind of site (components and heads of the text encoder, at all tokens or at the subject's last
one; cross-attention layers), on the same prompts and seeds: rank correlation, agreement of signs, ratio of times. Then the best three
components, of the text encoder and of the whole model, proposed by attribution and verified exactly: how many are found in single
prompts, against the pictures that it takes.
Writes `attribution.csv` (one row for each kind and form), `attribution_sites.csv` (each site's mean effects),
`attribution_screen.csv` (recall against cost), `attribution_promises.csv` (what `wb.screen` promises, and whether it is kept),
`attribution_times_DEVICE.csv` and `attribution.png`. Finished parts are kept in `runs/attribution`: what was stopped goes on with the
same command. `--redraw` draws from the tables in `--out`.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import tyro
import xarray as xr
from matplotlib.figure import Figure
from scipy.special import logit

from workbench.drawing import COLOURS, GREY, WIDTH, house, save
from workbench.experiments.results import averages, measured_by
from workbench.experiments.statistics import ends, mean, resampled_means, share, spearman
from workbench.localize.attribution import NOISE, attribute
from workbench.localize.causal_trace import causal_trace
from workbench.localize.screen import candidates_of, guaranteed_recall, promised_recall
from workbench.localize.specs import AttributionSpec, ScreenSpec, TraceSpec
from workbench.models import Model, load
from workbench.prompts import PromptSet, prompt_set
from workbench.scorer import Scorer

ALL, LAST = dict(tokens=("all",)), dict(tokens=("subject_last",))  # where sites of the text are restored
TEXT, TEXT_HEADS = dict(sites=("text_encoder.*.{attention,mlp}",)), dict(sites=("text_encoder.*.z",), over="head")
KINDS = {
    "text components": TEXT | ALL,
    "text heads": TEXT_HEADS | ALL,
    "text components, last token": TEXT | LAST,
    "text heads, last token": TEXT_HEADS | LAST,
    "cross-attention layers": dict(sites=("unet.*.cross",)),
    "components": dict(sites=("text_encoder.*.{attention,mlp}", "unet.*.{self,cross,ff}")) | ALL,
}
FORMS = ("image", "step")
SCREENED = {"text components": "text_encoder.", "components": ""}  # what the names of their sites begin with
SHOWN = ("text components", "text heads", "cross-attention layers")
TIMED = (*SHOWN, "components")
ATTRIBUTES = ("object", "style", "colour", "season")  # of the prompts that are screened
BEST = 3
PROMISES = ((3, 2), (4, 4), (6, 4), (6, 8), (12, 8), (12, 12))  # sites proposed, and controls
PRINTED = (3, 4, 5, 6, 8, 10, 12, 16, 24)  # numbers of verified sites of which the command prints a line
WITHIN = 0.02  # of the third's effect, in probability: such a site counts as found
REPEATS = 2  # of each timing
LEAST = 1e-6  # probabilities are kept this far from 0 and 1 where their log-odds are taken


@dataclass
class AttributionOptions:
    prompts: int = 12
    """Of the set "object", on which attribution is compared with exact patching."""
    screened: int = 40
    """Prompts on each of which the best components are screened for, taken in turn from four sets."""
    seeds: int = 2
    noise_multiple: float = 6.0
    num_inference_steps: int = 12
    timed: int = 2
    """Prompts on which both are timed."""
    batch_size: int = 32
    device: str = "cpu"
    parts: tuple[Literal["compare", "screen", "times"], ...] = ("compare", "screen", "times")
    """What is measured; each writes its own tables."""
    runs: Path = Path("runs/attribution")
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the tables in `out`."""

    def spec(self, kind: str, form: str | None = None) -> TraceSpec:
        """What is asked of a kind of site: by exact patching, or by a form of attribution."""
        common = dict(
            noise_multiple=self.noise_multiple,
            draws=1,
            seeds=tuple(range(self.seeds)),
            num_inference_steps=self.num_inference_steps,
            **KINDS[kind],
        )
        return TraceSpec(**common) if form is None else AttributionSpec(form=form, **common)


def main(options: AttributionOptions):
    if not options.redraw:
        measure(options)
    both = [options.out / f"{name}.csv" for name in ("attribution_sites", "attribution_screen")]
    if all(path.exists() for path in both):
        save(figure(*map(pd.read_csv, both)), options.out / "attribution.png")
    else:
        print(
            f"no figure: it is drawn where --parts compare and screen were both measured, into one --out {options.out}"
        )


def measure(options: AttributionOptions):
    model, scorer = load(device=options.device), Scorer(device=options.device)
    prompts, tables = prompt_set("object")[: options.prompts], {}
    if "compare" in options.parts:
        tables["attribution"], tables["attribution_sites"] = comparison(model, prompts, options, scorer)
    if "screen" in options.parts:
        tables["attribution_screen"], tables["attribution_promises"] = screened(model, options, scorer)
    if "times" in options.parts:
        name = f"attribution_times_{torch.device(options.device).type}"
        tables[name] = times(model, prompts[: options.timed], options, scorer)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        digits = 8 if name == "attribution_sites" else 4  # of which ranks are taken
        table.round(digits).to_csv(options.out / f"{name}.csv", index=False)
        if name == "attribution_screen":
            table = table[table.verified.isin(PRINTED)]
        if name != "attribution_sites":
            print(name, table.round(3).to_string(index=False), sep="\n", end="\n\n")


def comparison(
    model: Model, prompts: PromptSet, options: AttributionOptions, scorer: Scorer
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `compared` and `site_means` say of every kind and form."""
    rows, sites = [], []
    for kind in KINDS:
        exact = asked(model, prompts, options, scorer, kind)
        for form in FORMS:
            found = asked(model, prompts, options, scorer, kind, form)
            rows.append({"kind": kind, "form": form, **compared(exact, found, form)})
            sites.append(site_means(exact, found, form).assign(kind=kind, form=form))
    return pd.DataFrame(rows), pd.concat(sites)


def asked(
    model: Model,
    prompts: PromptSet,
    options: AttributionOptions,
    scorer: Scorer,
    kind: str,
    form: str | None = None,
    *,
    kept: bool = True,
) -> xr.Dataset:
    """Exact patching of a kind of site, or a form of attribution. kept: in the folder of runs."""
    folder = options.runs / f"{kind}-{form or 'exact'}-{prompts.name}-{len(prompts)}".replace(" ", "-")
    spec, at = options.spec(kind, form), folder if kept else None
    if isinstance(spec, AttributionSpec):
        own = scorer if form == "image" else None
        return attribute(model, prompts, spec, scorer=own, folder=at, batch_size=options.batch_size)
    return causal_trace(model, prompts, spec, scorer=scorer, folder=at, batch_size=options.batch_size)


def single_effects(data: xr.Dataset, metric: str) -> xr.DataArray:
    """Indirect effects of single images, (prompt, seed, site), heads as sites of their own."""
    if metric == "log_odds" and "restored" in data:
        chosen = measured_by(data, "probability").map(log_odds)
    else:
        chosen = measured_by(data, metric)
    effect = chosen.attributed if "attributed" in chosen else chosen.restored - chosen.corrupted
    effect = effect.mean("draw").max(["token", "steps"])  # each site has one place of its own
    effect = effect.drop_vars([name for name in effect.coords if name not in effect.dims])
    if "head" in effect.dims:
        effect = effect.stack(unit=("site", "head")).dropna("unit", how="all")
        names = [f"{site}[{head}]" for site, head in effect.unit.values]
        effect = effect.drop_vars(["unit", "site", "head"]).rename(unit="site").assign_coords(site=names)
    return effect.transpose("prompt", "seed", "site")


def log_odds(probability: xr.DataArray) -> xr.DataArray:
    """In nats, of probabilities that are kept a little away from 0 and 1."""
    return logit(probability.clip(LEAST, 1 - LEAST))


def attributed(found: xr.Dataset, form: str) -> xr.DataArray:
    return single_effects(found, NOISE if form == "step" else "log_odds")


def compared(exact: xr.Dataset, found: xr.Dataset, form: str) -> dict[str, float]:
    """Of means over prompts and seeds: rank correlation over sites with the exact effect on the probability, and on its log-odds, 95 %
    intervals over prompts and seeds; signs that agree, of all sites and of those whose exact effect's interval leaves out 0; and the
    rank correlation in single prompts."""
    guess, row = attributed(found, form), {}
    guesses = [guess.mean(["prompt", "seed"]).values, resampled_means(guess).transpose("resample", "site").values]
    for metric, name in (("probability", "spearman"), ("log_odds", "spearman_log_odds")):
        truth = single_effects(exact, metric)
        drawn = resampled_means(truth).transpose("resample", "site").values
        rhos = np.array([spearman(a, b) for a, b in zip(drawn, guesses[1])])
        low, high = map(float, ends(rhos))
        row |= {name: spearman(truth.mean(["prompt", "seed"]), guesses[0]), f"{name}_low": low, f"{name}_high": high}
    truth = single_effects(exact, "probability")
    average = truth.mean(["prompt", "seed"]).values
    against = {"effect": measured_by(exact, "probability").corrupted.mean("draw")}
    apart = averages({"effect": truth}, against=against, attrs={"metric": "probability"}).significant.values
    alike = np.equal(np.sign(average), np.sign(guesses[0]))
    prompts = [spearman(a, b) for a, b in zip(truth.mean("seed").values, guess.mean("seed").values)]
    return row | {
        "spearman_in_a_prompt": float(np.mean(prompts)),
        "same_sign": float(alike.mean()),
        "significant": int(apart.sum()),
        "same_sign_of_significant": float(alike[apart].mean()) if apart.any() else np.nan,
        "sites": len(average),
        "prompts": truth.sizes["prompt"],
        "seeds": truth.sizes["seed"],
    }


def site_means(exact: xr.Dataset, found: xr.Dataset, form: str) -> pd.DataFrame:
    """Each site's mean effects: exact, on the probability, and attributed, in its own unit."""
    truth, guess = single_effects(exact, "probability"), attributed(found, form)
    return pd.DataFrame(
        {
            "site": truth.site.values,
            "exact": truth.mean(["prompt", "seed"]).values,
            "attributed": guess.mean(["prompt", "seed"]).values,
        }
    )


def times(model: Model, prompts: PromptSet, options: AttributionOptions, scorer: Scorer) -> pd.DataFrame:
    """Seconds that exact patching and each form of attribution take on some prompts, nothing kept, with what they ran on."""
    rows = []
    for kind in TIMED:
        seconds = {}
        for form in (None, *FORMS):
            taken = []
            for _ in range(REPEATS + 1):  # the first warms up
                begun = time.perf_counter()
                asked(model, prompts, options, scorer, kind, form, kept=False)
                if options.device != "cpu":
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - begun)
            seconds[form] = min(taken[1:])
        for form in FORMS:
            row = dict(kind=kind, form=form, exact_seconds=seconds[None], attribution_seconds=seconds[form])
            rows.append(row | {"times_faster": seconds[None] / seconds[form]})
    where = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
    return pd.DataFrame(rows).assign(
        timed_prompts=len(prompts), batch_size=options.batch_size, device=where, threads=torch.get_num_threads()
    )


def screened(model: Model, options: AttributionOptions, scorer: Scorer) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of single prompts: recall of the best components against pictures, for every number of sites that are verified; and what
    `wb.screen` promises by its controls, beside what it finds."""
    exact, guesses = [], {form: [] for form in FORMS}
    for i, attribute_name in enumerate(ATTRIBUTES):
        chosen = prompt_set(attribute_name)[: len(range(i, options.screened, len(ATTRIBUTES)))]
        if not len(chosen):
            continue
        traced = asked(model, chosen, options, scorer, "components")
        exact.append(single_effects(traced, "probability").mean("seed"))
        for form, found in guesses.items():
            found.append(attributed(asked(model, chosen, options, scorer, "components", form), form).mean("seed"))
    truth = xr.concat(exact, dim="prompt", join="override")
    orders = {form: xr.concat(found, dim="prompt", join="override") for form, found in guesses.items()}
    rows, promised = [], []
    for kind, beginning in SCREENED.items():
        sites = [site for site in truth.site.values if site.startswith(beginning)]
        for form, guess in {**orders, "random": None}.items():
            for verified in range(BEST, len(sites) + 1):
                order = None if guess is None else guess.sel(site=sites).values
                found = recalls(truth.sel(site=sites).values, order, verified)
                rows.append(dict(kind=kind, order=form, verified=verified, **found))
            for verified, controls in PROMISES if guess is not None else ():
                if verified + controls <= len(sites):
                    asks = dict(kind=kind, order=form, verified=verified, controls=controls)
                    pair = truth.sel(site=sites).values, guess.sel(site=sites).values
                    promised.append(asks | promises(*pair, verified, controls))
    return pd.DataFrame(rows), pd.DataFrame(promised)


def promises(exact: np.ndarray, guess: np.ndarray, verified: int, controls: int) -> dict[str, float]:
    """Of single prompts, (prompt, site) each: what `wb.screen` would have promised of the best three, and what it would have found.

    Ties count against it here: the true best are the three largest effects, to the last digit.
    """
    said, found, guaranteed = [], [], []
    for truth, order in zip(exact, guess):
        candidates = xr.DataArray(order[:, None, None, None], dims=("site", "prompt", "draw", "seed"))
        candidates = candidates.assign_coords(site=range(len(order)))
        table = candidates_of(candidates, ScreenSpec(best=BEST, verified=verified, controls=controls))
        effects = pd.Series(truth)[table.site].to_numpy()
        table = table.assign(indirect_effect=np.where(table.role != "", effects, np.nan))
        said.append(promised_recall(table, BEST))
        guaranteed.append(guaranteed_recall(table, BEST))
        found.append(float((table.role.to_numpy()[np.argsort(-effects, kind="stable")[:BEST]] != "").mean()))
    return {
        "promised": float(np.mean([each.value for each in said])),
        "guaranteed": float(np.mean(guaranteed)),
        "found": float(np.mean(found)),
        "promise_kept": float(np.mean([each.low <= actual for each, actual in zip(said, found)])),
        "guarantee_kept": float(np.mean(np.array(guaranteed) <= found)),
        "prompts": len(exact),
    }


def recalls(exact: np.ndarray, guess: np.ndarray | None, verified: int) -> dict[str, float]:
    """Of single prompts, (prompt, site) each: the share of the best sites among the verified, whether all are, and what it costs.

    A verified site counts as one of the best where its effect is at most 0.02 below the third's. guess: by what sites are ordered;
    at random where it is None. Costs are pictures for each prompt and seed: screening draws both worlds for the attribution, and both
    again beside the verified sites; `work` counts the backward pass as two pictures more, for it takes about twice a forward pass.
    """
    sites, third = exact.shape[1], np.sort(exact, axis=1)[:, -BEST]
    good = exact >= third[:, None] - WITHIN
    every = np.random.default_rng(0).random((500, *exact.shape)) if guess is None else guess[None]
    chosen = np.argsort(-every, axis=-1, kind="stable")[..., :verified]
    hits = np.minimum(np.take_along_axis(np.broadcast_to(good, every.shape), chosen, -1).sum(-1), BEST)
    recall, found = (
        mean(hits.mean(0) / BEST, bounds=None if guess is None else (0, 1)),
        mean((hits == BEST).mean(0)) if guess is None else share(hits[0] == BEST),
    )
    drawn = 2 + verified + (0 if guess is None else 2)
    return {
        **dict(zip(("recall", "recall_low", "recall_high"), recall)),
        **dict(zip(("all_found", "all_found_low", "all_found_high"), found)),
        "pictures": drawn,
        "work": drawn + (0 if guess is None else 2),
        "pictures_of_all": 2 + sites,
        "times_fewer": (2 + sites) / drawn,
        "prompts": len(exact),
        "all_alike": float((good.sum(1) == sites).mean()),
    }


@house
def figure(sites: pd.DataFrame, screen: pd.DataFrame) -> Figure:
    """Attributed against exact effects of each kind of site; below, in how many prompts all of the best three are found, against cost."""
    figure = plt.figure(figsize=(WIDTH, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1)
    kinds = [kind for kind in SHOWN if kind in set(sites.kind)]
    image = sites[sites.form == FORMS[0]]
    axes = above.subplots(1, len(kinds), squeeze=False)[0]
    for ax, kind in zip(axes, kinds):
        rows = image[image.kind == kind]
        ax.axhline(0, color=GREY, linewidth=0.5)
        ax.axvline(0, color=GREY, linewidth=0.5)
        ax.scatter(rows.attributed, rows.exact, s=12, color=COLOURS[0], alpha=0.8)
        ax.set_title(f"{kind}\nrank correlation {spearman(rows.attributed, rows.exact):.2f}")
    axes[0].set_ylabel("exact effect (probability)")
    axes[len(kinds) // 2].set_xlabel("attributed, whole image (nats of log-odds)")
    labels = {"image": "attribution, whole image", "step": "attribution, single steps", "random": "random order"}
    axes = below.subplots(1, len(SCREENED), sharey=True)
    for ax, kind in zip(axes, SCREENED):
        of_kind = screen[screen.kind == kind]
        for colour, (order, label) in zip((COLOURS[0], COLOURS[1], GREY), labels.items()):
            rows = of_kind[of_kind.order == order]
            ax.plot(rows.pictures, rows.all_found, color=colour, label=label, marker="o", markersize=2.5)
            ax.fill_between(
                rows.pictures, rows.all_found_low, rows.all_found_high, color=colour, alpha=0.15, linewidth=0
            )
        ax.axvline(of_kind.pictures_of_all.max(), color=GREY, linestyle=":")
        ax.set(
            title=f"screening {kind}", ylim=(0, 1.03), xlabel="pictures for each prompt and seed (dotted: tracing all)"
        )
    axes[0].set_ylabel(f"prompts in which all {BEST} are found")
    axes[-1].legend(loc="lower right")
    return figure


if __name__ == "__main__":
    main(tyro.cli(AttributionOptions))
