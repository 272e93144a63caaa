"""Where finished parts are kept: four verbs (create if absent, lease, read, names), and the local folder behind them.

`workbench.experiments.remote` has the same behind an address, such as s3://bucket/trace.

Any number of processes, on any machines that see the folder, may share one. What was created is never changed: a name is
written whole or not at all, by one of them. A lease says that somebody is at work. It is kept alive by a thread that
touches it, so that the lease of a process that died, wherever it ran, ends by itself; time is the folder's own (the file
system's), since machines' clocks differ.
"""

import contextlib
import errno
import os
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from workbench.inputs import is_address

LEASE = 30.0  # seconds that a lease lives untouched
BEATS = 5  # how often it is touched in that time
LITTER = 3600.0  # seconds after which what a process that died left behind is removed
NO_LINKS = {
    errno.EPERM,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
}  # of file systems without hard links


class Lease(ABC):
    """That a thing is being worked on, for as long as the `with` block lasts."""

    @abstractmethod
    def release(self, finished: bool):
        """Let go: others may take it at once. finished: nobody needs to any more."""

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.release(finished=kind is None)


class Beating(Lease):
    """One that a thread renews until it is let go.

    renew: raises FileNotFoundError where the lease is gone, OSError where it may be tried again. end: is told whether it is finished.
    """

    def __init__(self, name: str, seconds: float, renew: Callable[[], None], end: Callable[[bool], None]):
        self._seconds, self._renew, self._end = seconds, renew, end
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease of {name}", daemon=True)
        self._thread.start()

    def _beat(self):
        while not self._ended.wait(self._seconds / BEATS):
            try:
                self._renew()
            except FileNotFoundError:  # it ended, somebody else took the part and has finished it
                return
            except OSError:  # the disk or the network may come back before the lease ends
                continue

    def release(self, finished: bool):
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # a lease that stays ends by itself
            self._end(finished)


