"""Finished parts of one experiment in a store: `spec.json`, what was asked, and a Parquet shard of rows for each part.

A shard says in its metadata which part it is, of which specification, what computed it, and a digest of its rows. One that
does not hold what its name says (cut, copied from another part or specification, empty, of another form) is named in a
warning and left out. Nothing in a store is changed: in place of a bad shard `...+1.parquet` is written, and so on, and the
same for a `spec.json` that cannot be read.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from importlib.metadata import version
from itertools import count
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.experiments.store import Store

SPEC = "spec.json"
ABOUT = b"workbench"  # the key of a shard's metadata
PACKAGES = ("diffusion-workbench", "torch", "diffusers", "transformers", "nnsight", "open_clip_torch")
LONGEST = 120  # characters of a part's name in a file's

Row = Mapping[str, Any]
Spec = dict[str, Any]


class Shards:
    """The parts of an experiment that are finished; `take` adds others.

    spec: everything that the rows depend on, as JSON has it; its `columns` are what every row must have. packages: those
    whose versions are written into new shards. Raises ValueError for a store that holds another experiment, naming what
    differs.
    """

    def __init__(self, spec: Mapping[str, Any], store: Store, packages: Sequence[str] = PACKAGES):
        self.spec, self.store, self.packages = json.loads(json.dumps(spec)), store, packages
        self.hash = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()[:12]
        self._tables: dict[str, pd.DataFrame] = {}
        self._versions: dict[str, dict[str, str]] = {}
        self._bad: dict[str, str] = {}  # why, by name
        self._told: set[str] = set()
        _agree(self.spec, self.hash, store)
        for name in store.names():
            if name.endswith(".parquet"):
                self._read(name)
        self._warn()

    def __contains__(self, part: str) -> bool:
        return self.rows(part) is not None

    def rows(self, part: str) -> pd.DataFrame | None:
        """The rows of a finished part, whoever computed it; None for one that is not finished."""
        for name in _generations(self._stem(part), ".parquet"):
            if part in self._tables:
                return self._tables[part]
            if name not in self._bad and not self._read(name):
                return None
        return None

    def take(self, part: str, compute: Callable[[], Iterable[Row]]) -> pd.DataFrame | None:
        """The rows of a part: kept ones, else computed and kept; None while another worker is at it."""
        return self.take_all([part], lambda _: [compute()]).get(part)

    def take_all(
        self, parts: Sequence[str], compute: Callable[[list[str]], Iterable[Iterable[Row]]]
    ) -> dict[str, pd.DataFrame]:
        """The same of parts that are computed together: none of them while another worker is at one.

        compute: names of those that are not kept -> the rows of each, in this order.
        """
        kept = {part: rows for part in parts if (rows := self.rows(part)) is not None}
        with ExitStack() as leases:
            for part in parts:
                if part in kept:
                    continue
                if (lease := self.store.lease(self._stem(part))) is None:
                    return kept
                leases.enter_context(lease)
            kept |= {part: rows for part in parts if part not in kept and (rows := self.rows(part)) is not None}
            self._warn()
            own = [part for part in parts if part not in kept]
            rows = compute(own) if own else []
            return kept | {part: self._write(part, each) for part, each in zip(own, rows, strict=True)}

    def table(self) -> pd.DataFrame:
        """All rows so far, long-form."""
        return pd.concat([self._tables[part] for part in self.parts], ignore_index=True)

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that computed the parts; several of one package, as "2.6.0, 2.7.1", where parts differ."""
        found: dict[str, list[str]] = {}
        for versions in self._versions.values():
            for package, number in versions.items():
                found.setdefault(package, []).append(number)
        return {package: ", ".join(sorted(set(numbers))) for package, numbers in found.items()}

    @property
    def parts(self) -> list[str]:
        """Names of those that are finished."""
        return sorted(self._tables)

    def __len__(self):
        return len(self._tables)

    def _stem(self, part: str) -> str:
        """How a part's shard and its lease are called."""
        name = quote(part, safe=" ,()=")
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{hashlib.sha256(part.encode()).hexdigest()[:12]}"
        return f"{self.hash}-{name}"

    def _read(self, name: str) -> bool:
        """Look into a shard: whether it is there. The rows of a good one are kept, a bad one is noted."""
        try:
            data = self.store.read(name)
        except FileNotFoundError:
            return False
        try:
            table, about = _decoded(data)
            self._check(_without_generation(name), table, about)
        except (ValueError, OSError, pa.ArrowException) as error:
            self._bad[name] = str(error).strip().splitlines()[0]
        else:
            self._tables[about["part"]] = table.to_pandas()
            self._versions[about["part"]] = about.get("versions", {})
        return True

    def _check(self, stem: str, table: pa.Table, about: Mapping[str, Any]):
        if about.get("spec") != self.hash:
            raise ValueError(f"it is of another specification ({about.get('spec')}, here {self.hash})")
        if self._stem(about["part"]) != stem:
            raise ValueError(f"it is of another part ({about['part']})")
        if not table.num_rows:
            raise ValueError("it has no rows")
        if missing := [column for column in self.spec.get("columns", ()) if column not in table.column_names]:
            raise ValueError(f"it lacks the columns {missing}; found {table.column_names}")
        if about.get("sha256") != _digest(table):
            raise ValueError("its rows are not those that were written")

    def _warn(self):
        """Tell once of every bad shard that no good one stands for."""
        good = {self._stem(part) for part in self._tables}
        for name, why in self._bad.items():
            if name not in self._told and _without_generation(name) not in good:
                self._told.add(name)
                said = f"{self.store}/{name} is left out: {why}; the call that it comes from computes its part again"
                warnings.warn(said, stacklevel=2)

    def _write(self, part: str, rows: Iterable[Row]) -> pd.DataFrame:
        """Keep a part's rows; those of another worker, where it was first."""
        table, stem = pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False), self._stem(part)
        versions = {name: version(name) for name in self.packages}
        about = {"part": part, "spec": self.hash, "versions": versions, "sha256": _digest(table)}
        self._check(stem, table, about)
        for name in _generations(stem, ".parquet"):
            if name not in self._bad:
                self.store.create(name, _encoded(table, about))
                self._read(name)
            if part in self._tables:
                break
        return self._tables[part]


