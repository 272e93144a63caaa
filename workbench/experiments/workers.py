"""The parts of an experiment done by Ray's workers: actors that hold a model each and write what they find into the store.

The driver, which has asked for the experiment, hands parts out by name, waits, and counts. What it sends stands in
`workbench.experiments.parcels`.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.arguments import fit, optional
from workbench.experiments.executors import Executor, Finish, Group, waited_for
from workbench.experiments.packing import packed, packed_model
from workbench.experiments.parcels import Parcel, Worker, ray_module
from workbench.experiments.shards import Shards
from workbench.experiments.store import Store
from workbench.inputs import count, text
from workbench.progress import Bar

if TYPE_CHECKING:
    from workbench.experiments.base import Experiment, Part

LOOK = 0.5  # seconds that workers are waited for at a time
TRIES = 3  # of a part, or of starting, at which workers die one after another
GRACE = 10.0  # seconds that a worker has to let go of its part when all stops
LAG = 60.0  # seconds within which a file that another machine wrote is seen here
SLOW = 30.0  # seconds without any worker after which the wait is told
DEVICES = ("cpu", "cuda")


@dataclass(eq=False)
class Ray(Executor):
    """Ray's workers do the parts: on this machine, or on all of a cluster.

    address: of a cluster that runs, "auto", "ray://host:10001" or "host:6379"; left out, the Ray that this process is connected to
    (`ray.init`), else one of its own on this machine, which it ends. workers: how many, each with a model of its own; left out, one for
    each GPU where the model is on one, else as many as there are CPUs for. threads: CPUs of each, and threads of its torch; results are
    those of one process of as many. Workers last as long as an experiment, or all of a `with` block: `with wb.Ray() as ray: ...`.

    Needs a `folder=` that all machines see, and `pip install 'diffusion-workbench[ray]'`. The part of a worker that died is done by
    another, once its lease has ended; where three die at the same part, or as they start, the experiment stops and says why.

    >>> wb.Ray(workers=2)
    Ray(address=None, workers=2, threads=1)
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1

    def __post_init__(self):
        fit(self, address=optional(text), workers=optional(count), threads=count)
        self.team: Team | None = None

    def _check(self, store: Store):
        ray = ray_module()
        super()._check(store)
        if (open_blocks := OPEN.get()) and self not in open_blocks:
            raise ValueError(
                f"executor={self!r}: a block `with {open_blocks[-1]!r} as ray:` is open, whose workers hold the CPUs until it ends; give "
                "executor=ray, the block's own, or end it first"
            )
        if self.address is not None and self.team is None and ray.is_initialized():
            raise ValueError(
                f"executor={self.address!r}: this process is connected to Ray already; leave the address out (executor='ray') to use "
                "that one, or call ray.shutdown() first"
            )

    def __enter__(self) -> "Ray":
        self.team = Team(self)
        OPEN.set((*OPEN.get(), self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any):
        team, self.team = self.team, None
        OPEN.set(tuple(each for each in OPEN.get() if each is not self))
        team.end()

    @contextmanager
    def _at_work(self, experiment: "Experiment", shards: Shards) -> Iterator[Finish]:
        with nullcontext(self) if self.team else self:
            with self.team.at_work(experiment, shards) as finish:
                yield finish


OPEN: ContextVar[tuple[Ray, ...]] = ContextVar("OPEN", default=())  # whose blocks this thread is in


@dataclass(eq=False)
class Hand:
    """A worker as the driver knows it. parcel: the one that it is ready for."""

    actor: Any
    parcel: "Parcel | None" = None


class Team:
    """Workers, begun when there is something to do."""

    def __init__(self, settings: Ray):
        self.settings, self.ray = settings, ray_module()
        self.ours = self.connected = self.gpus = False  # ours: whether Ray was begun here
        self.most = 0
        self.starting: dict[Any, tuple[Hand, Parcel]] = {}  # by what is waited for
        self.busy: dict[Any, tuple[Hand, str]] = {}  # with their part
        self.idle: list[Hand] = []

    @contextmanager
    def at_work(self, experiment: "Experiment", shards: Shards) -> Iterator[Finish]:
        """See `Executor._at_work`."""
        self.experiment, self.shards = experiment, shards
        self.parcel: Parcel | None = None
        self.shipped = self.pipeline = None  # the parcel in Ray's store, and the pipeline, where it has to be sent
        self.deaths: Counter[str] = Counter()
        self.lacking: dict[str, int] = {}  # images of parts that are not kept, by the first part of their group
        try:
            yield self.finish
        finally:
            self.stop()

    def finish(self, parts: Mapping[str, "Part"], bar: Bar):
        """Get all parts of a stage finished."""
        packets, held, said, began = dict[str, bytes](), dict[str, float](), False, time.monotonic()
        groups = {
            next(iter(group)): group for group in self.experiment.together(parts)
        }  # by the name of their first part
        for first, group in groups.items():
            images = {name: self.experiment.check(*part) for name, part in group.items()}
            kept = [name for name in group if name in self.shards]
            bar.skip(sum(images[name] for name in kept))
            if len(kept) < len(group):
                packets[first] = packed(group, self.experiment, f"part {first}")
                self.lacking[first] = sum(images.values()) - sum(images[name] for name in kept)
        todo = deque(packets)
        while todo or held or self.busy:
            self._hire(len(todo) + len(held) + len(self.busy))
            while todo and self.idle:
                hand = self.idle.pop()
                if hand.parcel is not self.parcel:
                    self._start(hand)
                else:
                    name = todo.popleft()
                    self.busy[hand.actor.take.remote(packets[name])] = (hand, name)
            todo.extendleft(self._settle(bar, groups, held))
            for name in [name for name, since in held.items() if time.monotonic() - since > self.shards.store.look]:
                del held[name]
                todo.append(name)
            if not said and (why := self._why_idle(held, began)):
                bar.say(f"{self.experiment.name}: {why}")
                said = True

    def _why_idle(self, held: Mapping[str, float], began: float) -> str | None:
        """What is waited for, where nothing is done. held: parts that others are at. began: when this one did."""
        if self.busy or not (held or self.starting):
            return None
        if held and not self.starting:
            return waited_for(held)
        if self.idle or time.monotonic() - began < SLOW:
            return None
        return "no worker is ready yet: each loads torch and the model first, and waits for CPUs or a GPU that are free"

    def _settle(self, bar: Bar, groups: Mapping[str, Group], held: dict[str, float]) -> list[str]:
        """Wait a moment, and take up what workers have done: what is to be done again, by its first part. held: what others are at."""
        pending = [*self.starting, *self.busy]
        if not pending:
            time.sleep(LOOK)
            return []
        again = []
        for done in self.ray.wait(pending, timeout=LOOK)[0]:
            if done in self.starting:
                self._started(done, bar)
                continue
            hand, name = self.busy.pop(done)
            if not self._ended(done, hand, f"part {name}", bar):
                again.append(name)
            elif (images := self.ray.get(done)) is None:
                held[name] = time.monotonic()
            else:
                for each in groups[name]:
                    self._see(each)
                bar.update(images) if images else bar.skip(self.lacking[name])
        return again

    def _started(self, done: Any, bar: Bar):
        hand, parcel = self.starting.pop(done)
        if parcel is not self.parcel:  # of an experiment that has ended
            self.idle.append(hand)
        elif self._ended(done, hand, "the start", bar):
            if self.ray.get(done):
                hand.parcel = parcel
                self.deaths.pop("the start", None)
            else:
                self._start(hand, by_value=True)
                self.idle.remove(hand)

    def _ended(self, done: Any, hand: Hand, at: str, bar: Bar) -> bool:
        """Whether a worker lives that was at something; raises what the worker did, RuntimeError where it is one of many that died."""
        try:
            self.ray.get(done)
        except self.ray.exceptions.RayTaskError as error:
            self.idle.append(hand)
            raise own_error(error, f"{at} failed in a worker") from error
        except self.ray.exceptions.RayError as error:
            self.ray.kill(hand.actor)
            self.deaths[at] += 1
            if self.deaths[at] >= TRIES:
                raise RuntimeError(
                    f"{self.experiment.name}: {TRIES} workers died at {at}; where memory was short, give fewer workers= or a smaller "
                    f"batch_size=. Ray says: {error}"
                ) from error
            bar.say(f"{self.experiment.name}: a worker died at {at}; another takes its place")
            return False
        self.idle.append(hand)
        return True

    def _hire(self, wanted: int):
        """Begin workers, as many as there is work for and room."""
        if self.parcel is None and wanted:
            self._connect()
            self.parcel = Parcel.of(self.experiment, self.shards, self.settings.threads)
            self.shipped = self.ray.put(self.parcel)
        while len(self.starting) + len(self.busy) + len(self.idle) < min(self.most, wanted):
            kind = self.ray.remote(num_cpus=self.settings.threads, num_gpus=int(self.gpus), max_restarts=0)(Worker)
            self._start(Hand(kind.remote()))

    def _start(self, hand: Hand, by_value: bool = False):
        if by_value and self.pipeline is None:
            self.pipeline = self.ray.put(packed_model(self.experiment.model))
        ready = hand.actor.start.remote(self.shipped, self.pipeline if by_value else None)
        self.starting[ready] = (hand, self.parcel)

    def _connect(self):
        """Join Ray, and see how many workers it has room for."""
        asked, device = self.settings, self.experiment.model.pipeline.device.type
        if device not in DEVICES or (self.connected and self.gpus != (device == "cuda")):
            kinds = "another than the workers'" if device in DEVICES else "neither cpu nor cuda"
            raise ValueError(
                f"executor='ray': the model is on {device!r}, {kinds}; load it with device=, or leave executor= out"
            )
        self.gpus = device == "cuda"
        if not self.connected and not self.ray.is_initialized():
            own = dict(num_cpus=asked.workers and asked.workers * asked.threads, include_dashboard=False)
            self.ours = True
            self.ray.init(asked.address or "local", logging_level="ERROR", **({} if asked.address else own))
        self.connected = True
        there = self.ray.cluster_resources()
        room = int(there.get("GPU", 0) if self.gpus else there.get("CPU", 0) // asked.threads)
        self.most = asked.workers or room
        if not self.most:
            wanted = "a GPU, as the model is on one here" if self.gpus else f"threads={asked.threads}"
            raise ValueError(
                f"executor='ray': a worker takes {wanted}, and Ray has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs; "
                "give workers= to wait for others that join, or ask for less"
            )

    def _see(self, name: str):
        """Read a finished part; raises RuntimeError where it is not to be found."""
        until = time.monotonic() + LAG
        while name not in self.shards:
            if time.monotonic() > until:
                raise RuntimeError(
                    f"part {name} was written by a worker, and is not in {self.shards.store} as this machine sees it; name a folder= that "
                    "all machines share"
                )
            time.sleep(LOOK)

    def stop(self):
        """Have workers let go of their parts; those that do not in time are ended."""
        if not self.busy:
            return
        try:
            for part in self.busy:
                self.ray.cancel(part)
            stopped = self.ray.wait(list(self.busy), num_returns=len(self.busy), timeout=GRACE)[0]
            self.idle += [self.busy.pop(part)[0] for part in stopped]
        finally:
            for hand, _ in self.busy.values():
                self.ray.kill(hand.actor)
            self.busy = {}

    def end(self):
        """End all workers; and Ray, where it was begun here."""
        try:
            for hand in [*(hand for hand, _ in self.starting.values()), *self.idle]:
                self.ray.kill(hand.actor)
        finally:
            if self.ours:
                self.ray.shutdown()


def own_error(error: Any, what: str) -> BaseException:
    """What a worker raised, with a note that says where."""
    cause = error.cause if isinstance(error.cause, BaseException) else RuntimeError(str(error))
    cause.add_note(what)
    return cause
