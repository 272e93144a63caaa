"""Recorded values on disk are those in memory, bit for bit, and what is held does not grow with images or steps."""

import errno
import gc
import shutil
import sys
from collections import namedtuple

import conftest
import numpy as np
import pytest
import torch
import xarray as xr
from diffusers import DDIMScheduler, HeunDiscreteScheduler

import workbench as wb
from workbench.engine import disk
from workbench.engine.batch import Batch

SITES = ["unet.up.1.*.cross", "unet.mid.cross.probs", "text_encoder.*.mlp", "latents"]
RESTORED = wb.World("restored", "a lion", wb.restore("unet.mid.cross", "a zebra"))
WORLDS = ["a zebra", wb.World("off", "a zebra", wb.scale("unet.mid.cross", 0.0)), RESTORED]


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    pipeline = conftest.sd1()
    pipeline.set_progress_bar_config(disable=True)
    return wb.load(pipeline)


def summed(total, call, worlds, probs):
    return probs.mean(1) if total is None else total + probs.mean(1)


def recording(model, record_to=None, **more):
    """A run of three worlds, of which one reads another, in batches that carry it along."""
    fold = wb.Fold("the sum, (pixel, token)", ("unet.mid.cross.probs",), ("pixel", "token"), summed)
    asked = dict(seeds=(3, 0, 7), num_inference_steps=3, batch_size=2, record=[*SITES, fold], progress=False)
    return model.run(WORLDS, **asked | more, record_to=record_to)


@pytest.mark.parametrize(
    "chunk, scheduler", [(1, DDIMScheduler), (5000, HeunDiscreteScheduler), (disk.CHUNK, HeunDiscreteScheduler)]
)
def test_values_on_disk_are_those_in_memory(tiny, chunk, scheduler, tmp_path, monkeypatch):
    """Written call by call, some calls together (the last fewer), and all at once."""
    monkeypatch.setattr(disk, "CHUNK", chunk)
    monkeypatch.setattr(tiny.pipeline, "scheduler", scheduler.from_config(tiny.pipeline.scheduler.config))
    memory, kept = recording(tiny), recording(tiny, tmp_path / "values")
    assert list(kept.values) == list(memory.values) and kept.fired == memory.fired
    assert kept.images.identical(memory.images) and kept.latents.identical(memory.latents)
    for name, values in memory.values.items():
        assert kept.values[name].dtype == values.dtype and not kept.values[name].variable._in_memory
        assert kept.values[name].identical(values), name
        assert not kept.values[name].variable._in_memory  # read, and not kept
        assert kept.values[name].isel(seed=1).sel(world="off").identical(values.isel(seed=1).sel(world="off"))
        with xr.open_zarr(tmp_path / "values" / name, chunks=None) as later:
            assert later.recorded.variable.equals(values.variable)
            assert all(later[axis].equals(values[axis]) for axis in values.coords)


def carried(model, monkeypatch, seeds: int, record_to=None) -> int:
    """By how much the bytes of living tensors have grown when the last batch begins."""
    live, begun, trace = [], [], Batch.trace

    def counted(self, *arguments, **more):
        begun.append(self.seeds)
        if len(begun) in (1, 2 * seeds):  # two batches for each seed
            gc.collect()
            tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
            storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
            live.append(sum(storages.values()))
        return trace(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "trace", counted)
        recording(model, record_to, seeds=range(seeds), record="unet.*.cross", num_inference_steps=2)
    assert len(begun) == 2 * seeds
    return live[1] - live[0]


def test_what_is_carried_on_grows_by_pictures_alone(tiny, tmp_path, monkeypatch):
    found = recording(tiny, record="unet.*.cross", num_inference_steps=2)
    recorded = sum(value.nbytes for value in found.values.values()) / 9
    pictures = (found.images.nbytes + found.latents.nbytes) / 9
    few, many = (carried(tiny, monkeypatch, seeds, tmp_path / f"{seeds}") for seeds in (2, 4))
    assert (many - few) / 6 < 2 * pictures < recorded / 3
    assert carried(tiny, monkeypatch, 2) - few > 4 * recorded / 2  # in memory it can be told


