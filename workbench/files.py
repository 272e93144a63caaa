"""Files of matrices with JSON about them: safetensors, the JSON in the metadata, all under one SHA-256.

Nothing in a file is trusted before it was checked: the header's size and form, the layout of the tensors, the digest of
everything, and the values.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

LARGEST_HEADER = 16 * 2**20  # bytes
LARGEST_FILE = 4 * 2**30


def write(path: Path, kind: str, matrices: Mapping[str, torch.Tensor], about: Mapping):
    """Write float32 matrices and what is said about them. kind: what the file is, an "edit" or a "direction"."""
    content = {"format": _format(kind)} | {key: json.dumps(value) for key, value in about.items()}
    held = {name: value.numpy() for name, value in matrices.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(dict(matrices), str(path), metadata=content | {"sha256": _digest(content, held)})


def read(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Matrices and what is said about them; ValueError for anything that `write` does not write."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {_fix(kind)}")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, such a file at most {LARGEST_FILE}; {_fix(kind)}")
    data = path.read_bytes()
    if data[:1] == b"\x80" or data[:4] == b"PK\x03\x04":
        raise ValueError(f"{path} is a pickle, which could run anything; {kind}s are safetensors files; {_fix(kind)}")
    try:
        header, start = _header(data)
        content = header.pop("__metadata__", None)
        if (
            not isinstance(content, dict)
            or content.get("format") != _format(kind)
            or not all(type(x) is str for x in content.values())
        ):
            raise ValueError(f"it is a safetensors file but no {kind}: its metadata lacks format {_format(kind)!r}")
        held = _arrays(header, memoryview(data)[start:])
        expected = content.pop("sha256", None)
        if expected != (found := _digest(content, held)):
            raise ValueError(f"it was altered: it names the SHA-256 {expected}, its content has {found}")
        content.pop("format")
        return {name: torch.from_numpy(value) for name, value in held.items()}, {
            key: json.loads(text) for key, text in content.items()
        }
    except ValueError as error:  # JSON's own among them
        raise ValueError(f"{path}: {error}; {_fix(kind)}") from None


def _format(kind: str) -> str:
    return f"diffusion-workbench {kind} 1"


def _fix(kind: str) -> str:
    return f"give path= of a file that {kind.title()}.save wrote"


def _header(data: bytes) -> tuple[dict, int]:
    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 2 <= size <= min(LARGEST_HEADER, len(data) - 8):
        raise ValueError(f"a header of {size} bytes is asked of a file of {len(data)} (at most {LARGEST_HEADER})")

    def once(pairs):
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        header = json.loads(data[8 : 8 + size].decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not the JSON of a safetensors file ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}, not an object")
    return header, 8 + size


def _arrays(header: dict, data: memoryview) -> dict[str, np.ndarray]:
    """Tensors by name, where every byte belongs to exactly one."""
    held, end = {}, 0
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
            sizes = (start, stop, *shape)
            if (
                not all(type(size) is int and 0 <= size <= LARGEST_FILE for size in sizes)
                or len(shape) != 2
                or entry["dtype"] != "F32"
            ):
                raise ValueError(f"{name!r} is {entry}; all here are float32 matrices")
            if start != end or stop != start + 4 * shape[0] * shape[1] or stop > len(data):
                raise ValueError(
                    f"{name!r} of {shape} lies at bytes {start} to {stop}, expected from {end} on, of {len(data)}"
                )
            held[name], end = np.frombuffer(data[start:stop], "<f4").reshape(shape).copy(), stop
        if end != len(data):
            raise ValueError(f"{len(data) - end} bytes belong to no tensor")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its tensors are not laid out as safetensors are ({error})") from None
    return held


def _digest(content: dict[str, str], held: dict[str, np.ndarray]) -> str:
    state = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(held):
        state.update(f"{name} {held[name].shape}".encode())
        state.update(np.ascontiguousarray(held[name]).data)
    return state.hexdigest()