def opened(store: Store) -> Shards | None:
    """What a store holds; None where it holds no specification."""
    for name in _generations("spec", ".json"):
        try:
            spec = _spec(store.read(name))
        except FileNotFoundError:
            return None
        if spec is not None:
            return Shards(spec, store)
    return None


def _agree(spec: Spec, hash: str, store: Store):
    """Write the specification, or compare it with the one that is there."""
    for name in _generations("spec", ".json"):
        try:
            held = _spec(store.read(name))
        except FileNotFoundError:
            foreign = [
                each for each in store.names() if not each.startswith(f"{hash}-") and not fnmatch(each, "spec*.json")
            ]
            if foreign:
                raise ValueError(
                    f"folder={str(store)!r} holds files but no {SPEC} that says of which experiment: {', '.join(foreign[:3])}; "
                    "name an empty or a new folder"
                ) from None
            store.create(name, (json.dumps(spec, indent=1) + "\n").encode())
            held = _spec(store.read(name))  # another worker's, where it was first
        if held == spec:
            return
        if held is not None:
            raise ValueError(
                f"folder={str(store)!r} holds the results of another specification; name another folder, or ask for the "
                f"same:{differences(held, spec)}"
            )


def _spec(data: bytes) -> Spec | None:
    """A specification; None for bytes that are none, such as half of one."""
    try:
        spec = json.loads(data)
    except ValueError:
        return None
    return spec if isinstance(spec, dict) else None


def differences(held: Any, asked: Any, said: tuple[str, str] = ("the folder has", "asked"), name: str = "") -> str:
    """A line for each value that differs, as deep in the mappings as it stands. said: what stands before each of the two."""
    if not (isinstance(held, dict) and isinstance(asked, dict)):
        return f"\n  {name}: {said[0]} {_short(held)}, {said[1]} {_short(asked)}"
    keys = sorted(key for key in {*held, *asked} if held.get(key) != asked.get(key))
    return "".join(differences(held.get(key), asked.get(key), said, f"{name}.{key}".lstrip(".")) for key in keys)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else f"{text[:100]}... ({len(text)} characters)"


def _generations(stem: str, end: str) -> Iterator[str]:
    """Names under which a thing may stand: the first, and those that stand for bad ones."""
    yield f"{stem}{end}"
    for number in count(1):
        yield f"{stem}+{number}{end}"


def _without_generation(name: str) -> str:
    """The stem of a shard's name: no part has a "+" in its own."""
    return name.removesuffix(".parquet").partition("+")[0]


def _encoded(table: pa.Table, about: Mapping[str, Any]) -> bytes:
    metadata = {**(table.schema.metadata or {}), ABOUT: json.dumps(about).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue().to_pybytes()


def _decoded(data: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """Rows, and what a shard says of itself; raises ValueError and pyarrow's errors for other bytes."""
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    about = json.loads((table.schema.metadata or {}).get(ABOUT, b"null"))
    if not isinstance(about, dict) or not isinstance(about.get("part"), str):
        raise ValueError("it does not say which part it is")
    return table, about


def _digest(table: pa.Table) -> str:
    """SHA-256 of all names and values."""
    state = hashlib.sha256()
    for name in table.column_names:
        state.update(json.dumps([name, table[name].to_pylist()]).encode())
    return state.hexdigest()