def test_what_is_held_of_a_site_does_not_grow_with_steps(tiny, tmp_path, monkeypatch):
    """Neither the list nor what is stacked to be written exceed what was promised beforehand."""
    held, append = [], disk.Sink.append

    def counted(self, value):
        append(self, value)
        held.append(len(self._held) * value.nbytes)

    monkeypatch.setattr(disk.Sink, "append", counted)
    monkeypatch.setattr(disk, "CHUNK", 1000)
    most = []
    for steps in (3, 12):
        held.clear()
        record = "unet.mid.cross.probs"
        tiny.run(WORLDS[:1], seeds=(0, 1), num_inference_steps=steps, record=record, record_to=tmp_path / f"{steps}")
        most.append(max(held))
    assert 0 < most[0] == most[1] <= 2 * disk.CHUNK


def test_what_does_not_fit_is_refused_and_nothing_is_made(tiny, tmp_path, monkeypatch):
    def refused(error, match, at="values", **more):
        before = sorted(tmp_path.rglob("*"))
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "trace", lambda *_, **__: pytest.fail("it began"))
            with pytest.raises(error, match=match):
                recording(tiny, tmp_path / at if isinstance(at, str) and "://" not in at else at, **more)
        assert sorted(tmp_path.rglob("*")) == before

    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    refused(ValueError, r"record_to='.*file' is there already; name a folder that is not, or an empty one", at="file")
    refused(ValueError, r"record_to='.*full' is there already", at="full")
    refused(ValueError, r"record_to=s3://\.\.\.: an address; give the path of a folder of this machine", at="s3://a/b")
    refused(ValueError, r"record_to='.*values': nothing is recorded; name sites or folds in record=", record=())
    for name in ("a/b", ".hidden", "a:b"):
        fold = wb.Fold(name, ("unet.mid.cross.probs",), ("pixel", "token"), summed)
        refused(ValueError, f"record_to: the fold's name '{name}' cannot be a folder's", record=fold)
    refused(KeyError, "no site matches 'unet.qux'", record="unet.qux")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2**10))
        refused(
            OSError, r"recording \d+ sites for 9 images would take .* GiB, 0.0 GiB are free on its disk; name a folder"
        )
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["workbench.engine.run"], "free_bytes", lambda device: 2**10)
        refused(MemoryError, r"record_to=: what is held of a batch of 2 images would take .* give a smaller batch_size")
        with pytest.raises(MemoryError, match=r"would take .*, or keep them in a folder: record_to="):
            recording(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "find_spec", lambda name: None)
        refused(ImportError, r"record_to= needs the package zarr: pip install 'diffusion-workbench\[disk\]'")


def test_the_estimate_is_what_the_folder_takes(tiny, tmp_path, monkeypatch):
    asked = []
    usage = shutil.disk_usage

    def told(path):
        asked.append(path)
        return usage(path)

    monkeypatch.setattr(shutil, "disk_usage", told)
    sizes = {}
    monkeypatch.setattr(disk.OnDisk, "held", lambda self, rows: sizes.update(size=self.size) or 0)
    recording(tiny, tmp_path / "values", record=SITES)
    taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / "values").rglob("recorded/[0-9]*"))
    assert asked == [tmp_path] and 0.9 < taken / sizes["size"] <= 1.05


def test_a_run_that_is_stopped_says_what_is_there(tiny, tmp_path, monkeypatch):
    memory, batches, trace = recording(tiny), [], Batch.trace

    def stopped(self, *arguments, **more):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(self)
        return trace(self, *arguments, **more)

    monkeypatch.setattr(Batch, "trace", stopped)
    with pytest.raises(KeyboardInterrupt) as raised:
        recording(tiny, tmp_path / "values")
    says = (
        "holds the recorded values of 4 of 9 images, the others are NaN or missing; no run goes on with it: remove it"
    )
    assert says in raised.value.__notes__[0]
    with xr.open_zarr(tmp_path / "values" / "latents", chunks=None) as found:
        there = found.recorded.notnull().all(("step", "channel", "y", "x"))
        assert int(there.sum()) == 4 and not found.recorded.where(~there, drop=True).notnull().any()
        assert np.array_equal(found.recorded.isel(world=0, seed=0), memory.values["latents"].isel(world=0, seed=0))
    with pytest.raises(ValueError, match="is there already"):
        recording(tiny, tmp_path / "values")


def test_a_full_disk_is_told(tiny, tmp_path, monkeypatch):
    def full(self, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.Sink, "append", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        recording(tiny, tmp_path / "values")
    assert any("holds the recorded values of 0 of 9 images" in note for note in raised.value.__notes__)
    monkeypatch.undo()
    assert recording(tiny).images.shape[:2] == (3, 3)  # the model is as it was
