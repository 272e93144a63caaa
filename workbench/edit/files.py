"""Edit files: safetensors, with sites, base hashes and provenance as JSON in the metadata, all under one SHA-256.

Nothing in a file is trusted before it was checked: the header's size and form, the layout of the tensors, the digest of
everything, and the values.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

FORMAT = "diffusion-workbench edit 1"
LARGEST_HEADER = 16 * 2**20  # bytes
LARGEST_FILE = 4 * 2**30
FIX = "give path= of a file that Edit.save wrote"


def write(path: Path, edit):
    """Write an edit."""
    tensors = {f"{u.site}.{name}": getattr(u, name) for u in edit.updates for name in ("b", "a")}
    content = {
        "format": FORMAT,
        "updates": json.dumps([{"site": u.site, "module": u.module, "base": u.base} for u in edit.updates]),
        "provenance": json.dumps(edit.provenance),
    }
    held = {name: value.numpy() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, str(path), metadata=content | {"sha256": _digest(content, held)})


def read(path: Path, update: type) -> tuple[list, dict]:
    """Updates and provenance of a file; ValueError for anything that `write` does not write."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {FIX}")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, an edit at most {LARGEST_FILE}; {FIX}")
    data = path.read_bytes()
    if data[:1] == b"\x80" or data[:4] == b"PK\x03\x04":
        raise ValueError(f"{path} is a pickle, which could run anything; an edit is a safetensors file; {FIX}")
    header, start = _header(path, data)
    content = header.pop("__metadata__", None)
    if not isinstance(content, dict) or content.get("format") != FORMAT or not all(isinstance(value, str) for value in content.values()):
        raise ValueError(f"{path} is a safetensors file but no edit: its metadata lacks format {FORMAT!r}; {FIX}")
    held = _arrays(path, header, memoryview(data)[start:])
    expected = content.pop("sha256", None)
    if expected != (found := _digest(content, held)):
        raise ValueError(f"{path} was altered: it names the SHA-256 {expected}, its content has {found}; {FIX}, or save the edit again")
    try:
        updates = [update(**entry, **{name: torch.from_numpy(held.pop(f"{entry['site']}.{name}")) for name in ("b", "a")})
                   for entry in json.loads(content["updates"])]  # fmt: skip
        provenance = json.loads(content["provenance"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: its list of updates does not fit its tensors ({type(error).__name__}: {error}); {FIX}") from None
    if held or not isinstance(provenance, dict):
        raise ValueError(f"{path} holds tensors that no update names, {sorted(held)[:5]}, or provenance that is no object; {FIX}")
    return updates, provenance


def _header(path: Path, data: bytes) -> tuple[dict, int]:
    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 2 <= size <= min(LARGEST_HEADER, len(data) - 8):
        raise ValueError(f"{path}: a header of {size} bytes is asked of a file of {len(data)} (at most {LARGEST_HEADER}); {FIX}")

    def once(pairs):
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        header = json.loads(data[8 : 8 + size].decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is not the JSON of a safetensors file ({error}); {FIX}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: its header is a {type(header).__name__}, not an object; {FIX}")
    return header, 8 + size


def _arrays(path: Path, header: dict, data: memoryview) -> dict[str, np.ndarray]:
    """Tensors by name, where every byte belongs to exactly one."""
    held, end = {}, 0
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
            sizes = (start, stop, *shape)
            if not all(type(size) is int and 0 <= size <= LARGEST_FILE for size in sizes) or len(shape) != 2 or entry["dtype"] != "F32":
                raise ValueError(f"{name!r} is {entry}; a factor is a float32 matrix")
            if start != end or stop != start + 4 * shape[0] * shape[1] or stop > len(data):
                raise ValueError(f"{name!r} of {shape} lies at bytes {start} to {stop}, expected from {end} on, of {len(data)}")
            held[name], end = np.frombuffer(data[start:stop], "<f4").reshape(shape).copy(), stop
        if end != len(data):
            raise ValueError(f"{len(data) - end} bytes belong to no tensor")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its tensors are not laid out as safetensors are ({error}); {FIX}") from None
    return held


def _digest(content: dict[str, str], held: dict[str, np.ndarray]) -> str:
    state = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(held):
        state.update(f"{name} {held[name].shape}".encode())
        state.update(np.ascontiguousarray(held[name]).data)
    return state.hexdigest()
