"""States that edited layers make what the unedited ones made of others: what an attack finds, and hardening takes away.

Layers with one input, stacked, are W_o before and W_n behind an edit. All that is asked of them here hangs on two matrices of the
input's size, W_n' W_n and W_n' W_o.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

from workbench.edit.closed_form import Change

STEPS = 200  # halvings of an interval, more than float64 has digits


@dataclass(frozen=True)
class Readings:
    """gram: W_n' W_n; cross: W_n' W_o; each (channel, channel), float64."""

    gram: torch.Tensor
    cross: torch.Tensor

    @classmethod
    def of(cls, weights: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> "Readings":
        """Of layers' weights before and behind an edit, each (out, channel)."""
        gram = cross = torch.zeros(1, 1, dtype=torch.float64)
        for old, new in weights:
            gram, cross = gram + new.T @ new, cross + new.T @ old
        return cls(gram, cross)

    @classmethod
    def behind(cls, read: torch.Tensor, change: Change) -> "Readings":
        """Of W_n = W_o M: read is W_o' W_o, the change M - I."""
        matrix = torch.eye(len(read), dtype=torch.float64) + change.u @ change.v
        return cls(matrix.T @ read @ matrix, matrix.T @ read)

    @cached_property
    def spectrum(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of W_n' W_n: eigenvalues (channel,), and eigenvectors (channel, eigenvalue)."""
        values, vectors = torch.linalg.eigh(self.gram)
        return values.clamp_min(0), vectors

    def ridge(self, lam: float) -> float:
        return lam * self.gram.trace().item() / len(self.gram)

    def solved(self, states: torch.Tensor, lam: float) -> torch.Tensor:
        """C' = (W_n' W_n + lam tr/d I)^-1 W_n' W_o C of states C (token, channel)."""
        values, vectors = self.spectrum
        return (states @ self.cross.T @ vectors / (values + self.ridge(lam))) @ vectors.T

    def nearest(self, states: torch.Tensor, most: float, lam: float) -> torch.Tensor:
        """The step (token, channel) D with the least |W_n (C + D) - W_o C| among those of |D| <= most |C|.

        D = (W_n' W_n + m I)^-1 W_n' (W_o - W_n) C, m as small as the distance allows (found by halving), and at least lam tr/d: beyond
        that D grows along directions that no layer reads.
        """
        values, vectors = self.spectrum
        wanted = states @ (self.cross - self.gram).T @ vectors
        least = self.ridge(lam)

        def length(m: float) -> float:
            return (wanted / (values + m)).norm().item()

        most = most * states.norm().item()
        if most == 0:
            return torch.zeros_like(states)
        if length(least) <= most:
            return (wanted / (values + least)) @ vectors.T
        low, high = least, least + wanted.norm().item() / most  # at which it is certainly short enough
        for _ in range(STEPS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if length(middle) > most else (low, middle)
        return (wanted / (values + high)) @ vectors.T
