"""What a run returns: images, latents and recorded values, labelled."""

from dataclasses import dataclass, field
from html import escape
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from PIL import Image

from workbench.elsewhere import named_elsewhere
from workbench.inputs import shown
from workbench.interventions import World

SHOWN = 48  # pictures in a notebook's view of a run


@dataclass(frozen=True, repr=False)
class Run:
    """What a run returned.

    images: float in [0, 1], (world, seed, y, x, colour). latents: the denoised latents, (world, seed, channel, y, x).
    values: what was recorded, by site: (world, seed, [step,] ...the site's axes), one entry along `step` for each call of the
    denoiser, with the number of the step that it belongs to and its `timestep` (between steps: one for each step); or by fold:
    (world, seed, ...its axes). fired: how often each intervention was carried out, by (world, number in the world).

    `run["edited"]` is one world's images, `run.pil("edited")` the same as PIL pictures.

    >>> run
    Run of worlds 'zebra', 'lion'; seeds 0, 1: pictures of 64 x 64
    >>> dict(run["zebra"].sizes)
    {'seed': 2, 'y': 64, 'x': 64, 'colour': 3}
    >>> dict(run.latents.sizes)
    {'world': 2, 'seed': 2, 'channel': 4, 'y': 16, 'x': 16}
    """

    worlds: tuple[World, ...]
    images: xr.DataArray
    latents: xr.DataArray
    values: dict[str, xr.DataArray] = field(default_factory=dict)
    fired: dict[tuple[str, int], int] = field(default_factory=dict)

    if not TYPE_CHECKING:  # a type checker is to know what there is

        def __getattr__(self, name: str):
            raise AttributeError(named_elsewhere(self, name))

    def __getitem__(self, world: str) -> xr.DataArray:
        names = [each.name for each in self.worlds]
        if not isinstance(world, str) or world not in names:
            raise KeyError(f"the run has no world {shown(world)}; its worlds are {', '.join(names)}")
        return self.images.sel(world=world)

    def pil(self, world: str | None = None, seed: int | None = None) -> list[Image.Image]:
        """Pictures as PIL gives them, of all worlds in order or of one, of all seeds or of one.

        >>> len(run.pil()), len(run.pil("zebra"))
        (4, 2)
        >>> (picture,) = run.pil("zebra", seed=1)
        >>> picture.size
        (64, 64)
        """
        from workbench.pictures import as_pil

        images = self.images if world is None else self[world]
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, Integral) or seed not in images.seed.values:
                raise KeyError(f"the run has no seed {shown(seed)}; its seeds are {images.seed.values.tolist()}")
            images = images.sel(seed=seed)
        return as_pil(images)

    def __repr__(self):
        sizes = self.images.sizes
        names = [world.name for world in self.worlds]
        shown = ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")
        seeds = ", ".join(map(str, self.images.seed.values[:6])) + (", ..." if sizes["seed"] > 6 else "")
        kept = (
            f"; recorded {', '.join(list(self.values)[:4])}{', ...' if len(self.values) > 4 else ''}"
            if self.values
            else ""
        )
        return f"Run of worlds {shown}; seeds {seeds}: pictures of {sizes['y']} x {sizes['x']}{kept}"

    def _repr_html_(self):
        from workbench.pictures import data_url

        left = SHOWN
        rows: list[str] = []
        for world in self.worlds:
            if left <= 0:
                rows.append(f"<tr><td colspan='2'>and {len(self.worlds) - len(rows)} more worlds</td></tr>")
                break
            pictures = self.pil(world.name)[:left]
            left -= len(pictures)
            cells = "".join(f"<img style='margin:1px;height:96px' src='{data_url(picture)}'>" for picture in pictures)
            rows.append(f"<tr><th style='text-align:right'>{escape(world.name)}</th><td>{cells}</td></tr>")
        return f"<table>{''.join(rows)}</table><p>{escape(repr(self))}</p>"


def not_finite(images: np.ndarray) -> bool:
    """Whether pictures hold anything but numbers."""
    return not np.isfinite(images).all()
