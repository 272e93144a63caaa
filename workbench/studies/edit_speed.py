"""How long an edit takes on layers of Stable Diffusion's sizes: `python -m workbench.studies.edit_speed`.

Random weights in the shapes of the public configurations, two cross-attention layers' K and V, eight pairs of prompts (their
states random): solve, factors, the SHA-256 sums that tie an edit to its base (one when it is made, two at the commit), and the
commit with its saved copy, in milliseconds, and the share of the solve. Medians of several repeats.
"""

import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import pandas as pd
import torch
import tyro

from workbench.commits import weight_hash
from workbench.edit.closed_form import solve
from workbench.edit.moments import Moments

SIZES = {
    "SD 1.5": (768, 1280),
    "SD 2.1": (1024, 1280),
    "SDXL": (2048, 1280),
}  # text channels, channels of the widest layers


@dataclass
class EditSpeedOptions:
    out: Path = Path("runs/figures/edit_speed.csv")
    repeats: int = 7
    pairs: int = 8
    layers: int = 2
    corpus: int = 4096
    """Keys whose second moments the covariance variant preserves."""


def timed(channels: int, width: int, covariance: bool, options: EditSpeedOptions) -> dict[str, float]:
    """Milliseconds of one edit's parts."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    weights = [normal(width, channels) / channels**0.5 for _ in range(2 * options.layers)]
    keys, guides = normal(options.pairs, channels), normal(options.pairs, channels)
    moments = Moments.of(normal(options.corpus, channels)) if covariance else None
    clock = [time.perf_counter()]
    solution = solve(keys, lam=0.01, moments=moments, preservation="covariance" if covariance else "ridge")
    clock.append(time.perf_counter())
    factors = [solution.factors((guides - keys).double() @ weight.double().T) for weight in weights]
    clock.append(time.perf_counter())
    for weight in weights * 3:
        weight_hash(weight)
    clock.append(time.perf_counter())
    saved = [weight.clone() for weight in weights]
    for weight, before, (b, a) in zip(weights, saved, factors):
        weight.copy_(torch.addmm(before, b.float(), a.float()))
    clock.append(time.perf_counter())
    return dict(zip(("solve", "factors", "hashes", "commit"), (1000 * (b - a) for a, b in pairwise(clock))))


def main(options: EditSpeedOptions):
    rows = []
    for name, (channels, width) in SIZES.items():
        for covariance in (False, True):
            runs = [timed(channels, width, covariance, options) for _ in range(options.repeats + 1)]
            found = pd.DataFrame(runs[1:])  # the first warms up
            parts = {f"{part}_ms": round(median(found[part]), 2) for part in found}
            total = median(found.sum(axis=1))
            what = dict(
                model=name,
                regulariser="covariance" if covariance else "ridge",
                weights=2 * options.layers,
                pairs=options.pairs,
            )
            rows.append(
                dict(**what, **parts, total_ms=round(total, 2), solve_share=round(parts["solve_ms"] / total, 3))
            )
    table = pd.DataFrame(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out, index=False)
    print(table.to_string(index=False), f"\n{torch.get_num_threads()} threads")


if __name__ == "__main__":
    main(tyro.cli(EditSpeedOptions))
