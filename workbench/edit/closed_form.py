"""The closed-form solver behind every named editor, and the running second moments that it may preserve.

For keys c_i (inputs of a linear layer), values v_i that they shall give, preserved keys p_j, weights s_e and s_p and a
regulariser R,

    W' = (W R + s_e sum v_i c_i^T + s_p sum W p_j p_j^T) S^-1,   S = R + s_e sum c_i c_i^T + s_p sum p_j p_j^T,

so that W' - W = sum_i (v_i - W c_i) a_i^T with a_i = s_e S^-1 c_i: low rank by construction, and `a` the same for every
layer with the same input. R = lam I is LocoEdit, TIME and UCE; R = lam C with C = E[k k^T] is MEMIT's, and ROME's for one
pair and lam -> 0 (arXiv 2405.01008, 2303.08084, 2308.14761, 2210.07229, 2202.05262).
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from workbench import files, schema
from workbench.arguments import at_least_zero, checked, instance_of, one_of
from workbench.inputs import number, shown

Preservation = Literal["ridge", "covariance", "nullspace"]
TOO_SINGULAR = 1e14  # condition number beyond which float64 has no digit left to trust


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
        keys = _finite("keys", keys)
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


@dataclass(frozen=True)
class Solution:
    """What the solver found, for all layers with this input.

    a: (pair, in), float64; a layer's update is sum_i (v_i - W c_i) a_i^T. condition: of the solved system, in the 1-norm.
    shrinkage: (pair,), the share of its own residual that each key gets; |c|^2 / (lam + |c|^2) for one pair alone.
    preserved: the preserved keys (key, in).

    >>> found = wb.edit.solve(torch.eye(3)[:1], lam=0.25, preserved=torch.eye(3)[1:])
    >>> found.a, found.preserved.shape
    (tensor([[0.8000, 0.0000, 0.0000]], dtype=torch.float64), torch.Size([2, 3]))
    """

    a: torch.Tensor
    condition: float
    shrinkage: torch.Tensor
    preserved: torch.Tensor

    def factors(self, residuals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """B (out, rank) and A (rank, in) of one layer, for residuals v_i - W c_i (pair, out).

        The rank is at most the number of pairs, and of channels on either side.

        >>> found = wb.edit.solve(torch.eye(3)[:1], lam=0.0)
        >>> b, a = found.factors(torch.tensor([[1.0, 2.0]]))  # what is missing at two outputs
        >>> b @ a
        tensor([[1., 0., 0.],
                [2., 0., 0.]], dtype=torch.float64)
        """
        used = residuals.abs().sum(1) > 0  # a key whose value stays is preserved, and needs no term
        a, residuals = self.a[used], residuals[used].double()
        if len(a) > min(a.shape[1], residuals.shape[1]):  # the same product in fewer terms, without forming it
            if a.shape[1] <= residuals.shape[1]:
                basis, a = torch.linalg.qr(a)
                residuals = basis.T @ residuals
            else:
                basis, residuals = torch.linalg.qr(residuals)
                a = basis.T @ a
        return residuals.T.contiguous(), a


@checked(
    keys=lambda keys, argument: _finite(argument, keys),
    lam=at_least_zero,
    weight=partial(number, above=0),
    preserve_weight=at_least_zero,
    preservation=one_of("ridge", "covariance", "nullspace"),
    moments=instance_of("workbench.edit.closed_form:Moments"),
    retain=at_least_zero,
)
def solve(
    keys: torch.Tensor,
    *,
    lam: float,
    weight: float = 1.0,
    preserved: torch.Tensor | None = None,
    preserve_weight: float = 1.0,
    preservation: Preservation = "ridge",
    moments: Moments | None = None,
    retain: float = 0.01,
) -> Solution:
    """Solve once for all layers that are given these keys, in float64.

    keys: (pair, in). preserved: (key, in). preservation: "ridge", with lam as the regulariser and the preserved keys as
    terms of the sum; "covariance", with lam times the moments' E[k k^T] in its place (lam 0: the keys' values are met
    exactly, ROME); "nullspace", where the update does not touch the subspace of the preserved keys and moments whose
    singular values exceed `retain` times the largest (SPEED, arXiv 2503.07392; AlphaEdit, 2410.02355).

    Raises ValueError for keys that are not finite and for a singular system, with its condition number.

    >>> keys = torch.eye(3)[:2]  # two of three channels
    >>> found = wb.edit.solve(keys, lam=1.0)
    >>> found.a
    tensor([[0.5000, 0.0000, 0.0000],
            [0.0000, 0.5000, 0.0000]], dtype=torch.float64)
    >>> found.shrinkage
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    keys = _finite("keys", keys)
    count, channels = keys.shape
    if not count:
        raise ValueError("keys= has no rows; give at least one key (key, in)")
    kept = keys.new_zeros(0, channels) if preserved is None else _finite("preserved", preserved)
    if kept.shape[1:] != keys.shape[1:]:
        raise ValueError(
            f"preserved= has {tuple(kept.shape)} entries, keys {tuple(keys.shape)}; take both from the same site's input"
        )
    if preservation == "covariance" and moments is None:
        raise ValueError('preservation="covariance" needs moments=, the second moments of a corpus at the same input')
    if moments is not None and len(moments.total) != channels:
        raise ValueError(
            f"moments= has {len(moments.total)} channels, the keys have {channels}; take both from the same site's input"
        )
    if preservation == "nullspace":
        basis = _subspace(kept, moments, retain)
        if len(basis) == channels:
            raise ValueError(
                f"preservation='nullspace': what is preserved spans all {channels} channels, nothing is left to edit; "
                f"raise retain={retain}, or preserve less"
            )
        stacked = math.sqrt(weight) * (keys - keys @ basis.T @ basis)
    else:
        stacked = torch.cat([math.sqrt(weight) * keys, math.sqrt(preserve_weight) * kept])
    base = moments.second if preservation == "covariance" else None
    a, condition = _gain(stacked, lam, base)
    a = math.sqrt(weight) * a[:count]
    return Solution(a, condition, (a * keys).sum(1), kept)


