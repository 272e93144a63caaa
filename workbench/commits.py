"""Committed edits of a pipeline: a stack of saved weights, so that undoing is bit-exact, and a log of what was done.

The stack belongs to the pipeline, whichever and however many Models wrap it. Every change of weights is whole or does not happen:
it is made under the pipeline's lock, Ctrl-C waits until it is done, and whatever else is raised meanwhile, weights are as before.
"""

import json
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

import torch
from diffusers import DiffusionPipeline

from workbench import schema
from workbench.locks import lock_of
from workbench.weights import editable_weight, weight_hash

LOST = 0.1  # share of a change that rounding may take before a commit warns
TRIES = 8  # at putting one weight back, before giving up on it


@dataclass(frozen=True)
class Commit:
    """One entry of the log. what: the edit's provenance. where: its sites. when: UTC. base, after: SHA-256 of each weight before the
    commit and behind it. edit: SHA-256 of the edit."""

    what: dict
    where: tuple[str, ...]
    when: str
    base: dict[str, str]
    after: dict[str, str]
    edit: str

    def __post_init__(self):
        object.__setattr__(self, "what", schema.mapping(self.what, "Commit(what=)"))
        where = schema.listed(self.where, "Commit(where=)")
        object.__setattr__(self, "where", tuple(schema.site_name(site, "Commit(where=)") for site in where))
        for name in ("base", "after"):
            held = schema.fields(getattr(self, name), f"Commit({name}=)", self.where)
            object.__setattr__(self, name, {site: schema.sha256(held[site], f"Commit({name}=)") for site in self.where})
        schema.text(self.when, "Commit(when=)")
        schema.sha256(self.edit, "Commit(edit=)")

    def __repr__(self):
        shown = ", ".join(self.where[:4]) + (", ..." if len(self.where) > 4 else "")
        return f"{self.when} {self.what.get('editor', 'edit')} at {len(self.where)} sites: {shown}"


@dataclass(eq=False)
class _Layer:
    """One commit on the stack. paths: modules of its sites. before: their weights, None where the commit was made before the model
    was saved. held: whether an `applied` block lasts for which it was made."""

    commit: Commit
    paths: dict[str, str]
    before: dict[str, torch.Tensor] | None
    held: bool = False


class Commits:
    """What was committed to a pipeline, the latest last, with the weights as they were before each; `commits_of` finds it."""

    def __init__(self, pipeline: DiffusionPipeline):
        self._pipeline = weakref.ref(pipeline)
        self._stack: list[_Layer] = []

    @property
    def log(self) -> tuple[Commit, ...]:
        return tuple(layer.commit for layer in self._stack)

    def earlier(self, site: str) -> list[str]:
        """SHA-256 of what a site's weight was before each commit that touched it."""
        return [entry.base[site] for entry in self.log if site in entry.base]

    def commit(self, model, edit, base: bool = True):
        """Add an edit to the weights; nothing is changed before everything is known to fit. model: whose sites the edit names."""
        with lock_of(self._pipeline()):
            self._commit(model, edit, base)

    def undo(self, check: bool = True):
        """Put the weights back as they were before the latest commit. check: refuse where they are not what it left."""
        with lock_of(self._pipeline()):
            if not self._stack:
                raise ValueError("nothing to undo: model.edits is empty; commit an edit first")
            if self._stack[-1].held:
                raise ValueError(
                    f"the latest commit ({self.log[-1]}) is an `applied` block's, which takes it back at its end; leave the block"
                )
            self._undo(check)

    @contextmanager
    def applied(self, model, edit, base: bool = True) -> Iterator[None]:
        """An edit committed for as long as the block lasts, whatever happens in it; other threads wait for the whole block."""
        with lock_of(self._pipeline()):
            depth = len(self._stack)
            try:
                mine = self._commit(model, edit, base, held=True)
                yield
                if mine not in self._stack:
                    raise RuntimeError(
                        f"the edit of this `applied` block ({mine.commit}) was taken back before its end, by a block around it that "
                        "ended first; what ran since ran without it"
                    )
            finally:
                self._unwind(depth)

    def to_json(self) -> str:
        """The log, to be kept with saved weights."""
        return json.dumps([asdict(entry) for entry in self.log], indent=1) + "\n"

    def restore(self, content: str, what: str):
        """Take up a log that `to_json` wrote, of commits whose weights before are not kept. what: is read, for errors."""
        keys = [field.name for field in fields(Commit)]
        try:
            found = schema.listed(schema.parsed(content, "the log"), "the log")
            entries = [Commit(**schema.fields(each, "a commit", keys)) for each in found]
        except ValueError as error:
            raise ValueError(f"{what}: {error}; remove the file to load the weights without their log") from None
        with lock_of(self._pipeline()):
            self._stack = [_Layer(entry, {}, None) for entry in entries]

    def copied_to(self, pipeline: DiffusionPipeline):
        """Give a copy of this pipeline the same stack."""
        commits_of(pipeline)._stack = [_Layer(layer.commit, layer.paths, layer.before) for layer in self._stack]

    @torch.no_grad()
    def _commit(self, model, edit, base: bool, held: bool = False) -> _Layer:
        if not hasattr(edit, "updates"):
            raise TypeError(f"commit(edit={edit!r}): give an Edit; wb.Edit.load(path, model) reads one from a file")
        edit.check(model, base=False)
        paths = {update.site: model.sites[update.site].module for update in edit.updates}
        weights = self._weights(paths)
        if len({id(weight) for weight in weights.values()}) < len(weights):
            raise ValueError(
                f"the sites {', '.join(weights)} share a weight, which would be changed twice; edit one of them"
            )
        before = {site: weight.detach().clone() for site, weight in weights.items()}
        hashes = {site: weight_hash(weight) for site, weight in before.items()}
        if base:
            edit.check_base({site: [found, *self.earlier(site)] for site, found in hashes.items()})
        changed = {update.site: _changed(before[update.site], update) for update in edit.updates}
        if again := [entry for entry in self.log if entry.edit == edit.digest]:
            warnings.warn(
                f"this very edit is committed already ({again[-1]}); the weights now hold it {len(again) + 1} times, and undo takes "
                "one of them back",
                stacklevel=4,
            )
        after = {site: weight_hash(weight) for site, weight in changed.items()}
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        layer = _Layer(Commit(edit.provenance, edit.sites, when, hashes, after, edit.digest), paths, before, held)
        with uninterrupted():
            _put(weights, changed, before)
            self._stack.append(layer)
        return layer

    @torch.no_grad()
    def _undo(self, check: bool):
        layer = self._stack[-1]
        if layer.before is None:
            raise ValueError(
                f"the weights before the latest commit ({layer.commit}) are not kept: it was made before the model was saved; load "
                "the model that it was made from"
            )
        weights = self._weights(layer.paths)
        if check and (other := [site for site in weights if weight_hash(weights[site]) != layer.commit.after[site]]):
            raise ValueError(
                f"undo: the weights of {', '.join(other[:4])}{', ...' if len(other) > 4 else ''} are not what the latest commit "
                f"({layer.commit}) left: changed by hand, by another dtype or by a LoRA that was fused; nothing was undone. Take that "
                "change back first, or pass check=False to put the weights back as they were before the commit, without it"
            )
        now = {site: weight.detach().clone() for site, weight in weights.items()}
        with uninterrupted():
            _put(weights, layer.before, now)
            self._stack.pop()

    def _unwind(self, depth: int):
        """Take back all commits above a depth; interrupts meanwhile come when that is done."""
        for layer in self._stack[depth:]:
            layer.held = False
        interrupt = None
        for _ in range(TRIES):
            try:
                while len(self._stack) > depth:
                    self._undo(check=True)
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _weights(self, paths: Mapping[str, str]) -> dict[str, torch.nn.Parameter]:
        return {site: editable_weight(self._pipeline(), path, site) for site, path in paths.items()}


