"""A store beyond one disk: behind an address that fsspec knows, such as s3://bucket/trace, gs://bucket/trace, memory://trace.

What is asked of such a store, and what it gives:

- A name is written whole, under the name itself: nothing is renamed, since that is a copy there. Object stores show an object when all
  of it has come; where half a shard can be seen (sftp), its readers refuse it and the part is computed again.
- Create if absent is the store's own. S3's is a conditional write (If-None-Match; s3fs, `mode="create"`): of two processes that
  wrote one name at once, one won each of 200 times. Google's and Azure's packages write on the same condition, by their own word; that
  was not measured. Other file systems of fsspec look and then write, and S3 servers that do not know the condition ignore it: there
  two processes can both win. That is harmless: both compute the same rows from the same specification, and what is read afterwards is
  one of the two.
- Leases are numbered objects, created if absent and written again to renew them. A lease is alive by the store's own time: its
  age is the store's time of writing, against that of an object just written; one second more than asked, which is how finely S3 tells
  time. To take one, its numbers are asked for from 0 on: nothing is listed, and none is removed before its part is finished.

Credentials and endpoints are those of the package behind the address, from where it looks for them (AWS_PROFILE, ~/.aws,
AWS_ENDPOINT_URL_S3, ...). An address that holds any is refused, so that none is printed or kept.
"""

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.registry import known_implementations
from fsspec.spec import AbstractFileSystem

from workbench.experiments.store import LEASE, LITTER, Beating, Folder, Lease, Store
from workbench.inputs import shown

WAITS = (0.5, 2.0, 8.0)  # seconds between the tries of a request; the packages' own tries are within each
CLOCK, CLOCK_LASTS = ".clock", 60.0  # the object that tells the store's time, and seconds until it is written again
COARSE = 1.0  # seconds: how finely S3 tells time
BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # whose first part is made by hand
LOCAL = ("file", "local")
EXTRA = {"s3fs": "diffusion-workbench[remote]"}  # what installs a package

_CREATING = threading.Lock()  # of the threads of a process one at a time, where a file system looks and then writes


def at_address(address: str, *, lease_seconds: float = LEASE) -> Store:
    """The store behind an address; raises ValueError and ImportError for one that cannot be, before anything is asked of it."""
    scheme = urlsplit(address).scheme
    check_address(address)
    if scheme in LOCAL:
        return Folder(address.partition("://")[2], lease_seconds=lease_seconds)
    return Remote(address, lease_seconds=lease_seconds)


