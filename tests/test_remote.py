"""Stores beyond one disk: the promises of tests/test_store.py behind addresses, on fsspec's memory and on an S3 server (moto)."""

import os
import random
import sys
import threading
import time
import uuid
from functools import partial
from pathlib import Path

import conftest
import fsspec
import kill_many
import pandas as pd
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from s3 import BUCKET, s3_server
from test_store import FORK, ROWS, SPEC, in_processes

import workbench as wb
from workbench import cli
from workbench.experiments import remote
from workbench.experiments.remote import Remote, at_address
from workbench.experiments.results import open_table
from workbench.experiments.shards import Shards
from workbench.experiments.store import BEATS, Folder, as_store
from workbench.prompts import Prompt, PromptSet
from workbench.viewer.sources import sources_of

SHORT = 0.4  # seconds of a lease; a second more passes until it is known to have ended
PROMPTS = PromptSet("two", (Prompt("a zebra", "zebra"), Prompt("a lion", "lion")))
QUICK = dict(seeds=(0,), num_inference_steps=1, guidance_scale=3.0)


@pytest.fixture(scope="module")
def s3():
    with s3_server() as process:
        yield process


@pytest.fixture
def bucket(s3):
    """A place in it where nothing is yet."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["memory", "s3"])
def place(request):
    return request.getfixturevalue("bucket") if request.param == "s3" else f"memory://{uuid.uuid4().hex}/trace"


@pytest.fixture
def at_once(monkeypatch):
    """Requests are tried again without waiting."""
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))


def short(place: str) -> Remote:
    return Remote(place, lease_seconds=SHORT)


# the four verbs


def test_what_is_created_is_never_changed(place):
    store = as_store(place)
    names = ["b", "a,(c)=%2B +1.parquet", "ü", ".hidden", "x.lease"]
    assert [store.create(name, b"1") for name in names] == [True] * 5
    assert [store.create(name, b"22") for name in names] == [False] * 5
    assert [as_store(place).read(name) for name in names] == [b"1"] * 5
    assert store.names() == sorted(names[:3])
    with pytest.raises(FileNotFoundError):
        store.read("c")
    assert str(store) == place and as_store(f"{place}/").names() == store.names()


def test_a_store_within_a_store(place):
    store = as_store(place)
    assert store.holding("spec.json") == []
    for path in ("", "coarse", "deep/fine"):
        assert (store.within(path) if path else store).create("spec.json", path.encode())
    assert store.names() == store.within("coarse").names() == ["spec.json"]
    assert store.holding("spec.json") == ["", "coarse", "deep/fine"] and store.within("deep").names() == []
    assert as_store(f"{place}/deep/fine").read("spec.json") == b"deep/fine"


def test_a_folder_holds_folders_as_an_address_does(tmp_path):
    for store in (Folder(tmp_path), as_store(None), at_address(f"file://{tmp_path}/more")):
        store.within("deep/fine").create("spec.json", b"")
        assert "deep/fine" in store.holding("spec.json") and store.names() == []


def test_a_lease_is_for_one_and_ends_with_its_block(place):
    store, other = as_store(place), as_store(place)
    with store.lease("part") as lease:
        assert lease is not None and other.lease("part") is None and store.lease("part") is None
        with other.lease("another") as another:
            assert another is not None
    with other.lease("part"):
        assert store.lease("part") is None
    with pytest.raises(KeyboardInterrupt), store.lease("part"):
        raise KeyboardInterrupt
    with other.lease("part") as lease:  # at once
        assert lease is not None
    assert store.names() == [] and [name for name in store._listed() if name.endswith(".lease")] == []


def test_a_lease_outlives_long_work_and_ends_with_its_process(place, monkeypatch):
    if place.startswith("memory"):  # it tells time finely
        monkeypatch.setattr(remote, "COARSE", 0.0)
    store, other = short(place), short(place)
    lease = store.lease("part")
    until = time.monotonic() + SHORT + remote.COARSE + 0.5
    while time.monotonic() < until:
        assert other.lease("part") is None
        time.sleep(0.1)
    lease._ended.set()  # as when the process is killed: its thread renews nothing
    lease._thread.join()
    dead = time.monotonic()
    while (taken := other.lease("part")) is None:
        time.sleep(0.05)
    assert SHORT * (1 - 1 / BEATS) < time.monotonic() - dead < SHORT + 2 * remote.COARSE + 1
    lease.release(finished=False)  # it wakes up: the other's lease, of the next number, stands
    assert short(place).lease("part") is None
    taken.release(finished=True)
    assert not [name for name in store._listed() if name.endswith(".lease")]


def test_a_lease_that_is_gone_is_not_written_again(place):
    store = short(place)
    lease = store.lease("part")
    store._files.rm_file(store._path("part+0.lease"))
    lease._thread.join(2)
    assert not lease._thread.is_alive() and "part+0.lease" not in store._listed()


def test_time_is_the_stores_own(place, monkeypatch):
    """A machine whose clock is an hour ahead takes nobody's lease."""
    held = as_store(place).lease("part")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)
    assert as_store(place).lease("part") is None
    held.release(finished=True)


