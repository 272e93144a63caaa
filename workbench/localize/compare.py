"""Do the localizers agree? The cross-attention layers ranked by four of them, on one model and the same prompts and seeds."""

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from workbench.arguments import checked, instance_of, prompt_set
from workbench.experiments.results import measured_by
from workbench.experiments.statistics import LEVEL, RESAMPLES, ends, halves_agree, resampled_means, spearman
from workbench.inputs import count, text
from workbench.localize.attention import AttentionSpec, attention_contribution
from workbench.localize.causal_trace import causal_trace
from workbench.localize.locogen import LocoGen, locogen
from workbench.localize.specs import LocoGenSpec, TraceSpec
from workbench.metrics import Measures, Scoring
from workbench.models import Model
from workbench.prompts import PromptSet
from workbench.steps import WHOLE

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

    >>> comparison.scores.localizer.values.tolist()
    ['causal tracing', 'LocoGen', 'low entropy', 'contribution']
    >>> dict(comparison.trace.restored.sizes)
    {'draw': 1, 'metric': 6, 'prompt': 2, 'seed': 1, 'site': 16, 'token': 1, 'steps': 1}
    """

    trace: xr.Dataset
    locogen: LocoGen
    attention: xr.Dataset
    scores: xr.DataArray

    @checked(localizer=text, width=count)
    def best(self, localizer: str, width: int = 2) -> tuple[str, ...]:
        """Names of the layers of the window of neighbours whose scores sum to the most.

        >>> comparison.best("low entropy", width=2)
        ('unet.up.1.0.cross', 'unet.up.1.1.cross')
        """
        if localizer not in (known := self.scores.localizer.values.tolist()):
            raise KeyError(f"localizer={localizer!r}: may be {', '.join(map(repr, known))}")
        if width > self.scores.sizes["layer"]:
            raise ValueError(f"width={width}: there are {self.scores.sizes['layer']} layers; give as many at most")
        mean = self.scores.sel(localizer=localizer).mean(["prompt", "seed"]).values
        start = int(np.argmax(np.convolve(mean, np.ones(width), "valid")))
        return tuple(self.scores.layer.values[start : start + width].tolist())

    @checked
    def table(self, *, level: float = LEVEL, resamples: int = RESAMPLES) -> pd.DataFrame:
        """One row for each localizer and layer: score, low, high (bootstrap over prompts and seeds) and rank, 1 for the strongest.

        >>> table = comparison.table(resamples=100)
        >>> len(table), list(table)
        (64, ['localizer', 'layer', 'paper', 'score', 'low', 'high', 'rank'])
        """
        mean = self.scores.mean(["prompt", "seed"]).transpose("localizer", "layer")
        low, high = ends(self._drawn(resamples), level)
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

    @checked
    def agreement(self, *, level: float = LEVEL, resamples: int = RESAMPLES) -> pd.DataFrame:
        """Spearman correlation over layers of each pair of localizers, with its interval over prompts and seeds.

        A localizer paired with itself is correlated between halves of the prompts, split at random: what agreement with anything
        is limited by. It has half the prompts on each side, so it is on the low side.

        >>> found = comparison.agreement(resamples=100)
        >>> len(found), list(found)
        (10, ['a', 'b', 'spearman', 'low', 'high'])
        """
        mean = self.scores.mean(["prompt", "seed"]).transpose("localizer", "layer").values
        drawn, names, rows = self._drawn(resamples), list(self.scores.localizer.values), []
        for a, b in combinations(range(len(names)), 2):
            low, high = map(float, ends(np.array([spearman(sample[a], sample[b]) for sample in drawn]), level))
            rows.append(dict(a=names[a], b=names[b], spearman=spearman(mean[a], mean[b]), low=low, high=high))
        prompts = self.scores.mean("seed").transpose("localizer", "prompt", "layer").values
        for name, (value, low, high) in zip(names, halves_agree(prompts, level=level)):
            rows.append(dict(a=name, b=name, spearman=value, low=low, high=high))
        return pd.DataFrame(rows)

    def _drawn(self, resamples: int) -> np.ndarray:
        """Means over prompts and seeds drawn again: (resample, localizer, layer)."""
        return resampled_means(self.scores, resamples=resamples).transpose("resample", "localizer", "layer").values


@checked(
    prompts=prompt_set,
    trace=instance_of("workbench.localize.specs:TraceSpec"),
    generate=instance_of("workbench.localize.specs:LocoGenSpec"),
)
def compare_localizers(
    model: Model,
    prompts: PromptSet,
    *,
    trace: TraceSpec | None = None,
    generate: LocoGenSpec | None = None,
    metric: str = "probability",
    scorer: Scoring = None,
    folder: str | Path | None = None,
    batch_size: int = 16,
) -> Comparison:
    """Rank the cross-attention layers by causal tracing, LocoGen, entropy of the subject's map, and attention contribution.

    trace: the corruption, seeds and steps of the tracing; its sites are the cross-attention layers whatever it says. generate: how
    LocoGen asks; windows of one layer are added, and seeds, steps and guidance are those of `trace`, so that all localizers see
    the same runs. metric: of tracing and LocoGen. folder: one subfolder for each localizer. Returns a `Comparison`.

    >>> quick = wb.TraceSpec(seeds=(0,), draws=1, num_inference_steps=1)
    >>> single = wb.LocoGenSpec(widths=(1,))
    >>> found = wb.compare_localizers(model, prompts[:1], trace=quick, generate=single)
    >>> dict(found.scores.sizes)
    {'localizer': 4, 'prompt': 1, 'seed': 1, 'layer': 16}
    """
    trace, generate, scorer = (
        trace or TraceSpec(),
        generate or LocoGenSpec(widths=(1, 2)),
        Measures.of(scorer, model),
    )
    scorer.require(metric, prompts, "metric")
    trace = replace(trace, sites=("unet.*.cross",), steps=(WHOLE,), window=1)
    common = dict(seeds=trace.seeds, num_inference_steps=trace.num_inference_steps, guidance_scale=trace.guidance_scale)
    generate = replace(generate, **common, widths=tuple(sorted({1, *generate.widths})))
    folders = {name: None if folder is None else Path(folder) / name for name in ("locogen", "attention", "trace")}
    found = locogen(model, prompts, generate, scorer=scorer, folder=folders["locogen"], batch_size=batch_size)
    looked = attention_contribution(
        model, prompts, AttentionSpec(**common), folder=folders["attention"], batch_size=batch_size
    )
    traced = causal_trace(model, prompts, trace, scorer=scorer, folder=folders["trace"], batch_size=batch_size)
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