class Remote(Store):
    """A store behind an address of fsspec's; see above.

    lease_seconds: how long the lease of a process that died lasts. Take the same in all processes. Raises ValueError for an address
    that is none, ImportError for a package that is not installed, FileNotFoundError for no bucket, PermissionError where no
    credentials are found or they do not suffice, OSError where the store cannot be reached after a few tries.

    >>> store = Remote("memory://example/trace")
    >>> store.create("spec.json", b"{}"), store.create("spec.json", b"[]"), store.read("spec.json")
    (True, False, b'{}')
    """

    def __init__(self, address: str, *, lease_seconds: float = LEASE):
        check_address(address)
        self.address, self.lease_seconds = address.rstrip("/"), lease_seconds
        self.scheme, _, self._root = self.address.partition("://")
        self.look = lease_seconds / 15  # a request costs money
        self._clock: tuple[float, float] | None = None  # this process's time and the store's, at one moment
        self.shared = self.scheme != "memory"
        _filesystem(self.scheme)
        self._clean()

    def __str__(self):
        return self.address

    def create(self, name: str, data: bytes) -> bool:
        with contextlib.nullcontext() if self.scheme in BUCKETS else _CREATING:
            return self._created(name, data)

    def lease(self, name: str) -> Lease | None:
        """A lease that ended is not taken away, which two could do at once: the next number is created."""
        held, number = b"", 0
        for number in count():
            try:
                held = self.read(f"{name}+{number}.lease")
            except FileNotFoundError:
                break
        if held and self._alive(f"{name}+{number - 1}.lease"):
            return None
        own, token = f"{name}+{number}.lease", uuid.uuid4().hex.encode()
        if not self.create(own, token) and not self._holds(
            own, token
        ):  # a try that was answered with an error may have come
            return None

        def renew():
            self.read(own)  # raises where it is gone: written again, it would stay
            self._ask(f"renewing {own}", self._files.pipe_file, self._path(own), token, waits=())

        def end(finished: bool):
            if finished:
                for each in range(number + 1):
                    self._remove(f"{name}+{each}.lease")
            else:  # empty is ended; a lower number that were missing would be taken again
                self._ask(f"ending {own}", self._files.pipe_file, self._path(own), b"")

        return Beating(name, self.lease_seconds, renew, end)

    def read(self, name: str) -> bytes:
        return self._ask(f"reading {name}", self._files.cat_file, self._path(name))

    def names(self) -> list[str]:
        return [name for name in self._listed() if not name.startswith(".") and not name.endswith(".lease")]

    def within(self, path: str) -> "Remote":
        return Remote(f"{self.address}/{path}", lease_seconds=self.lease_seconds)

    def holding(self, name: str) -> list[str]:
        root = self._path("")
        paths = self._ask("listing", self._files.find, root)
        inner = [path.removeprefix(root).strip("/") for path in paths if path.rpartition("/")[2] == name]
        return sorted(path.rpartition("/")[0] for path in inner)

    @property
    def _files(self) -> AbstractFileSystem:
        """fsspec keeps one for each process: connections are not shared with those that were forked."""
        return _filesystem(self.scheme)

    def _path(self, name: str) -> str:
        return self._files._strip_protocol(f"{self.address}/{name}").rstrip("/")

    def _created(self, name: str, data: bytes) -> bool:
        try:
            self._ask(f"writing {name}", self._files.pipe_file, self._path(name), data, mode="create")
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise FileNotFoundError(self._no_bucket()) from error
        return True

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.read(name) == data
        except FileNotFoundError:
            return False

    def _remove(self, name: str):
        with contextlib.suppress(FileNotFoundError):
            self._ask(f"removing {name}", self._files.rm_file, self._path(name))

    def _listed(self) -> list[str]:
        """All names, leases and the clock too, in one listing."""
        root = self._path("")
        try:
            found = self._ask("listing", self._files.ls, root, detail=True)
        except FileNotFoundError:
            if self.scheme in BUCKETS and not self._ask("looking for", self._files.exists, self._bucket):
                raise FileNotFoundError(self._no_bucket()) from None
            return []
        if any(each["name"].rstrip("/") == root and each["type"] == "file" and each["size"] for each in found):
            raise ValueError(f"folder={self.address!r} is an object; name a place for several, which need not exist")
        files = [each["name"].removeprefix(root).strip("/") for each in found if each["type"] == "file"]
        return sorted(name for name in files if name)

    @property
    def _bucket(self) -> str:
        return self._path("").partition("/")[0]

    def _no_bucket(self) -> str:
        return f"folder={self.address!r}: there is no bucket {self._bucket!r}; make it, or name another"

    def _alive(self, lease: str) -> bool:
        try:
            renewed = self._written(lease)
        except FileNotFoundError:  # its part was finished in this moment: the next look will see what is there
            return True
        return self._now() - renewed < self.lease_seconds + COARSE

    def _written(self, name: str) -> float:
        """When a name was last written, by the store's time."""
        return self._ask(f"looking at {name}", self._files.modified, self._path(name)).timestamp()

    def _now(self) -> float:
        """The store's time: that of an object just written, carried on for a minute by this process's clock. Late rather than early."""
        now = time.monotonic()
        if self._clock is None or now - self._clock[0] > CLOCK_LASTS:
            self._ask("writing the clock", self._files.pipe_file, self._path(CLOCK), b"clock")
            self._clock = time.monotonic(), self._written(CLOCK)
        here, there = self._clock
        return there + time.monotonic() - here

    def _clean(self):
        """Remove leases of processes that died; the listing tells whether the store can be used at all."""
        leases = [name for name in self._listed() if name.endswith(".lease")]
        with contextlib.suppress(OSError):  # one that may be read alone
            now = self._now() if leases else 0.0
            for name in leases:
                if now - self._written(name) > max(LITTER, 2 * self.lease_seconds):
                    self._remove(name)

    def _ask(
        self,
        doing: str,
        request: Callable[..., Any],
        *arguments: Any,
        waits: Sequence[float] | None = None,
        **more: Any,
    ) -> Any:
        """A request's answer, asked again a few times where the network fails. Raises what stores raise, in sentences."""
        waits = WAITS if waits is None else waits
        for attempt in count(1):
            try:
                return request(*arguments, **more)
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:
                if refusal := _refused(error):
                    raise PermissionError(f"folder={self.address!r}: {doing} was refused: {refusal}") from error
                if attempt > len(waits):
                    said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                    raise OSError(
                        f"folder={self.address!r}: {doing} failed {attempt} times, at last with {said}; look at the network and at the "
                        "store's address (AWS_ENDPOINT_URL_S3 of an S3 server of one's own)"
                    ) from error
            time.sleep(waits[attempt - 1])