class Store(ABC):
    """Named bytes. Names are plain file names that do not begin with a dot or end in ".lease"."""

    look: float = 0.5
    """Seconds between two looks at what others are at."""
    shared: bool = True
    """Whether other processes can see what is in it."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a name whole, unless it is there: whether this call wrote it."""

    @abstractmethod
    def lease(self, name: str) -> Lease | None:
        """Take the lease of a name, which need not be there; None while somebody else holds it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """What was written; raises FileNotFoundError."""

    @abstractmethod
    def names(self) -> list[str]:
        """All names, sorted."""

    @abstractmethod
    def within(self, path: str) -> "Store":
        """A store inside this one, as a folder in a folder; `path` has "/" between its parts."""

    @abstractmethod
    def holding(self, name: str) -> list[str]:
        """Paths of the stores within this one that hold a name, sorted; "" is this one."""


class Memory(Store):
    """Kept as long as the process lasts, for itself alone."""

    shared = False

    def __init__(self):
        self._held: dict[str, bytes] = {}
        self._inner: dict[str, Memory] = {}
        self._lock = threading.Lock()

    def __str__(self):
        return "memory"

    def create(self, name: str, data: bytes) -> bool:
        with self._lock:
            return self._held.setdefault(name, data) is data

    def lease(self, name: str) -> Lease:
        return _Nothing()

    def read(self, name: str) -> bytes:
        if name not in self._held:
            raise FileNotFoundError(name)
        return self._held[name]

    def names(self) -> list[str]:
        return sorted(self._held)

    def within(self, path: str) -> "Memory":
        return self._inner.setdefault(path, Memory())

    def holding(self, name: str) -> list[str]:
        inner = [f"{path}/{each}".rstrip("/") for path, store in self._inner.items() for each in store.holding(name)]
        return sorted([""] * (name in self._held) + inner)


class _Nothing(Lease):
    def release(self, finished: bool):
        pass


class Folder(Store):
    """A local folder, or one that machines share; made when something is first written.

    lease_seconds: how long the lease of a process that died lasts. Take the same in all processes.
    """

    def __init__(self, path: str | Path, *, lease_seconds: float = LEASE):
        self.path, self.lease_seconds = Path(path).expanduser(), lease_seconds
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"folder={str(path)!r} is a file; name a folder, which need not exist")
        self._clean()

    def __str__(self):
        return str(self.path)

    def __getstate__(self):
        return vars(self) | {"path": self.path.absolute()}  # other processes may stand elsewhere

    def create(self, name: str, data: bytes) -> bool:
        path = self.path / name
        if path.exists():
            return False
        temporary = self._temporary()
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return _moved(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def lease(self, name: str) -> Lease | None:
        """A lease that ended untouched is not taken away, which two could do at once: the next number is created."""
        held = self._leases(name)
        if held and self._alive(self.path / f"{name}+{held[-1]}.lease"):
            return None
        number = held[-1] + 1 if held else 0
        path = self.path / f"{name}+{number}.lease"
        if not self.create(path.name, b""):
            return None

        def end(finished: bool):
            if finished:
                self.drop_leases(name)
            else:
                path.unlink(missing_ok=True)

        return Beating(name, self.lease_seconds, lambda: os.utime(path), end)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def names(self) -> list[str]:
        if not self.path.is_dir():
            return []
        names = (path.name for path in self.path.iterdir() if path.is_file())
        return sorted(name for name in names if not name.startswith(".") and not name.endswith(".lease"))

    def within(self, path: str) -> "Folder":
        return Folder(self.path / path, lease_seconds=self.lease_seconds)

    def holding(self, name: str) -> list[str]:
        inner = {path.parent.relative_to(self.path).as_posix() for path in self.path.rglob(name)}
        return sorted("" if path == "." else path for path in inner)

    def drop_leases(self, name: str):
        """Forget all leases of something that is finished."""
        for number in self._leases(name):
            (self.path / f"{name}+{number}.lease").unlink(missing_ok=True)

    def _leases(self, name: str) -> list[int]:
        """Numbers of a name's leases, the one that counts last."""
        if not self.path.is_dir():
            return []
        stem, numbers = f"{name}+", []
        for path in self.path.iterdir():
            number = path.name.removeprefix(stem).removesuffix(".lease")
            if path.name == f"{stem}{number}.lease" and number.isdigit():
                numbers.append(int(number))
        return sorted(numbers)

    def _alive(self, lease: Path) -> bool:
        try:
            touched = lease.stat().st_mtime
        except FileNotFoundError:  # let go in this moment: the next look will see what is there
            return True
        return self._now() - touched < self.lease_seconds

    def _now(self) -> float:
        """The time of the file system."""
        temporary = self._temporary()
        try:
            temporary.touch()
            return temporary.stat().st_mtime
        except OSError:  # a full disk
            return time.time()
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _temporary(self) -> Path:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"folder={str(self.path)!r} cannot be made ({error.strerror}); name another") from error
        return self.path / f".{uuid.uuid4().hex}.tmp"

    def _clean(self):
        """Remove what processes that died left half-written, and their leases."""
        litter = [*self.path.glob(".*.tmp"), *self.path.glob("*.lease")]
        now = self._now() if litter else 0.0
        for path in litter:
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > max(LITTER, 2 * self.lease_seconds):
                    path.unlink()


def _moved(temporary: Path, path: Path) -> bool:
    """Give a whole file its name, unless that is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:  # take the name, then fill it at once; whoever dies in between leaves an empty file, which readers refuse
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        os.replace(temporary, path)
    return True


def as_store(folder: str | Path | Store | None) -> Store:
    """A store, or the one behind a folder's name or an address; memory without one."""
    if folder is None:
        return Memory()
    if isinstance(folder, Store):
        return folder
    if isinstance(folder, str) and is_address(folder):
        from workbench.experiments.remote import at_address

        return at_address(folder)
    return Folder(folder)
