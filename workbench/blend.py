"""Local blend: where the words of an edit look, as a mask of the latents (Hertz et al. 2022, section 3.2, "Local Editing").

The engine sums the maps while the steps pass and asks for the mask at the end of each step.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange

from workbench.interventions import BlendLatents


def add_maps(total: torch.Tensor | None, step: int, worlds: Sequence, *probs: torch.Tensor) -> torch.Tensor:
    """Sums over the steps of the mean over layers and heads: (row, pixel, token); a fold's update."""
    mean = torch.cat(probs, 1).float().mean(1)
    return mean if total is None else total + mean


def region(maps: torch.Tensor, words: Sequence[int], threshold: float, side: int, *, pool: bool) -> torch.Tensor:
    """Latents where a map of the words is above a share of its maximum: bool (row, y, x).

    maps: (row, pixel, token). pool: spread each pixel to its eight neighbours first.
    """
    found = rearrange(maps[..., list(words)].mean(-1), "row (y x) -> row 1 y x", y=round(maps.shape[1] ** 0.5))
    found = F.max_pool2d(found, 3, stride=1, padding=1) if pool else found
    found = F.interpolate(found, size=(side, side))
    return (found / found.amax((-2, -1), keepdim=True) > threshold)[:, 0]


def inside(rule: BlendLatents, own: torch.Tensor, source: torch.Tensor, side: int) -> torch.Tensor:
    """Latents that the edit may change: bool (row, y, x), the union of both worlds' regions less those taken away.

    own, source: each world's maps, (row, pixel, token).
    """
    kept = [
        region(maps, words, rule.threshold, side, pool=True) for maps, words in ((own, rule.own), (source, rule.source))
    ]
    less = [
        region(maps, words, rule.threshold_less, side, pool=False)
        for maps, words in ((own, rule.own_less), (source, rule.source_less))
        if words
    ]
    found = kept[0] | kept[1]
    for each in less:
        found &= ~each
    return found
