"""Committed edits of a model: a stack of saved weights, so that undoing is bit-exact, and a log of what was done."""

import hashlib
import time
from dataclasses import dataclass

import torch

from workbench.sites import weight_of


@dataclass(frozen=True)
class Commit:
    """One entry of the log. what: the edit's provenance. where: its sites. when: UTC. base: SHA-256 of each weight before."""

    what: dict
    where: tuple[str, ...]
    when: str
    base: dict[str, str]

    def __repr__(self):
        shown = ", ".join(self.where[:4]) + (", ..." if len(self.where) > 4 else "")
        return f"{self.when} {self.what.get('editor', 'edit')} at {len(self.where)} sites: {shown}"


class Commits:
    """What was committed to a model, the latest last, with the weights as they were before each."""

    def __init__(self, model):
        self.model = model
        self.log: list[Commit] = []
        self.saved: list[dict[str, torch.Tensor]] = []

    def weight(self, name: str) -> torch.nn.Parameter:
        (site,) = self.model.sites(name)
        return weight_of(self.model.pipeline, site)

    def hashes(self, name: str) -> list[str]:
        """SHA-256 of a weight now, then of what it was before each commit that touched it."""
        return [weight_hash(self.weight(name)), *(entry.base[name] for entry in self.log if name in entry.base)]

    @torch.no_grad()
    def commit(self, edit, base: bool):
        """Nothing is changed before everything is known to fit."""
        if not hasattr(edit, "updates"):
            raise TypeError(f"commit(edit={edit!r}): give an Edit; wb.Edit.load(path, model) reads one from a file")
        edit.check(self.model, base=base)
        weights = {update.site: self.weight(update.site) for update in edit.updates}
        changed = {}
        for update in edit.updates:
            weight = weights[update.site]
            exact = torch.promote_types(weight.dtype, torch.float32)
            b, a = (factor.to(weight.device, exact) for factor in (update.b, update.a))
            changed[update.site] = torch.addmm(weight.to(exact), b, a).to(weight.dtype)
            if not torch.isfinite(changed[update.site]).all():
                raise ValueError(
                    f"the edit of {update.site} does not fit {weight.dtype}: its weight would not be finite; scale it "
                    "(edit.scaled), or load the model in float32"
                )
        saved = {name: weight.detach().clone() for name, weight in weights.items()}
        hashes = {name: weight_hash(weight) for name, weight in saved.items()}
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            for name, weight in weights.items():
                weight.copy_(changed[name])
        except BaseException:
            for name, weight in weights.items():
                weight.copy_(saved[name])
            raise
        self.saved.append(saved)
        self.log.append(Commit(edit.provenance, edit.sites, when, hashes))

    @torch.no_grad()
    def undo(self):
        if not self.log:
            raise ValueError("nothing to undo: model.edits is empty; commit an edit first")
        for name, before in self.saved[-1].items():
            self.weight(name).copy_(before)
        self.saved.pop()
        self.log.pop()


def weight_hash(weight: torch.Tensor) -> str:
    """SHA-256 of a weight's bytes, in hexadecimal; another dtype is another hash."""
    return hashlib.sha256(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