def test_leases_of_the_dead_go_and_those_of_the_living_stay(place, monkeypatch):
    store = as_store(place)
    store.create("dead+0.lease", b"1")
    assert "dead+0.lease" in as_store(place)._listed()
    now = Remote._now
    monkeypatch.setattr(Remote, "_now", lambda self: now(self) + 2 * remote.LITTER)
    assert "dead+0.lease" not in as_store(place)._listed()


def test_one_of_two_processes_gets_each_lease(bucket, races=50):
    gate = FORK.Barrier(2)

    def race(number: int) -> list[bool]:
        store, won = as_store(bucket), []
        for i in range(races):
            gate.wait()
            won.append((lease := store.lease(f"part {i}")) is not None)
            if lease is not None:
                lease._ended.set()  # held, and not renewed: 200 threads would be
        return won

    won = in_processes(race, 2)
    assert [first + second for first, second in zip(*won, strict=True)] == [1] * races
    assert all(any(wins) for wins in won)  # it was a race


def test_one_of_two_threads_gets_each_of_200_leases():
    place, gate, won = f"memory://{uuid.uuid4().hex}", threading.Barrier(2), ([], [])

    def race(mine: list):
        store = as_store(place)
        for i in range(200):
            gate.wait()
            mine.append((lease := store.lease(f"part {i}")) is not None)
            if lease is not None:
                lease._ended.set()

    threads = [threading.Thread(target=race, args=(each,)) for each in won]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [first + second for first, second in zip(*won, strict=True)] == [1] * 200


def test_a_lease_lists_nothing(place, monkeypatch):
    store = as_store(place)
    for i in range(3):
        store.create(f"part {i}", b"")
    for name in ("ls", "find", "_lsdir", "_find", "glob"):
        monkeypatch.setattr(type(store._files), name, None, raising=False)
    with store.lease("part 9") as lease:
        assert lease is not None and store.lease("part 9") is None


# shards and experiments


def test_a_bad_shard_is_named_and_computed_again(place):
    shards = Shards(SPEC, as_store(place))
    names = ["a/b", "x" * 300, "x" * 299 + "y", "a+1", "a", "ü: *?"]
    for number, part in enumerate(names):
        shards.take(part, lambda number=number: [row | {"prompt": number} for row in ROWS])
    again = Shards(SPEC, as_store(place))
    assert [int(again.rows(part).prompt[0]) for part in names] == list(range(len(names)))
    store = as_store(place)
    name = next(name for name in store.names() if name.endswith("-a.parquet"))
    store._files.pipe_file(store._path(name), store.read(name)[:-50])  # half of it came
    with pytest.warns(UserWarning, match=rf"{place}/.*-a.parquet is left out: .*arquet"):
        broken = Shards(SPEC, as_store(place))
        assert "a" not in broken and broken.take("a", lambda: ROWS) is not None
    with pytest.raises(ValueError, match=f"folder='{place}' holds the results of another specification"):
        Shards(SPEC | {"noise": 5.0}, as_store(place))


@pytest.fixture(scope="module")
def trace(scorer):
    """A small trace, by where its parts are kept."""
    torch.manual_seed(0)
    pipeline = conftest.sd1()
    pipeline.set_progress_bar_config(disable=True)
    spec = wb.TraceSpec(sites=("text_encoder.*.mlp",), draws=2, **QUICK)
    asked = partial(wb.causal_trace, wb.load(pipeline), PROMPTS, spec, scorer=wb.Metric("mean", brightness))
    return lambda folder: asked(folder=folder).to_dataframe()


def brightness(images):
    return images.mean((1, 2, 3))


def test_an_experiment_by_its_address(trace, place, tmp_path):
    found = trace(place)
    pd.testing.assert_frame_equal(found, trace(tmp_path), check_exact=True)
    pd.testing.assert_frame_equal(wb.open_results(place).to_dataframe(), found, check_exact=True)
    assert open_table(place).equals(open_table(tmp_path))
    assert list(sources_of(place)) == ["causal trace: two"]
    assert wb.gallery(place, tmp_path / "page.html").stat().st_size > 10_000
    store = as_store(place)  # nothing that is kept or said holds a secret
    kept = [store.read(name) for name in store._listed()]
    assert len(kept) == 5 and not [data for data in kept if b"a secret" in data or b"somebody" in data]
    assert "secret" not in f"{store} {vars(store)}"


def test_processes_share_an_experiment(trace, bucket, tmp_path):
    parts = kill_many.share_out(trace, 2, tmp_path, bucket)
    assert sorted(parts) == [f"prompt000{p}-draw0{draw}" for p in range(2) for draw in range(2)]


def test_killed_in_the_middle_and_begun_again(trace, bucket, tmp_path):
    found = kill_many.kill_many(trace, 2, tmp_path, random.Random(0), bucket)
    assert found.kills == 2 and found.ends


