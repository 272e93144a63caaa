"""Files of matrices with JSON about them: safetensors, the JSON in the metadata, all under one SHA-256.

safetensors itself checks a file's header and the layout of its tensors. What is said about them is checked here: the kind, the
limits (`LARGEST_FILE`, and those of `workbench.schema`), the digest of everything, and that all tensors are finite matrices.
The same content gives the same bytes, and a file appears whole or not at all.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from workbench import schema
from workbench.inputs import shown, user_path

LARGEST_HEADER = 32 * 2**20  # bytes, of names, shapes and metadata
LARGEST_FILE = 4 * 2**30
DTYPES = {"F32": torch.float32, "F64": torch.float64}
VERSIONS = {"edit": 2, "direction": 1, "moments": 1}


def write(path: str | Path, kind: str, matrices: Mapping[str, torch.Tensor], about: Mapping) -> Path:
    """Write float32 or float64 matrices and what is said about them.

    kind: what the file is, one of `VERSIONS`. about: JSON values by name. Returns the path, with "~" resolved.
    """
    content = {"format": _format(kind)} | {key: json.dumps(value, allow_nan=False) for key, value in about.items()}
    content["sha256"] = _digest(content, matrices)
    return write_bytes(user_path(path, "path"), safetensors_bytes(matrices, content))


def read(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Matrices and what is said about them; ValueError for anything that `write` does not write, FileNotFoundError for no file."""
    path = user_path(path, "path")
    fix = f"give path= of a file that {kind.title()}.save wrote"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {fix}")
    while True:  # safetensors opens a file twice: once more where another writer replaced it in between
        opened = _stamp(path)
        try:
            content = _read(path, kind)
        except (safetensors.SafetensorError, ValueError) as error:
            if _stamp(path) == opened:
                raise ValueError(f"{path}: {error}; {fix}") from None
            continue
        if _stamp(path) == opened:
            return content


def safetensors_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose bytes depend on its content alone: the library orders metadata by chance."""
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[start:]


def no_folder(path: Path):
    """Raise IsADirectoryError for a folder where a file is to be written."""
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder: give the path of a file in it")


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file that is there whole or not at all, and replaces what was there at once; folders are made."""
    no_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced."""
    held = path.stat()
    return held.st_ino, held.st_mtime_ns, held.st_size


def _read(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict]:
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"it has {size} bytes, such a file at most {LARGEST_FILE}")
    with open(path, "rb") as file:
        start, header_start = file.read(8), file.read(1)
    # the length of a header may begin as a pickle does, but its first letter is a brace
    if header_start != b"{" and (start[:1] == b"\x80" or start[:4] == b"PK\x03\x04"):
        raise ValueError(f"it is a pickle, which could run anything; {kind}s are safetensors files")
    if (header := int.from_bytes(start, "little")) > LARGEST_HEADER:
        raise ValueError(f"it asks for a header of {header} bytes; at most {LARGEST_HEADER} are read")
    with safetensors.safe_open(path, framework="pt") as file:
        content = file.metadata() or {}
        if (found := content.pop("format", None)) != _format(kind):
            raise ValueError(f"it is a safetensors file of format {shown(found)}, not {_format(kind)!r}")
        matrices = {name: _matrix(file, name) for name in file.keys()}
    expected = content.pop("sha256", None)
    if expected != (digest := _digest({"format": _format(kind)} | content, matrices)):
        raise ValueError(f"it was altered: it names the SHA-256 {shown(expected)}, its content has {digest}")
    return matrices, {key: schema.parsed(text, key) for key, text in content.items()}


def _matrix(file, name: str) -> torch.Tensor:
    part = file.get_slice(name)
    if part.get_dtype() not in DTYPES or len(part.get_shape()) != 2:
        raise ValueError(
            f"{shown(name)} is {part.get_dtype()} {part.get_shape()}; all here are float32 or float64 matrices"
        )
    return schema.array(file.get_tensor(name), shown(name), axes=("row", "column"), dtype=DTYPES[part.get_dtype()])


def _format(kind: str) -> str:
    return f"diffusion-workbench {kind} {VERSIONS[kind]}"


def _digest(content: Mapping[str, str], matrices: Mapping[str, torch.Tensor]) -> str:
    state = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, matrix in sorted(matrices.items()):
        values = matrix.contiguous().numpy()
        state.update(f"{name} {values.shape}{'' if matrix.dtype == torch.float32 else f' {matrix.dtype}'}".encode())
        state.update(values.data)
    return state.hexdigest()
