"""The store and its shards: promises kept by real processes, on a real folder, whatever dies or is damaged."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import time
import warnings
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from workbench.experiments import store as store_module
from workbench.experiments.shards import Shards, opened
from workbench.experiments.store import Folder, Memory, as_store

FORK = multiprocessing.get_context("fork")  # a child begins with everything imported
SPEC = {"experiment": "toy", "columns": ["world", "metric", "value"], "noise": 3.0}
ROWS = [dict(world="clean", metric="m", prompt=0, seed=seed, value=0.1 * seed) for seed in range(4)]


def in_processes(work, count: int, *arguments) -> list:
    """What as many processes return, begun at once."""
    answers, gate = FORK.Queue(), FORK.Barrier(count)

    def child(number: int):
        gate.wait()
        answers.put((number, work(number, *arguments)))

    children = [FORK.Process(target=child, args=(number,)) for number in range(count)]
    for each in children:
        each.start()
    found = dict(answers.get(timeout=60) for _ in children)
    for each in children:
        each.join()
    return [found[number] for number in range(count)]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_one_of_many_creates_and_the_others_are_told(tmp_path, monkeypatch, links):
    def refused(*paths):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:  # as on exFAT
        monkeypatch.setattr(os, "link", refused)

    def race(number: int) -> list[bool]:
        folder = Folder(tmp_path / "f")
        return [folder.create(f"name {i}", f"{number}".encode() * 50_000) for i in range(40)]

    won = in_processes(race, 4)
    assert all(sum(wins) == 1 for wins in zip(*won, strict=True))
    folder = Folder(tmp_path / "f")
    assert folder.names() == sorted(f"name {i}" for i in range(40))
    for i, wins in enumerate(zip(*won, strict=True)):
        assert folder.read(f"name {i}") == f"{wins.index(True)}".encode() * 50_000
    assert not list((tmp_path / "f").glob(".*"))


def test_what_is_created_is_never_changed():
    for store in (Memory(), Memory()):
        assert store.create("a", b"1") and not store.create("a", b"2") and store.read("a") == b"1"
        with pytest.raises(FileNotFoundError):
            store.read("b")


def test_a_lease_is_for_one_and_ends_with_its_block(tmp_path):
    folder, other = Folder(tmp_path), Folder(tmp_path)
    with folder.lease("part") as lease:
        assert lease is not None and other.lease("part") is None and folder.lease("part") is None
        assert other.lease("another") is not None
    with other.lease("part"):
        assert folder.lease("part") is None
    with pytest.raises(KeyboardInterrupt), folder.lease("part"):
        raise KeyboardInterrupt
    assert other.lease("part") is not None  # at once
    assert folder.names() == []


def test_one_of_many_gets_the_lease(tmp_path):
    def race(number: int) -> list[bool]:
        folder, held = Folder(tmp_path), []
        for i in range(20):
            held.append(folder.lease(f"part {i}"))
        time.sleep(0.5)
        return [lease is not None for lease in held]

    assert all(sum(wins) == 1 for wins in zip(*in_processes(race, 4), strict=True))


def test_a_lease_outlives_long_work_and_ends_with_its_process(tmp_path):
    def works(path: Path):
        with Folder(path, lease_seconds=0.5).lease("part"):
            time.sleep(60)

    folder = Folder(tmp_path, lease_seconds=0.5)
    child = FORK.Process(target=works, args=(tmp_path,))
    child.start()
    while not list(tmp_path.glob("*.lease")):
        time.sleep(0.01)
    for _ in range(15):
        assert folder.lease("part") is None
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert folder.lease("part") is None  # nobody can know yet
    time.sleep(0.7)
    with folder.lease("part") as lease:
        assert lease is not None and Folder(tmp_path, lease_seconds=0.5).lease("part") is None
    assert not list(tmp_path.iterdir())


def test_time_is_the_folders_own(tmp_path, monkeypatch):
    """A machine whose clock is an hour ahead takes nobody's lease."""
    held = Folder(tmp_path).lease("part")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)
    assert Folder(tmp_path).lease("part") is None
    held.release(finished=True)


