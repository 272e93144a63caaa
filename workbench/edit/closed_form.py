"""The closed-form solver behind every named editor.

For keys c_i (inputs of a linear layer), values v_i that they shall give, preserved keys p_j, weights s_e and s_p and a
regulariser R,

    W' = (W R + s_e sum v_i c_i^T + s_p sum W p_j p_j^T) S^-1,   S = R + s_e sum c_i c_i^T + s_p sum p_j p_j^T,

so that W' - W = sum_i (v_i - W c_i) a_i^T with a_i = s_e S^-1 c_i: low rank by construction, and `a` the same for every
layer with the same input. R = lam I is LocoEdit, TIME and UCE; R = lam C with C = E[k k^T] is MEMIT's, and ROME's for one
pair and lam -> 0 (arXiv 2405.01008, 2303.08084, 2308.14761, 2210.07229, 2202.05262).

Where the values are what W gives for guides g_i, v_i = W g_i, this is W' = W M with one M for all layers that are given the same,

    M = I + sum_i (g_i - c_i) a_i^T = I + sum_j s_j u_j v_j^T,

its singular values in falling order. Cut to the first `rank` of them, the change of every layer is (W u s) v^T: factors of that
rank, of which v and, before W, u s are shared. That is something else than cutting each layer's own W (M - I), whose directions
differ from layer to layer. What layers are given without distinction, such as a text encoder's states at all cross-attention,
has one M; what only one layer is given has its own.

A projection or a reflection of what layers are given is such an M too, with no ridge that shrinks it; see `projection`.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from workbench.arguments import at_least_zero, checked, instance_of, one_of
from workbench.edit.moments import Moments, as_keys
from workbench.inputs import count, number

Preservation = Literal["ridge", "covariance", "nullspace"]
TOO_SINGULAR = 1e14  # condition number beyond which float64 has no digit left to trust
NOTHING = 1e-12  # of the largest singular value: what rounding leaves in float64
FROM_STATES = 1e-6  # the same of differences between states, which are float32


@dataclass(frozen=True)
class Change:
    """M - I for all layers with one input, as factors: u (in, rank) and v (rank, in), float64.

    kept: the share that it has of what it was cut from, as squared singular values go.
    """

    u: torch.Tensor
    v: torch.Tensor
    kept: float

    def factors(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """B (out, rank) and A (rank, in) of a layer with this weight (out, in)."""
        return weight.double() @ self.u, self.v


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

    @checked(differences=lambda keys, argument: as_keys(argument, keys), rank=count)
    def change(self, differences: torch.Tensor, rank: int) -> Change:
        """M - I cut to its `rank` largest singular values, for guides minus keys (pair, in): the same for all layers.

        >>> found = wb.edit.solve(torch.eye(3)[:2], lam=0.0)
        >>> change = found.change(torch.tensor([[0.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), rank=1)
        >>> (change.u @ change.v).round().abs(), change.kept
        (tensor([[0., 0., 0.],
                [0., 0., 0.],
                [2., 0., 0.]], dtype=torch.float64), 0.8)
        """
        if differences.shape != self.a.shape:
            raise ValueError(
                f"differences= has {tuple(differences.shape)} entries, the solution {tuple(self.a.shape)}; give guide minus key "
                "for every key that was solved for"
            )
        left, across = torch.linalg.qr(differences.T)
        right, along = torch.linalg.qr(self.a.T)
        u, strengths, v = torch.linalg.svd(across @ along.T, full_matrices=False)
        first = min(rank, _above(strengths, NOTHING))
        return Change((left @ u * strengths)[:, :first], (right @ v.T)[:, :first].T, _share(strengths, first))


def projection(
    differences: torch.Tensor, second: torch.Tensor | None, *, rank: int | None = None, times: float = 1.0
) -> Change:
    """What removes (times 1) or reflects (times 2) the directions in which some states differ, and changes others the least.

    differences: (pair, in). second: E[k k^T] of the states to be kept, (in, in), not centred; None is the identity. With S for it,
    D for the differences and V (rank, in) for the first right singular vectors of D S^-1/2, the largest first,

        M = I - times S^1/2 V^T V S^-1/2.

    times=1 is LEACE's oblique projection (Belrose et al. 2023, arXiv 2306.03819, theorem 4.3, there of centred states): of all matrices
    that remove these directions the one that moves the states to be kept the least, E|M k - k|^2; with the identity for S it is
    the orthogonal projection. rank=None is every direction: then M d = 0 for all differences.
    times=2 is the reflection at what the projection leaves: M M = I.

    Raises ValueError for differences that span all channels, where nothing would be left, and for a singular S.
    """
    root, inverse = _roots(second, differences)
    _, triangle = torch.linalg.qr(differences @ inverse)
    strengths, v = torch.linalg.svd(triangle, full_matrices=False)[1:]
    every = _above(strengths, FROM_STATES)
    first = every if rank is None else min(rank, every)
    if first == differences.shape[1]:
        raise ValueError(
            f"rank={rank}: the differences span all {first} channels, so that nothing is left; give a rank= below that, or fewer "
            "templates="
        )
    v = v[:first]
    return Change(-times * root @ v.T, v @ inverse, _share(strengths, first))


def _roots(second: torch.Tensor | None, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S^1/2 and S^-1/2, (in, in)."""
    if second is None:
        eye = torch.eye(like.shape[1], dtype=torch.float64)
        return eye, eye
    strengths, directions = torch.linalg.eigh(second)
    if not strengths[0] * TOO_SINGULAR > strengths[-1]:
        raise ValueError(
            f"the states to be kept leave some of the {len(second)} channels empty: their second moment is singular; raise floor=, "
            "or give a larger corpus="
        )
    roots = strengths.sqrt()
    return directions * roots @ directions.T, directions / roots @ directions.T


def _above(strengths: torch.Tensor, share: float) -> int:
    """How many singular values, in falling order, are more than rounding."""
    return int((strengths > share * strengths[0]).sum())


def _share(strengths: torch.Tensor, first: int) -> float:
    """Of the first singular values, squared, in all."""
    squares = strengths**2
    return (squares[:first].sum() / squares.sum()).item()


@checked(
    keys=lambda keys, argument: as_keys(argument, keys),
    lam=at_least_zero,
    weight=partial(number, above=0),
    preserve_weight=at_least_zero,
    preservation=one_of("ridge", "covariance", "nullspace"),
    moments=instance_of("workbench.edit.moments:Moments"),
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
    fixed: torch.Tensor | None = None,
) -> Solution:
    """Solve once for all layers that are given these keys, in float64.

    keys: (pair, in). preserved: (key, in). preservation: "ridge", with lam as the regulariser and the preserved keys as
    terms of the sum; "covariance", with lam times the moments' E[k k^T] in its place (lam 0: the keys' values are met
    exactly, ROME); "nullspace", where the update does not touch the subspace of the preserved keys and moments whose
    singular values exceed `retain` times the largest (SPEED, arXiv 2503.07392; AlphaEdit, 2410.02355). fixed: keys (key, in) whose
    values stay exactly as they are, whatever the others ask for: the Lagrange multipliers of SPEED's invariant equality
    constraints come to leaving out their directions, as the null space does; not with "covariance".

    Raises ValueError for keys that are not finite and for a singular system, with its condition number.

    >>> keys = torch.eye(3)[:2]  # two of three channels
    >>> found = wb.edit.solve(keys, lam=1.0)
    >>> found.a
    tensor([[0.5000, 0.0000, 0.0000],
            [0.0000, 0.5000, 0.0000]], dtype=torch.float64)
    >>> found.shrinkage
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    keys = as_keys("keys", keys)
    count, channels = keys.shape
    if not count:
        raise ValueError("keys= has no rows; give at least one key (key, in)")
    kept = keys.new_zeros(0, channels) if preserved is None else as_keys("preserved", preserved)
    held = keys.new_zeros(0, channels) if fixed is None else as_keys("fixed", fixed)
    for name, states in (("preserved", kept), ("fixed", held)):
        if states.shape[1:] != keys.shape[1:]:
            raise ValueError(
                f"{name}= has {tuple(states.shape)} entries, keys {tuple(keys.shape)}; take both from the same site's input"
            )
    if preservation == "covariance" and moments is None:
        raise ValueError('preservation="covariance" needs moments=, the second moments of a corpus at the same input')
    if moments is not None and len(moments.total) != channels:
        raise ValueError(
            f"moments= has {len(moments.total)} channels, the keys have {channels}; take both from the same site's input"
        )
    if fixed is not None and preservation == "covariance":
        raise ValueError(
            'fixed= cannot be held with preservation="covariance"; give preservation="ridge" or "nullspace"'
        )
    basis = _subspace(kept, moments, retain) if preservation == "nullspace" else keys.new_zeros(0, channels)
    if fixed is not None:
        basis = _with(basis, held)
    if len(basis) == channels:
        raise ValueError(
            f"preservation={preservation!r}: what is preserved spans all {channels} channels, nothing is left to edit; "
            f"raise retain={retain}, or preserve less"
        )
    free = lambda states: states - states @ basis.T @ basis
    stacked = math.sqrt(weight) * free(keys)
    if preservation != "nullspace":
        stacked = torch.cat([stacked, math.sqrt(preserve_weight) * free(kept)])
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


def _with(basis: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Orthonormal directions (direction, in) that take up those of a basis and some states."""
    rest = fixed - fixed @ basis.T @ basis
    strengths, directions = torch.linalg.svd(rest, full_matrices=False)[1:]
    return torch.cat([basis, directions[strengths > FROM_STATES * torch.linalg.matrix_norm(fixed, 2)]])
