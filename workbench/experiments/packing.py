"""Models and what experiments are made of as bytes, for other processes to compute with to the last bit.

The last bits of a matrix product hang on where its factors begin within a line of the processor's cache: weights that were mapped from a
file begin elsewhere than copies of them. So what is unpacked begins where it began.
"""

import io
import pickle
import sys
from contextvars import ContextVar
from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from workbench.models import Model

if TYPE_CHECKING:
    from workbench.experiments.base import Experiment

LINE = 64  # bytes of a line of cache
CAPTURING = "transformers.utils.output_capturing"  # whose hooks each model that has run is full of
HELD: ContextVar[Model] = ContextVar("HELD")  # the model that what is unpacked belongs to


class Block:
    """A storage of tensors: its bytes, where it begins within a line of cache, and on which kind of device."""

    def __init__(self, storage: torch.UntypedStorage):
        self.device, self.begins = storage.device.type, storage.data_ptr() % LINE
        self.content = np.asarray(torch.empty(0, dtype=torch.uint8).set_(storage.cpu())).tobytes()

    def storage(self) -> torch.UntypedStorage:
        """The same one for all tensors that share it."""
        if not hasattr(self, "made"):
            room = np.empty(len(self.content) + LINE, np.uint8)
            start = (self.begins - room.ctypes.data) % LINE
            place = torch.from_numpy(room[start : start + len(self.content)])
            place.numpy()[:] = np.frombuffer(self.content, np.uint8)
            self.made = place.to(self.device).untyped_storage()
            self.content = b""
        return self.made


def typed(block: Block, dtype: torch.dtype) -> torch.storage.TypedStorage:
    """A block as tensors take it."""
    return torch.storage.TypedStorage(wrap_storage=block.storage(), dtype=dtype, _internal=True)


def begins(model: Model) -> list[int]:
    """Where each weight begins within a line of cache."""
    parts = [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return [weight.data_ptr() % LINE for part in parts for weight in (*part.parameters(), *part.buffers())]


def is_capturing(value: Any) -> bool:
    """Whether a hook is transformers' own, by which it keeps hidden states; each process installs its own when a model first runs."""
    return getattr(value, "__module__", None) == CAPTURING


def inert(module: torch.nn.Module, arguments: Any, output: Any):
    """In the place of a capturing hook, in what is sent."""


def capturing_anew(pipeline: Any):
    """Have transformers keep hidden states of models that were unpacked, for which it needs to know their classes."""
    for part in pipeline.components.values():
        for module in part.modules() if isinstance(part, PreTrainedModel) else ():
            for key, hook in list(module._forward_hooks.items()):
                if hook is inert:
                    del module._forward_hooks[key]
            if isinstance(module, PreTrainedModel):
                vars(module).pop("_output_capturing_hooks_installed", None)
                if (capturing := sys.modules.get(CAPTURING)) is not None:
                    capturing._CAN_RECORD_REGISTRY[module] = module._can_record_outputs


def packed_model(model: Model) -> bytes:
    """A pipeline that is only in memory."""
    try:
        return dumped(model.pipeline, {})
    except Exception as error:
        raise ValueError(
            f"executor='ray': the model is only in this process, and cannot be sent to workers ({error}); write it by "
            "model.save_pretrained(folder), and give wb.load(folder)"
        ) from error


def packed(value: Any, experiment: "Experiment", what: str) -> bytes:
    """Something of an experiment, all but its model."""
    model = experiment.model
    owned = {id(part): name for name, part in model.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    try:
        return dumped(value, owned | {id(model): "", id(model.pipeline): "pipeline"})
    except Exception as error:
        raise ValueError(
            f"executor='ray': {what} of {experiment.name} cannot be sent to workers ({error}); functions in rules, metrics and editors may "
            "hold no open files, locks or connections; processes of your own may share the folder= instead, as with wb.Share"
        ) from error


def unpacked(content: bytes, model: Model) -> Any:
    """What `packed` packed, around a model."""
    token = HELD.set(model)
    try:
        return pickle.loads(content)
    finally:
        HELD.reset(token)


def of_here(name: str) -> Any:
    """The model, its pipeline, or one of its components, as what is unpacked knows them."""
    model = HELD.get()
    return model if not name else model.pipeline if name == "pipeline" else getattr(model.pipeline, name)


def dumped(value: Any, owned: dict[int, str]) -> bytes:
    """A value with functions of anybody's. owned: what the other side has, by identity."""
    blocks: dict[int, Block] = {}

    class Pickler(import_module("ray.cloudpickle").Pickler):
        def reducer_override(self, value: Any) -> Any:
            if id(value) in owned:
                return of_here, (owned[id(value)],)
            if isinstance(value, Model):
                raise pickle.PicklingError("it holds a second model")
            if is_capturing(value) and isinstance(value, FunctionType):
                return getattr, (import_module(__name__), inert.__name__)
            if isinstance(value, torch.device):  # a worker sees one GPU
                return torch.device, (value.type,)
            if isinstance(value, torch.storage.TypedStorage):
                storage = value._untyped_storage
                if storage._cdata not in blocks:
                    blocks[storage._cdata] = Block(storage)
                return typed, (blocks[storage._cdata], value.dtype)
            return super().reducer_override(value)

    buffer = io.BytesIO()
    Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()