def test_one_that_was_stopped_too_long_harms_nobody(tmp_path):
    """Its part is taken again; when it wakes up and finishes, the first result stands."""
    sleeper, other = Folder(tmp_path, lease_seconds=0.2), Folder(tmp_path, lease_seconds=0.2)
    lease = sleeper.lease("part")
    lease._ended.set()  # as when the process is stopped: its thread touches nothing
    time.sleep(0.4)
    with other.lease("part") as taken:
        assert taken is not None and other.create("part", b"other's")
    assert not sleeper.create("part", b"sleeper's") and sleeper.read("part") == b"other's"
    lease.release(finished=True)
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_a_full_disk_leaves_a_usable_folder(tmp_path):
    """The file size limit of a process stops its writes in the middle, as a full disk does."""

    def fills(number: int) -> str:
        folder = Folder(tmp_path)
        with folder.lease("part"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            try:
                folder.create("part", bytes(1_000_000))
            except OSError as error:
                return errno.errorcode[error.errno]
        return "written"

    assert in_processes(fills, 1) == ["EFBIG"]
    assert list(tmp_path.iterdir()) == []
    folder = Folder(tmp_path)
    with folder.lease("part"):
        assert folder.create("part", bytes(1_000_000))
    assert folder.names() == ["part"]


def test_a_full_disk_is_told_and_the_part_is_free(tmp_path, monkeypatch):
    shards = Shards(SPEC, Folder(tmp_path))
    assert shards.take("a", lambda: ROWS) is not None

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            shards.take("b", lambda: ROWS)
    again = Shards(SPEC, Folder(tmp_path))
    assert "a" in again and "b" not in again and again.take("b", lambda: ROWS) is not None


def test_litter_of_the_dead_goes_and_that_of_the_living_stays(tmp_path):
    old, new = ((tmp_path / f".{n}.tmp", tmp_path / f"part+{n}.lease") for n in (0, 1))
    for path in (*old, *new):
        path.touch()
    for path in old:
        os.utime(path, (0, 0))
    assert Folder(tmp_path).names() == [] and sorted(tmp_path.iterdir()) == sorted(new)


def test_a_folder_has_to_be_one(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"folder='.*thesis.tex' is a file; name a folder, which need not exist"):
        as_store(tmp_path / "thesis.tex")
    assert as_store("~/runs").path == Path.home() / "runs" and isinstance(as_store(None), Memory)


# shards


def name_of(folder: Path, part: str) -> Path:
    (found,) = folder.glob(f"*-{part}.parquet")
    return found


@pytest.fixture
def kept(tmp_path):
    """A folder with the parts a and b."""
    shards = Shards(SPEC, Folder(tmp_path / "kept"))
    for number, part in enumerate("ab"):
        shards.take(part, lambda number=number: [row | {"prompt": number} for row in ROWS])
    return tmp_path / "kept"


def cut(folder: Path):
    path = name_of(folder, "b")
    path.write_bytes(path.read_bytes()[:-200])


def emptied(folder: Path):
    name_of(folder, "b").write_bytes(b"")


def copied_from_another_part(folder: Path):
    name_of(folder, "b").write_bytes(name_of(folder, "a").read_bytes())


def copied_from_another_spec(folder: Path):
    other = Shards(SPEC | {"noise": 5.0}, Folder(folder.parent / "other"))
    other.take("b", lambda: ROWS)
    name_of(folder, "b").write_bytes(name_of(folder.parent / "other", "b").read_bytes())


def rewritten(folder: Path, change):
    """The same shard with other rows under its metadata."""
    path = name_of(folder, "b")
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def without_rows(folder: Path):
    rewritten(folder, lambda table: table.slice(0, 0))


def of_another_schema(folder: Path):
    rewritten(folder, lambda table: table.rename_columns(["world", "metric", "prompt", "seed", "score"]))


def altered(folder: Path):
    """One value, by one bit."""
    rewritten(folder, lambda table: table.set_column(4, "value", [[0.0, 0.1, 0.2, 0.3]]))


def not_ours(folder: Path):
    pd.DataFrame(ROWS).to_parquet(name_of(folder, "b"))


DAMAGES = {
    cut: "arquet",
    emptied: "arquet",
    altered: "its rows are not those that were written",
    copied_from_another_part: r"it is of another part \(a\)",
    copied_from_another_spec: r"it is of another specification \(.*, here .*\)",
    without_rows: "it has no rows",
    of_another_schema: r"it lacks the columns \['value'\]; found",
    not_ours: "it does not say which part it is",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_bad_shard_is_named_and_computed_again(kept, damage):
    whole = Shards(SPEC, Folder(kept)).table()
    damage(kept)
    calls = []
    with pytest.warns(UserWarning, match=rf"kept/.*-b.parquet is left out: .*{DAMAGES[damage]}") as warned:
        shards = Shards(SPEC, Folder(kept))
        assert "a" in shards and "b" not in shards and set(shards.table().prompt) == {0}
        for number, part in enumerate("ab"):
            shards.take(part, lambda number=number: calls.append(1) or [row | {"prompt": number} for row in ROWS])
    assert len(warned) == len(calls) == 1
    pd.testing.assert_frame_equal(shards.table(), whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once there is a good one, it is as if nothing had been
        again = Shards(SPEC, Folder(kept))
        pd.testing.assert_frame_equal(again.table(), whole)
        assert again.take("b", lambda: pytest.fail("computed again")) is not None


def test_a_shard_of_another_specification_beside_them_is_named(kept):
    other = Shards(SPEC | {"noise": 5.0}, Folder(kept.parent / "other"))
    other.take("c", lambda: ROWS)
    stray = name_of(kept.parent / "other", "c")
    (kept / stray.name).write_bytes(stray.read_bytes())
    with pytest.warns(UserWarning, match=r"-c.parquet is left out: it is of another specification"):
        assert len(Shards(SPEC, Folder(kept))) == 2


@pytest.mark.parametrize("half", [b"", b'{"experiment": "toy", "noi', b"\x00" * 40, b"[]"])
def test_half_a_specification_is_no_obstacle(kept, half):
    whole = Shards(SPEC, Folder(kept)).table()
    (kept / "spec.json").write_bytes(half)
    assert opened(Folder(kept)) is None
    shards = Shards(SPEC, Folder(kept))
    pd.testing.assert_frame_equal(shards.table(), whole)
    pd.testing.assert_frame_equal(opened(Folder(kept)).table(), whole)
    with pytest.raises(ValueError, match=r"another specification; .*\n  noise: the folder has 3.0, asked 5.0"):
        Shards(SPEC | {"noise": 5.0}, Folder(kept))


def test_half_a_specification_hides_no_other_experiment(kept):
    (kept / "spec.json").write_bytes(b'{"exp')
    with pytest.raises(ValueError, match=r"holds files but no spec.json that says of which experiment: .*-a.parquet"):
        Shards(SPEC | {"noise": 5.0}, Folder(kept))


def test_two_that_begin_at_once_agree(tmp_path):
    def begin(number: int) -> str:
        try:
            return Shards(SPEC | {"noise": float(number % 2)}, Folder(tmp_path)).hash
        except ValueError as error:
            return str(error).splitlines()[1].strip().split(":")[0]

    answers = in_processes(begin, 6)
    won = json.loads((tmp_path / "spec.json").read_text())["noise"]
    assert [answer == "noise" for answer in answers] == [number % 2 != won for number in range(6)]


def test_versions_are_those_that_computed(kept, monkeypatch):
    here = Shards(SPEC, Folder(kept)).versions
    assert here["nnsight"].startswith("0.8")
    monkeypatch.setattr("workbench.experiments.shards.version", lambda name: "99")
    assert Shards(SPEC, Folder(kept)).versions == here  # the reader's do not count
    mixed = Shards(SPEC, Folder(kept))
    mixed.take("c", lambda: ROWS)
    assert mixed.versions["nnsight"] == f"{here['nnsight']}, 99"


def test_parts_may_be_called_anything(tmp_path):
    names = ["a/b", "told the other-held_out", "x" * 300, "x" * 299 + "y", "a+1", "a", "unet.mid.cross-0.5", "ü: *?"]
    shards = Shards(SPEC, Folder(tmp_path))
    for number, part in enumerate(names):
        shards.take(part, lambda number=number: [row | {"prompt": number} for row in ROWS])
    again = Shards(SPEC, Folder(tmp_path))
    assert [int(again.rows(part).prompt[0]) for part in names] == list(range(len(names)))


def test_rows_that_are_not_what_they_should_be_are_refused(tmp_path):
    shards = Shards(SPEC, Folder(tmp_path))
    with pytest.raises(ValueError, match="it has no rows"):
        shards.take("a", lambda: [])
    with pytest.raises(ValueError, match=r"it lacks the columns \['value'\]"):
        shards.take("a", lambda: [dict(world="w", metric="m")])
    assert shards.take("a", lambda: ROWS) is not None


def test_a_file_system_that_fails_otherwise_is_told(tmp_path, monkeypatch):
    def broken(*paths):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", broken)
    with pytest.raises(OSError, match="Input/output error"):
        Folder(tmp_path).create("a", b"")
    assert store_module.NO_LINKS and not list(tmp_path.iterdir())