_COMMITS: weakref.WeakKeyDictionary[DiffusionPipeline, Commits] = weakref.WeakKeyDictionary()


def commits_of(pipeline: DiffusionPipeline) -> Commits:
    """What was committed to a pipeline."""
    with lock_of(pipeline):
        if pipeline not in _COMMITS:
            _COMMITS[pipeline] = Commits(pipeline)
        return _COMMITS[pipeline]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block ends. Only the main thread is ever interrupted; elsewhere there is nothing to hold back."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    arrived = []
    try:
        signal.signal(signal.SIGINT, lambda *signal_and_frame: arrived.append(signal_and_frame))
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if arrived and before == signal.SIG_DFL:
            signal.raise_signal(signal.SIGINT)
        elif arrived and callable(before):
            before(*arrived[0])


def _changed(weight: torch.Tensor, update) -> torch.Tensor:
    """weight + b @ a, rounded once to the weight's dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    b, a = (factor.to(weight.device, wide) for factor in (update.b, update.a))
    exact = torch.addmm(weight.to(wide), b, a)
    changed = exact.to(weight.dtype)
    if not torch.isfinite(changed).all():
        raise ValueError(
            f"the edit of {update.site} does not fit {weight.dtype}: its weight would not be finite; scale it (edit * 0.5), or "
            "load the model in float32"
        )
    lost = torch.linalg.matrix_norm((changed.to(wide) - exact).double()).item()
    if lost > LOST * (norm := update.norm()):
        warnings.warn(
            f"the edit of {update.site} is too small for {weight.dtype}: rounding the weight takes {lost / norm:.0%} of the change; "
            "preview the edit or load it as LoRA, which keep the change apart, or load the model in a wider dtype",
            stacklevel=5,
        )
    return changed


def _put(weights: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]):
    """Copy values into weights, all or none of them: whatever is raised, and again while they are put back."""
    try:
        for site, weight in weights.items():
            weight.copy_(values[site])
    except BaseException:
        for site, weight in weights.items():
            _insist(site, weight, before[site])
        raise


def _insist(site: str, weight: torch.Tensor, value: torch.Tensor):
    for _ in range(TRIES):
        try:
            weight.copy_(value)
            return
        except BaseException as error:  # a further interrupt comes after the weights
            failure = error
    raise RuntimeError(f"{site}: its weight could not be put back ({failure!r}); load the model again") from failure
