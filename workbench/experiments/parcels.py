"""What is sent to workers on other machines, and what they make of it: a model, an experiment around it, and its parts.

A model reaches a worker by the hub id or folder that it was loaded from, else once through Ray's store of objects; either way the
worker's own record of it must be the driver's, and so must all else that the rows depend on, or nothing is computed.
"""

import json
import os
import pickle
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers

from workbench.commits import commits_of
from workbench.experiments.packing import begins, capturing_anew, is_capturing, packed, unpacked
from workbench.experiments.shards import Shards, differences
from workbench.experiments.store import Store
from workbench.models import Model, load
from workbench.progress import Bar

if TYPE_CHECKING:
    from workbench.experiments.base import Experiment


@dataclass(frozen=True)
class Parcel:
    """What a worker is given: the experiment without its model, how the model is had, and what both must turn out to be."""

    experiment: bytes
    store: Store
    spec: Mapping[str, Any]
    versions: Mapping[str, str]
    threads: int
    device: str
    record: Mapping[str, Any]
    begins: list[int]
    source: Mapping[str, Any] | None
    settings: tuple[int, float, int | None]
    log: str

    @classmethod
    def of(cls, experiment: "Experiment", shards: Shards, threads: int) -> "Parcel":
        model = experiment.model
        check_hooks(model)
        return cls(
            packed(experiment, experiment, "the experiment"),
            shards.store,
            shards.spec,
            {name: version(name) for name in experiment.packages},
            threads,
            model.pipeline.device.type,
            plain(model.record),
            begins(model),
            model.source,
            (model.num_inference_steps, model.guidance_scale, model.max_sequence_length),
            commits_of(model.pipeline).to_json(),
        )

    def is_of(self, model: Model) -> bool:
        """Whether a model is the driver's, to the last bit of what it computes."""
        return plain(model.record) == self.record and begins(model) == self.begins

    def loaded(self) -> Model | None:
        """The model as it was loaded in the driver; None where that is another, or cannot be had."""
        if self.source is None:
            return None
        try:
            found = load(**self.source, device=self.device, max_sequence_length=self.settings[2])
        except (OSError, ValueError):
            return None
        return found if self.is_of(found) else None

    def unpacked(self, pipeline: bytes) -> Model:
        """The model that the driver has in memory; raises ValueError where something of it was lost."""
        received = pickle.loads(pipeline)
        capturing_anew(received)
        found = Model(received, *self.settings)
        if other := differences(self.record, plain(found.record), ("here", "in a worker")):
            raise ValueError(
                f"executor='ray': the model does not reach workers as it is here:{other}\nwrite it by model.save_pretrained(folder), and "
                "give wb.load(folder)"
            )
        return found


class Worker:
    """An actor: holds a model, and does parts of one experiment after another."""

    def __init__(self):
        self.model: Model | None = None
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        os.environ["TQDM_DISABLE"] = "1"  # the driver has the bar

    def start(self, parcel: Parcel, pipeline: bytes | None) -> bool:
        """Get ready: False where the model cannot be had without its pipeline. Raises ValueError where results would differ."""
        torch.set_num_threads(parcel.threads)
        here = {name: version(name) for name in parcel.versions}
        if other := differences(parcel.versions, here, ("here", "there")):
            raise ValueError(
                f"executor='ray': {platform.node()} has other versions of packages; install the same:{other}"
            )
        if not any(fnmatch(name, "spec*.json") for name in parcel.store.names()):
            raise ValueError(
                f"folder={str(parcel.store)!r}: {platform.node()} does not see what is in it; name one that all machines share"
            )
        if pipeline is not None:
            self.model = parcel.unpacked(pipeline)
        elif self.model is None or not parcel.is_of(self.model):
            self.model = parcel.loaded()
        if self.model is None:
            return False
        self.model.num_inference_steps, self.model.guidance_scale, _ = parcel.settings
        commits_of(self.model.pipeline).restore(parcel.log, "the driver's edits")
        self.experiment = unpacked(parcel.experiment, self.model)
        if other := differences(parcel.spec, plain(self.experiment.identity()), ("here", "in a worker")):
            raise ValueError(f"executor='ray': the experiment does not reach workers as it is here:{other}")
        self.shards = Shards(parcel.spec, parcel.store, self.experiment.packages)
        return True

    def take(self, parts: bytes) -> int | None:
        """Do parts that are measured together, and write them: how many images they took, 0 where they were there; None while somebody
        else is at one."""
        group = unpacked(parts, self.experiment.model)
        bar = StoppingBar(1, next(iter(group)), shown=False)
        there = self.shards.take_all(list(group), lambda names: self.experiment.measure_all(group, names, bar))
        return bar.done if len(there) == len(group) else None


class StoppingBar(Bar):
    """Stops its work where the driver has cancelled it, so that the part is free at once."""

    def update(self, count: int = 1):
        super().update(count)
        if ray_module().get_runtime_context().is_canceled():
            raise KeyboardInterrupt


def ray_module() -> Any:
    """Ray; raises ImportError that says how to get it."""
    try:
        return import_module("ray")
    except ImportError as error:
        raise ImportError(
            "executor='ray' needs Ray, which is not installed: pip install 'diffusion-workbench[ray]'"
        ) from error


def plain(value: Any) -> Any:
    """As JSON has it, which the store holds."""
    return json.loads(json.dumps(value))


def check_hooks(model: Model):
    """Raise ValueError for a model with hooks of somebody else's, which are in no record of it."""
    for name, part in model.pipeline.components.items():
        for path, module in part.named_modules() if isinstance(part, torch.nn.Module) else ():
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            if not all(map(is_capturing, hooks)):
                raise ValueError(
                    f"executor='ray': {name}.{path} has hooks, of which nobody could tell whether workers have them too; remove them, or "
                    "leave executor= out"
                )
