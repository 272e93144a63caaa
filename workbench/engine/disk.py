"""Recorded values in a folder, for those that do not fit memory: written as they pass, read when they are looked at.

    folder/unet.mid.cross.probs    a zarr group: `recorded` (world, seed, [step,] ...the site's axes), and its labels

Each image has chunks of its own, of as many calls as make a megabyte, so that no more of a site is held than that for each row of a
batch. Values are written as they are, uncompressed; those that are not there yet read as NaN.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.engine.batch import Batch, Fold
from workbench.sites import Site

CHUNK = 2**20  # bytes of one image's values that are written together
LONGEST = 200  # bytes of a folder's name
BLOCK = 4096  # bytes: what a file takes at the least
DTYPE = np.dtype("float32")  # of whatever is recorded
RECORDED = "recorded"

Place = tuple[int, int]
"""Number of an image's world and of its seed."""


class OnDisk:
    """The recorded values of a run, in a folder that the run makes.

    labels: of each site, beside those of worlds and seeds. Raises ImportError without zarr, ValueError for a folder that holds
    something and for folds whose names cannot be a folder's, OSError where the disk is too small; nothing is made before `writing`.
    """

    def __init__(
        self,
        folder: Path,
        recorded: Sequence[Site],
        folds: Sequence[Fold],
        worlds: Sequence[str],
        seeds: Sequence[int],
        labels: Mapping[Site, Mapping[str, Any]],
    ):
        if find_spec("zarr") is None:
            raise ImportError("record_to= needs the package zarr: pip install 'diffusion-workbench[disk]'", name="zarr")
        self.folder, self.recorded, self.labels = folder.absolute(), recorded, labels
        self.images: dict[str, list[Any]] = {"world": list(worlds), "seed": list(seeds)}
        self.arrays: dict[Site | Fold, Any] = {}
        self.done = 0
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise ValueError(f"record_to={str(folder)!r} is there already; name a folder that is not, or an empty one")
        if wrong := [
            fold.name
            for fold in folds
            if fold.name.startswith(".")
            or not set(fold.name).isdisjoint('/\\:*?"<>|')
            or len(fold.name.encode()) > LONGEST
        ]:
            raise ValueError(f"record_to: the fold's name {wrong[0]!r} cannot be a folder's; give it another")
        self.size = self._size()
        self._check_disk()

    def together(self, site: Site) -> int:
        """How many calls of a site are written at a time."""
        return max(1, min(self._calls(site), CHUNK // (DTYPE.itemsize * prod(site.sizes))))

    def held(self, rows: int) -> int:
        """Bytes that are held, at the most, while a batch of so many rows passes: calls one by one, and stacked to be written."""
        return sum(2 * rows * self.together(site) * DTYPE.itemsize * prod(site.sizes) for site in self.recorded)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder, with an array for each site; say with every error and interrupt what is there."""
        import zarr

        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            zarr.open_group(self.folder, mode="a", zarr_format=2)
            for site in self.recorded:
                steps, together = ((self._calls(site),), (self.together(site),)) if site.looped else ((), ())
                axes = (*(["step"] if site.looped else []), *site.axes[1:])
                chunks = (*together, *site.sizes)
                self.arrays[site] = self._array(site.name, axes, (*steps, *site.sizes), chunks, self.labels[site])
            yield
        except BaseException as error:
            every = prod(map(len, self.images.values()))
            error.add_note(
                f"{self.folder} holds the recorded values of {self.done} of {every} images, the others are NaN or missing; no run goes "
                "on with it: remove it, or name another folder"
            )
            raise

    def sinks(self, places: Mapping[int, Place]) -> dict[Site, "Sink"]:
        """What takes the sites' values of a batch. places: of the rows that are kept."""
        return {site: Sink(self.arrays[site], site, places, self.together(site)) for site in self.recorded}

    def finish(self, batch: Batch, places: Mapping[int, Place]):
        """Keep what a batch that has passed has accumulated."""
        for fold in batch.folds:
            if fold.name in batch.recorded:
                value = batch.accumulated(fold.name).numpy()
                if fold not in self.arrays:
                    self.arrays[fold] = self._array(fold.name, fold.axes, value.shape[1:], value.shape[1:], {})
                for row, place in places.items():
                    self.arrays[fold][place] = value[row]
        self.done += len(places)

    def array(self, name: str) -> xr.DataArray:
        """What was recorded under a name, (world, seed, ...), read from the disk whenever it is looked at."""
        data = xr.open_dataset(self.folder, group=name, engine="zarr", chunks=None, cache=False, consolidated=False)
        return data[RECORDED].rename(None).drop_attrs().assign_coords(self.images)

    def _calls(self, site: Site) -> int:
        return len(self.labels[site]["step"]) if site.looped else 1

    def _array(
        self, name: str, axes: Sequence[str], sizes: tuple[int, ...], chunks: tuple[int, ...], labels: Mapping[str, Any]
    ):
        """A zarr array, all NaN, with its labels beside it, as xarray reads them."""
        import zarr

        group = zarr.open_group(self.folder / name, mode="w-", zarr_format=2)
        shape = (*map(len, self.images.values()), *sizes)
        made = group.create_array(
            RECORDED, shape=shape, chunks=(1, 1, *chunks), dtype=DTYPE, compressors=None, fill_value=float("nan")
        )
        made.attrs["_ARRAY_DIMENSIONS"] = [*self.images, *axes]
        xr.Dataset(coords={**self.images, **labels}).to_zarr(
            self.folder / name, mode="a", consolidated=False, zarr_format=2
        )
        zarr.consolidate_metadata(self.folder / name)
        return made

    def _size(self) -> int:
        """Bytes on disk of all sites; what folds accumulate is not known beforehand."""
        images, size = prod(map(len, self.images.values())), 0
        for site in self.recorded:
            chunk = self.together(site) * DTYPE.itemsize * prod(site.sizes)
            size += images * ceil(self._calls(site) / self.together(site)) * ceil(chunk / BLOCK) * BLOCK
        return size

    def _check_disk(self):
        """Raise OSError where the disk would not bear it."""
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        if self.size > free:
            raise OSError(
                f"record_to={str(self.folder)!r}: recording {len(self.recorded)} sites for "
                f"{prod(map(len, self.images.values()))} images would take {self.size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are "
                "free on its disk; name a folder on another one, or record fewer sites, images or steps"
            )


class Sink:
    """Takes a site's values (row, ...) of a batch call by call, as a list would, and writes them some calls together."""

    def __init__(self, array: Any, site: Site, places: Mapping[int, Place], together: int):
        self._array, self._looped, self._places, self._together = array, site.looped, places, together
        self._held: list[torch.Tensor] = []
        self._written = 0

    def append(self, value: torch.Tensor):
        self._held.append(value)
        last = not self._looped or self._written + len(self._held) == self._array.shape[2]
        if not last and len(self._held) < self._together:
            return
        calls = slice(self._written, self._written + len(self._held))
        for row, place in self._places.items():
            if self._looped:
                self._array[(*place, calls)] = torch.stack([each[row] for each in self._held]).numpy()
            else:
                self._array[place] = value[row].numpy()
        self._written, self._held = calls.stop, []