def check_address(address: str):
    """Raise ValueError for an address that cannot be a store's. One that may hold a secret is not shown."""
    parts = urlsplit(address)
    if "@" in address or parts.query or parts.fragment:
        raise ValueError(
            f"folder={parts.scheme}://...: the address holds a user, a key or a query (@, ?, #), which would be printed; give "
            "SCHEME://BUCKET/PLACE alone, and credentials where their package looks for them, as in AWS_PROFILE"
        )
    known = sorted({*BUCKETS, *LOCAL, "memory"} & set(fsspec.available_protocols()))
    if address.partition("://")[0] not in fsspec.available_protocols():  # which tells S3 from s3
        raise ValueError(
            f"folder={shown(address)}: there is no such kind of store; give one of {', '.join(known)}, or a path"
        )
    if not parts.netloc.strip("/ ") and parts.scheme not in LOCAL:
        raise ValueError(f"folder={shown(address)} names no place; give SCHEME://BUCKET/PLACE")


def _filesystem(scheme: str) -> AbstractFileSystem:
    """fsspec's, which sees what other processes write; raises ImportError naming what to install, ValueError for one without times."""
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError:
        package = re.split(r"[.:]", known_implementations[scheme]["class"])[0]
        raise ImportError(
            f"folder={scheme}://... needs the package {package}: pip install {EXTRA.get(package, package)!r}",
            name=package,
        ) from None
    if asked := [each.name for each in list(signature(kind.__init__).parameters.values())[1:] if is_asked(each)]:
        raise ValueError(
            f"folder={scheme}://...: this file system asks for more than an address ({', '.join(asked)}); give an object store "
            f"({', '.join(BUCKETS)}), or a path"
        )
    found = fsspec.filesystem(scheme, use_listings_cache=False)
    if type(found).modified is AbstractFileSystem.modified:
        raise ValueError(
            f"folder={scheme}://...: it does not say when a thing was written, so that nobody could tell who is still at work; "
            f"give an object store ({', '.join(BUCKETS)}), or a path"
        )
    return found


def is_asked(parameter: Parameter) -> bool:
    """Whether a call must give it."""
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _refused(error: Exception) -> str:
    """Why a store lets nobody in, with what to do; nothing for other errors."""
    if "redential" in type(error).__name__:
        return "no credentials were found, or not all; set those of the store, for S3 AWS_PROFILE or `aws configure`"
    if isinstance(error, PermissionError):
        return f"{error}; the credentials must be valid, and allow to list, read, write and delete there"
    return ""
