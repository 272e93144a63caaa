"""Keys, the inputs of a linear layer, and their running second moments over a corpus of prompts."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from workbench import files, schema
from workbench.arguments import at_least_zero, checked
from workbench.inputs import shown


@dataclass(frozen=True)
class Moments:
    """Running second moments of the inputs of a layer, over a corpus of prompts.

    total: sum of k k^T, (in, in), float64. count: of how many k. `a + b` merges two corpora.

    Raises ValueError for what is no sum of k k^T: not square, not finite, not symmetric, or with a negative diagonal.

    >>> moments = wb.edit.Moments.of(torch.eye(3)) + wb.edit.Moments.of(torch.eye(3))
    >>> moments.count, moments.second.diagonal()
    (6, tensor([0.3333, 0.3333, 0.3333], dtype=torch.float64))
    """

    total: torch.Tensor
    count: int

    def __post_init__(self):
        total = schema.array(self.total, "Moments: total", axes=("in", "in"), dtype=torch.float64)
        diagonal = total.diagonal()
        if total.shape[0] != total.shape[1] or (diagonal < 0).any():
            raise ValueError(
                f"Moments: total= of shape {tuple(total.shape)} is no sum of k k^T; Moments.of(keys) makes one"
            )
        if not torch.allclose(total, total.T, rtol=0, atol=1e-9 * diagonal.max().item()):
            raise ValueError("Moments: total= is not symmetric, so no sum of k k^T; Moments.of(keys) makes one")
        object.__setattr__(self, "total", total)
        object.__setattr__(self, "count", schema.whole(self.count, "Moments: count", least=1))

    @classmethod
    def of(cls, keys: torch.Tensor) -> "Moments":
        """Moments of keys (key, in).

        >>> wb.edit.Moments.of(torch.ones(4, 2)).total
        tensor([[4., 4.],
                [4., 4.]], dtype=torch.float64)
        """
        keys = as_keys("keys", keys)
        return cls(keys.T @ keys, len(keys))

    @property
    def second(self) -> torch.Tensor:
        """E[k k^T]: (in, in)."""
        return self.total / self.count

    @checked(share=at_least_zero)
    def floored(self, share: float) -> "Moments":
        """With `share` of the mean eigenvalue added to all, for a corpus that leaves some directions empty.

        >>> wb.edit.Moments.of(torch.tensor([[1.0, 0.0]])).floored(0.5).total
        tensor([[1.2500, 0.0000],
                [0.0000, 0.2500]], dtype=torch.float64)
        """
        return Moments(
            self.total + share * self.total.trace() / len(self.total) * torch.eye(len(self.total), dtype=torch.float64),
            self.count,
        )

    def __add__(self, other: "Moments") -> "Moments":
        if self.total.shape != other.total.shape:
            raise ValueError(
                f"moments of {len(self.total)} and {len(other.total)} channels do not add; take both of the same site's input"
            )
        return Moments(self.total + other.total, self.count + other.count)

    @checked
    def save(self, path: str | Path):
        """Write a safetensors file, float64: it comes back exactly, and the same moments give the same bytes.

        >>> moments = wb.edit.moments_of(model, ["a zebra", "a lion"])
        >>> moments.save("moments.safetensors")
        >>> torch.equal(wb.edit.Moments.load("moments.safetensors").total, moments.total)
        True
        """
        files.write(path, "moments", {"total": self.total}, {"count": self.count})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "Moments":
        """Read what `save` wrote; raises FileNotFoundError, and ValueError for anything else.

        >>> wb.edit.moments_of(model, ["a zebra", "a lion"]).save("moments.safetensors")
        >>> wb.edit.Moments.load("moments.safetensors").count
        62
        """
        matrices, about = files.read(path, "moments")
        try:
            schema.fields(matrices, "a file of moments", ("total",))
            return cls(matrices["total"], schema.fields(about, "a file of moments", ("count",))["count"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}; save the moments again") from None

    def __repr__(self):
        return f"Moments of {self.count} keys of {len(self.total)} channels, root mean square {math.sqrt(self.second.trace().item()):.3g}"


def as_keys(name: str, keys: torch.Tensor) -> torch.Tensor:
    """Keys (key, in) in float64 on the CPU."""
    if not hasattr(keys, "shape") and not (isinstance(keys, (list, tuple)) and keys):
        raise ValueError(f"{name}={shown(keys)}: give a matrix (key, in)")
    if not isinstance(keys, torch.Tensor):
        try:
            keys = torch.from_numpy(np.array(keys, np.float64))
        except (TypeError, ValueError):
            raise ValueError(f"{name}={shown(keys)}: give a matrix (key, in) of numbers") from None
    keys = keys.detach().cpu().double()
    if keys.ndim != 2 or not keys.shape[1]:
        raise ValueError(f"{name}= has shape {tuple(keys.shape)}; give a matrix (key, in)")
    if broken := int((~torch.isfinite(keys)).any(1).sum()):
        raise ValueError(
            f"{name}= has {broken} of {len(keys)} rows that are not finite (condition number nan); check the model's dtype, "
            "float32 does not overflow where float16 does"
        )
    return keys
