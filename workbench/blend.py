"""Local blend: where the words of an edit look, as a mask of the latents (Hertz et al. 2022, section 3.2, "Local Editing").

The engine sums the maps while the steps pass; the rule `BlendLatents` asks for the mask at the end of each step.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange


def add_maps(total: torch.Tensor | None, call: int, worlds: Sequence, *probs: torch.Tensor) -> torch.Tensor:
    """Sums over the calls of the mean over layers and heads: (row, pixel, token); a fold's update."""
    mean = torch.cat(probs, 1).float().mean(1)
    return mean if total is None else total + mean


def region(
    maps: torch.Tensor, words: Sequence[int], threshold: float, grid: tuple[int, int], *, pool: bool
) -> torch.Tensor:
    """Latents where a map of the words is above a share of its maximum: bool (row, y, x).

    maps: (row, pixel, token), of the latents' shape at a lower resolution. grid: rows and columns of the latents. pool: spread each
    pixel to its eight neighbours first.
    """
    rows = round((maps.shape[1] * grid[0] / grid[1]) ** 0.5)
    shown = rearrange(maps[..., list(words)].mean(-1), "row (y x) -> row 1 y x", y=rows)
    shown = F.max_pool2d(shown, 3, stride=1, padding=1) if pool else shown
    shown = F.interpolate(shown, size=grid)
    return (shown / shown.amax((-2, -1), keepdim=True) > threshold)[:, 0]