def _gain(keys: torch.Tensor, lam: float, base: torch.Tensor | None) -> tuple[torch.Tensor, float]:
    """keys @ (lam base + keys^T keys)^-1 and the condition number, through the smaller of the two systems; base None: identity."""
    count, channels = keys.shape
    if count > channels:
        eye = torch.eye(channels, dtype=keys.dtype) if base is None else base
        solved, condition = _solved(lam * eye + keys.T @ keys, keys.T, "raise lam= or give more and more varied keys")
        return solved.T, condition
    mapped, condition = keys.T, 1.0
    if base is not None:
        mapped, condition = _solved(base, keys.T, "give moments of a larger corpus, or moments.floored(1e-6)")
    inner = lam * torch.eye(count, dtype=keys.dtype) + keys @ mapped
    solved, own = _solved(inner, mapped.T, "raise lam=, or leave out keys that repeat others or are zero")
    return solved, max(condition, own)


def _solved(system: torch.Tensor, right: torch.Tensor, fix: str) -> tuple[torch.Tensor, float]:
    """system^-1 @ right for a symmetric positive system, and its condition number in the 1-norm."""
    factor, failed = torch.linalg.cholesky_ex(system)
    norm = lambda matrix: torch.linalg.matrix_norm(matrix, 1).item()
    condition = norm(system) * (math.inf if failed else norm(torch.cholesky_inverse(factor)))
    if not condition < TOO_SINGULAR:
        raise ValueError(
            f"the system of {len(system)} equations is singular: condition number {condition:.1e}, float64 bears {TOO_SINGULAR:.0e}; {fix}"
        )
    return torch.cholesky_solve(right, factor), condition


def _subspace(kept: torch.Tensor, moments: Moments | None, retain: float) -> torch.Tensor:
    """Orthonormal directions (direction, in) that preserved keys and moments take up."""
    second = kept.T @ kept / max(len(kept), 1)
    second = second if moments is None else second + moments.second
    strengths, directions = torch.linalg.eigh(second)
    if strengths[-1] <= 0:
        raise ValueError('preservation="nullspace" needs preserved= keys or moments=; found neither')
    return directions[:, strengths > retain**2 * strengths[-1]].T


def _finite(name: str, keys: torch.Tensor) -> torch.Tensor:
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