def test_a_server_that_dies_in_the_middle(trace, at_once):
    with s3_server() as process:
        calls, take_all = [], Shards.take_all

        def dies(self, parts, compute):
            if len(calls) == 1:
                process.kill()
                process.wait()
            calls.append(parts)
            return take_all(self, parts, compute)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Shards, "take_all", dies)
            with pytest.raises(
                OSError, match=r"failed 3 times, at last with EndpointConnectionError: .*look at the network"
            ) as raised:
                trace(f"s3://{BUCKET}/trace")
    assert raised.value.__notes__ == [
        f"finished parts are kept in s3://{BUCKET}/trace (1 so far); the same call goes on"
    ]


def test_a_network_that_comes_back_is_asked_again(at_once, monkeypatch):
    failures, pipe = [], MemoryFileSystem.pipe_file

    def fails(self, path, *arguments, **more):
        if len(failures) < 2:
            failures.append(path)
            raise ConnectionResetError("connection reset by peer")
        return pipe(self, path, *arguments, **more)

    store = as_store(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fails)
    assert store.create("a", b"1") and len(failures) == 2


def test_a_write_that_was_answered_with_an_error_may_have_come(at_once, monkeypatch):
    """Then the store refuses to write it again, and the lease is nevertheless this process's."""
    answered, pipe = [], MemoryFileSystem.pipe_file

    def lost(self, path, *arguments, **more):
        pipe(self, path, *arguments, **more)
        if not answered:
            answered.append(path)
            raise ConnectionResetError("connection reset by peer")

    store = as_store(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lost)
    lease = store.lease("part")
    assert answered and lease is not None
    lease.release(finished=True)


# from a shell, and what is refused


def test_the_command_takes_an_address(bucket, tmp_path, monkeypatch, capsys):
    asked = ["trace", "--first", "1", "--sites", "text_encoder.0.mlp", "--draws", "1", "--seeds", "0"]
    asked += ["--num-inference-steps", "1", "--folder", f"{bucket}/trace", "--out", str(tmp_path / "trace")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["workbench", *asked])
    cli.main()
    assert (tmp_path / "trace.csv").exists() and not list(tmp_path.glob("s3*"))
    assert as_store(bucket).holding("spec.json") == ["trace"]
    monkeypatch.setattr(sys, "argv", ["workbench", "gallery", bucket, "--out", str(tmp_path / "page")])
    cli.main()
    assert "wrote" in capsys.readouterr().out


REFUSED = {
    "s3://nowhere/trace": (
        FileNotFoundError,
        "folder='s3://nowhere/trace': there is no bucket 'nowhere'; make it, or name another",
    ),
    "qux://bucket/trace": (ValueError, "there is no such kind of store; give one of .*memory.*s3.*, or a path"),
    "S3://bucket/trace": (ValueError, "there is no such kind of store; give one of .*s3"),
    "ftp://bucket/trace": (
        ValueError,
        r"folder=ftp://\.\.\.: this file system asks for more than an address .*; give an object store",
    ),
    "simplecache::s3://bucket/trace": (ValueError, "there is no such kind of store"),
    "s3://": (ValueError, "names no place; give SCHEME://BUCKET/PLACE"),
    "https://example.org/trace": (ValueError, "does not say when a thing was written"),
    "s3://key:hush@bucket/trace": (
        ValueError,
        r"folder=s3://\.\.\.: the address holds a user, a key or a query .*AWS_PROFILE",
    ),
    "s3://bucket/trace?token=hush": (ValueError, r"the address holds a user, a key or a query"),
    Path("s3://bucket/trace"): (
        ValueError,
        "folder=s3:/...: an address, of which pathlib.Path has taken a slash; give it as a text",
    ),
}


@pytest.mark.parametrize("address", REFUSED, ids=str)
def test_addresses_that_are_none(trace, s3, address, tmp_path, monkeypatch):
    error, says = REFUSED[address]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says) as raised:
        trace(address)
    assert "hush" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_package_that_is_not_installed(monkeypatch):
    registry = sys.modules["fsspec.registry"]  # fsspec.registry is the table in it
    for scheme, install in (
        ("s3", r"s3fs: pip install 'diffusion-workbench\[remote\]'"),
        ("gs", "gcsfs: pip install 'gcsfs'"),
    ):
        monkeypatch.setitem(sys.modules, install.partition(":")[0], None)
        monkeypatch.delitem(registry._registry, scheme, raising=False)
        with pytest.raises(ImportError, match=rf"folder={scheme}://\.\.\. needs the package {install}"):
            as_store(f"{scheme}://bucket/trace")


def test_no_credentials_and_wrong_ones(bucket, monkeypatch):
    def asked() -> str:
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(PermissionError) as raised:
            as_store(bucket)
        return str(raised.value)

    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        assert "listing was refused: no credentials were found, or not all; set those of the store" in asked()
    fsspec.filesystem("s3").clear_instance_cache()
    store = as_store(bucket)

    def denied(path, *arguments, **more):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(store._files, "pipe_file", denied)
    with pytest.raises(
        PermissionError, match=r"writing a was refused: Access Denied; the credentials must be valid, and allow"
    ):
        store.create("a", b"")
