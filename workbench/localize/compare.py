"""Do the localizers agree? The cross-attention layers ranked by four of them, on one model and the same prompts and seeds."""

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from workbench.localize.attention import AttentionSpec, attention_contribution
from workbench.localize.causal_trace import TraceSpec, causal_trace
from workbench.localize.locogen import LocoGen, LocoGenSpec, locogen
from workbench.metrics import Scorer
from workbench.models import Model
from workbench.prompts import PromptSet
from workbench.results import measured_by

LOCALIZERS = {
    "causal tracing": "indirect effect (restored - corrupted)",
    "LocoGen": "direct effect of one layer",
    "low entropy": "1 - entropy of the subject's map",
    "contribution": "norm of what the subject's tokens add",
}


@dataclass(frozen=True)
class Comparison:
    """Each localizer's result, and what it says of single layers.

    trace, attention: what `causal_trace` and `attention_contribution` return. locogen: what `locogen` does. scores: (localizer,
    prompt, seed, layer), larger for a layer that matters more, each localizer in its own unit.
    """

    trace: xr.Dataset
    locogen: LocoGen
    attention: xr.Dataset
    scores: xr.DataArray

    def best(self, localizer: str, width: int = 2) -> tuple[str, ...]:
        """Names of the layers of the window of neighbours whose scores sum to the most."""
        mean = self.scores.sel(localizer=localizer).mean(["prompt", "seed"]).values
        start = int(np.argmax(np.convolve(mean, np.ones(width), "valid")))
        return tuple(self.scores.layer.values[start : start + width].tolist())

    def table(self, *, level: float = 0.95, resamples: int = 2000) -> pd.DataFrame:
        """One row for each localizer and layer: score, low, high (bootstrap over prompts and seeds) and rank, 1 for the strongest."""
        drawn = _resampled(self.scores, resamples)
        mean = self.scores.mean(["prompt", "seed"]).transpose("localizer", "layer")
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        rows = []
        for i, localizer in enumerate(mean.localizer.values):
            ranks = rankdata(-mean.values[i], method="min")
            for j, layer in enumerate(mean.layer.values):
                rows.append(
                    dict(
                        localizer=localizer,
                        layer=layer,
                        paper=j,
                        score=mean.values[i, j],
                        low=low[i, j],
                        high=high[i, j],
                        rank=int(ranks[j]),
                    )
                )
        return pd.DataFrame(rows)

    def agreement(self, *, level: float = 0.95, resamples: int = 2000) -> pd.DataFrame:
        """Spearman correlation over layers of each pair of localizers, with its interval over prompts and seeds.

        A localizer paired with itself is correlated between halves of the prompts, split at random: what agreement with anything
        is limited by. It has half the prompts on each side, so it is on the low side.
        """
        mean, drawn = (
            self.scores.mean(["prompt", "seed"]).transpose("localizer", "layer").values,
            _resampled(self.scores, resamples),
        )
        names, tail, rows = list(self.scores.localizer.values), (1 - level) / 2, []
        for a, b in combinations(range(len(names)), 2):
            low, high = np.quantile([_spearman(sample[a], sample[b]) for sample in drawn], [tail, 1 - tail])
            rows.append(dict(a=names[a], b=names[b], spearman=_spearman(mean[a], mean[b]), low=low, high=high))
        prompts, rng = (
            self.scores.mean("seed").transpose("localizer", "prompt", "layer").values,
            np.random.default_rng(0),
        )
        for a, name in enumerate(names):
            found = []
            for _ in range(200):
                order = rng.permutation(prompts.shape[1])
                one, other = np.array_split(prompts[a][order], 2)
                found.append(_spearman(one.mean(0), other.mean(0)) if len(other) else np.nan)
            low, high = np.quantile(found, [tail, 1 - tail])
            rows.append(dict(a=name, b=name, spearman=float(np.mean(found)), low=low, high=high))
        return pd.DataFrame(rows)


def compare_localizers(
    model: Model,
    prompts: PromptSet,
    *,
    trace: TraceSpec | None = None,
    generate: LocoGenSpec | None = None,
    metric: str = "probability",
    scorer: Scorer | None = None,
    folder: str | Path | None = None,
    batch_size: int = 16,
) -> Comparison:
    """Rank the cross-attention layers by causal tracing, LocoGen, entropy of the subject's map, and attention contribution.

    trace: the corruption, seeds and steps of the tracing; its sites are the cross-attention layers whatever it says. generate: how
    LocoGen asks; windows of one layer are added, and seeds, steps and guidance are those of `trace`, so that all localizers see
    the same runs. metric: of tracing and LocoGen. folder: one subfolder for each localizer. Returns a `Comparison`.
    """
    trace, generate, scorer = trace or TraceSpec(), generate or LocoGenSpec(widths=(1, 2)), scorer or Scorer()
    trace = replace(trace, sites=("unet.*.cross",), steps=((0.0, 1.0),), window=1)
    common = dict(seeds=trace.seeds, num_inference_steps=trace.num_inference_steps, guidance_scale=trace.guidance_scale)
    generate = replace(generate, **common, widths=tuple(sorted({1, *generate.widths})))
    part = lambda name: None if folder is None else Path(folder) / name
    found = locogen(model, prompts, generate, scorer=scorer, folder=part("locogen"), batch_size=batch_size)
    looked = attention_contribution(
        model, prompts, AttentionSpec(**common), folder=part("attention"), batch_size=batch_size
    )
    traced = causal_trace(model, prompts, trace, scorer=scorer, folder=part("trace"), batch_size=batch_size)
    by = measured_by(traced, metric)
    scores = {
        "causal tracing": (by.restored - by.corrupted).mean("draw").isel(token=0, steps=0, drop=True),
        "LocoGen": found.direct(metric, width=1),
        "low entropy": 1 - measured_by(looked, "entropy").clean,
        "contribution": measured_by(looked, "contribution").clean,
    }
    plain = [
        values.drop_vars([name for name in values.coords if name not in values.dims]) for values in scores.values()
    ]
    joined = xr.concat(plain, dim=pd.Index(list(scores), name="localizer"), join="exact").rename(site="layer")
    return Comparison(traced, found, looked, joined.transpose("localizer", "prompt", "seed", "layer"))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _resampled(scores: xr.DataArray, resamples: int) -> np.ndarray:
    """Means over prompts and seeds drawn again, as crossed factors: (resample, localizer, layer)."""
    rng, values = np.random.default_rng(0), scores.transpose("localizer", "layer", "prompt", "seed").values
    weights = [rng.multinomial(n, [1 / n] * n, size=resamples) / n for n in values.shape[2:]]
    return np.einsum("alps,rp,rs->ral", values, *weights)
