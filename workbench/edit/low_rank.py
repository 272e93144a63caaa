"""`Edit`: a low-rank change of weights as data, to be previewed, committed, undone, added, scaled, saved and exported."""

import fnmatch
import hashlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from workbench import files, schema
from workbench.arguments import checked
from workbench.inputs import several, shown
from workbench.interventions import Intervention, map_input
from workbench.sites import weight_of

Layout = Literal["kohya", "peft"]
DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class Update:
    """The change b @ a of one weight.

    site: name of the site whose linear layer or embedding it is. module: its path in the pipeline. b: (out, rank), a: (rank, in),
    float32 on the CPU. base: SHA-256 of the weight that it was made for. dtype: of that weight. family: of that model,
    "sd" (Stable Diffusion 1.x, 2.x) or "sdxl".

    Raises ValueError for anything else, such as a glob, factors that are not finite, or whose ranks differ.

    >>> update = edit.updates[0]
    >>> update.site, update.shape, update.rank, update.dtype
    ('unet.up.2.0.cross.k', (64, 96), 4, 'float32')
    """

    site: str
    module: str
    b: torch.Tensor
    a: torch.Tensor
    base: str
    dtype: str
    family: str

    def __post_init__(self):
        schema.site_name(self.site, "Update(site=)")
        schema.site_name(self.module, f"{self.site}: module")
        schema.sha256(self.base, f"{self.site}: base")
        schema.choice(self.dtype, f"{self.site}: dtype", DTYPES)
        schema.text(self.family, f"{self.site}: family")
        for name, axes in (("b", ("out", "rank")), ("a", ("rank", "in"))):
            object.__setattr__(self, name, schema.array(getattr(self, name), f"{self.site}: {name}", axes=axes))
        if self.b.shape[1] != self.a.shape[0]:
            raise ValueError(
                f"{self.site}: b= is {tuple(self.b.shape)} and a= {tuple(self.a.shape)}; their ranks must agree"
            )

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight: (out, in)."""
        return self.b.shape[0], self.a.shape[1]

    def norm(self) -> float:
        """Frobenius norm of b @ a, without forming it.

        >>> update = edit.updates[0]
        >>> abs(update.norm() - (update.b @ update.a).norm().item()) < 1e-4
        True
        """
        b, a = self.b.double(), self.a.double()
        return max(((b.T @ b) * (a @ a.T)).sum().item(), 0.0) ** 0.5

    def balanced(self) -> tuple[torch.Tensor, torch.Tensor]:
        """b (out, rank) and a (rank, in) of the same product by its singular values, half in each factor.

        An editor's factors may be large and cancel (templates give keys that are nearly equal), so that rounding each to half
        precision harms the product far more than rounding should; these do not cancel. Rows and columns of zeros stay zero.

        >>> update = edit.updates[0]
        >>> b, a = update.balanced()
        >>> torch.allclose(b @ a, update.b @ update.a, atol=1e-5), torch.allclose(b.norm(), a.norm())
        (True, True)
        """
        rows, columns = self.b.abs().sum(1) > 0, self.a.abs().sum(0) > 0
        b, a = torch.zeros_like(self.b), torch.zeros_like(self.a)
        if rows.any() and columns.any():
            left, across = torch.linalg.qr(self.b[rows].double())
            right, along = torch.linalg.qr(self.a[:, columns].double().T)
            u, strengths, v = torch.linalg.svd(across @ along.T, full_matrices=False)
            halves = strengths.sqrt()
            b[rows, : len(halves)] = (left @ u * halves).float()
            a[: len(halves), columns] = (right @ v.T * halves).T.float()
        return b, a


@dataclass(frozen=True, eq=False)
class Edit:
    """A low-rank change of some weights.

    updates: one for each site, in the order of the model. provenance: what made it, as JSON holds it; its "diagnostics" are
    by site `rank`, `relative_norm` |b a| / |W|, `condition` of the solved system, mean `shrinkage`, `drift` |b a p| / |W p| on
    what was preserved, and `kept`, the share of the squared singular values that a cut to a rank left. `edit + edit` adds,
    `edit * 0.5` halves, `-edit` is the opposite.

    Raises ValueError for a site that stands twice or an edit of nothing.

    >>> edit.sites[:2], edit.rank
    (('unet.up.2.0.cross.k', 'unet.up.2.0.cross.v'), 4)
    >>> (edit + edit * 0.5).rank, (-edit).editor
    (8, '-1 x locoedit')
    """

    updates: tuple[Update, ...]
    provenance: dict = field(default_factory=dict)

    def __post_init__(self):
        fix = "give what update_of(model, site, b, a) makes, at least one"
        object.__setattr__(self, "updates", several(self.updates, "Edit(updates=)", fix))
        if wrong := [update for update in self.updates if not isinstance(update, Update)]:
            raise ValueError(f"Edit(updates=) holds {shown(wrong[0])}; give what update_of(model, site, b, a) makes")
        names = self.sites
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"Edit(updates=) of the sites {list(names)}: give at least one, and each site once (add edits with +)"
            )
        object.__setattr__(self, "provenance", schema.mapping(self.provenance, "Edit(provenance=)"))

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites whose weights change."""
        return tuple(update.site for update in self.updates)

    @property
    def editor(self) -> str:
        """What made it, in words."""
        return self.provenance.get("editor", "edit")

    @property
    def rank(self) -> int:
        """The largest of its updates'."""
        return max(update.rank for update in self.updates)

    @property
    def digest(self) -> str:
        """SHA-256 of its factors and where they are."""
        state = hashlib.sha256()
        for update in self.updates:
            state.update(f"{update.site} {update.module} {tuple(update.b.shape)} {tuple(update.a.shape)}".encode())
            for factor in (update.b, update.a):
                state.update(factor.numpy().data)
        return state.hexdigest()

    def preview(self) -> tuple[Intervention, ...]:
        """The same edit as interventions, for a `World`: its images are the committed model's, up to rounding.

        They touch both halves of a guided batch and the negative prompt, as changed weights do.

        >>> previewed = model.run(wb.World("zebra", "a photo of a zebra", edit.preview())).images
        >>> with model.applied(edit):
        ...     committed = model.run({"zebra": "a photo of a zebra"}).images
        >>> np.allclose(previewed, committed, atol=1e-3)
        True
        """
        return tuple(map_input(update.site, *update.balanced(), rows="both") for update in self.updates)

    def as_interventions(self) -> tuple[Intervention, ...]:
        """What a `World` takes an edit for: its preview.

        >>> wb.World("edited", "a zebra", edit).interventions == edit.as_interventions()
        True
        """
        return self.preview()

    def at(self, *sites: str) -> "Edit":
        """The part of the edit at some layers: globs of sites, or of the layers whose k and v they are.

        What is solved for one input is the same for every layer that is given it. Raises KeyError for a glob that matches none.

        >>> edit.at("unet.up.2.0.cross").sites
        ('unet.up.2.0.cross.k', 'unet.up.2.0.cross.v')
        """
        layers = {site: (site, site.rsplit(".", 1)[0]) for site in self.sites}
        globs = {glob: schema.without_braces(glob) for glob in schema.site_names(sites)}
        matches = lambda site, glob: any(fnmatch.filter(layers[site], part) for part in globs[glob])
        if lost := [glob for glob in globs if not any(matches(site, glob) for site in self.sites)]:
            raise KeyError(f"the edit changes nothing at {lost}; its sites are {', '.join(self.sites)}")
        kept = [update for update in self.updates if any(matches(update.site, glob) for glob in globs)]
        return Edit(kept, self.provenance | {"at": list(sites)})

    def __mul__(self, factor: float) -> "Edit":
        """The edit times a number; 0 changes nothing, -1 is the opposite."""
        if isinstance(factor, Edit):
            return NotImplemented
        factor = schema.number(factor, "edit * factor")
        of, total = self.provenance, factor
        if of.keys() == {"editor", "scaled", "of"}:  # it was scaled before: once, by the product
            of, total = of["of"], factor * of["scaled"]
        about = {"editor": f"{total:g} x {of.get('editor', 'edit')}", "scaled": total, "of": of}
        return Edit([replace(update, b=update.b * factor) for update in self.updates], about)

    __rmul__ = __mul__

    def __neg__(self) -> "Edit":
        return self * -1

    def __add__(self, other: "Edit") -> "Edit":
        """Both edits as one, of the ranks' sum; raises ValueError where they were made for different weights."""
        if not isinstance(other, Edit):
            raise TypeError(f"edit + {shown(other)}: only edits add; other is a {type(other).__name__}")
        mine, theirs = ({update.site: update for update in edit.updates} for edit in (self, other))
        for site in mine.keys() & theirs.keys():
            a, b = mine[site], theirs[site]
            if a.shape != b.shape or a.base != b.base:
                raise ValueError(
                    f"edits of {site} do not add: one is for a weight {a.shape} of SHA-256 {a.base[:12]}, the other "
                    f"{b.shape} of {b.base[:12]}; make both from the same model, or commit them in turn"
                )
            both = [torch.cat([a.b, b.b], 1), torch.cat([a.a, b.a], 0)]
            mine[site] = replace(a, b=both[0], a=both[1])
        abouts = [edit.provenance for edit in (self, other)]
        parts = [part for of in abouts for part in (of["sum"] if of.keys() == {"editor", "sum"} else [of])]
        return Edit((theirs | mine).values(), {"editor": f"{self.editor} + {other.editor}", "sum": parts})

    def table(self) -> pd.DataFrame:
        """One row for each site: shape, rank and diagnostics.

        >>> edit.table()[["site", "out", "in", "rank"]].head(2)
                          site  out  in  rank
        0  unet.up.2.0.cross.k   64  96     4
        1  unet.up.2.0.cross.v   64  96     4
        """
        known = self.provenance.get("diagnostics", {})
        rows = [
            {
                "site": u.site,
                "out": u.shape[0],
                "in": u.shape[1],
                "rank": u.rank,
                "norm": u.norm(),
                **known.get(u.site, {}),
            }
            for u in self.updates
        ]
        return pd.DataFrame(rows)

    def __repr__(self):
        with pd.option_context(
            "display.max_rows", 12, "display.max_columns", None, "display.width", 200, "display.precision", 3
        ):
            return f"{self._title()}\n{self.table()}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self._title())}</p>{self.table().to_html(max_rows=12, float_format='{:.3g}'.format, index=False)}"

    def _title(self) -> str:
        values = sum(update.b.numel() + update.a.numel() for update in self.updates)
        return f"{self.editor}: {len(self.updates)} weights, rank at most {self.rank}, {values} numbers"

    @checked
    def check(self, model, *, base: bool = True):
        """Raise ValueError unless every site exists in a model, with a weight of that shape and (`base`) of that content.

        >>> edit.check(model)  # nothing, or an error that says what does not fit
        """
        for update in self.updates:
            if update.site not in model.sites:
                raise ValueError(
                    f"the edit changes {update.site!r}, which this model lacks; load the model that it was made for"
                )
            weight = weight_of(model.pipeline, model.sites[update.site])
            if tuple(weight.shape) != update.shape:
                raise ValueError(
                    f"the edit of {update.site} is for a weight of {update.shape}, the model's is {tuple(weight.shape)}; "
                    "load the model that it was made for"
                )
        if base:
            self.check_base({site: model.hashes(site) for site in self.sites})

    def check_base(self, hashes: Mapping[str, Sequence[str]]):
        """Raise ValueError unless every update was made for one of its site's weights: SHA-256 of what it is now, and was before.

        >>> edit.check_base({site: model.hashes(site) for site in edit.sites})
        """
        for update in self.updates:
            if update.base not in (known := hashes[update.site]):
                raise ValueError(
                    f"the edit of {update.site} was made for a {update.dtype} weight of SHA-256 {update.base}, the model's is "
                    f"{known[0]}; load the model that it was made for in the same dtype, or pass base=False to apply it to another"
                )

    @checked
    def save(self, path: str | Path):
        """Write a safetensors file: factors, and in its metadata sites, base hashes and provenance. The same edit gives the same bytes.

        >>> edit.save("edit.safetensors")
        >>> wb.Edit.load("edit.safetensors", model).digest == edit.digest
        True
        """
        factors = {f"{u.site}.{name}": getattr(u, name) for u in self.updates for name in ("b", "a")}
        about = [{key: getattr(u, key) for key in ABOUT} for u in self.updates]
        files.write(path, "edit", factors, {"updates": about, "provenance": self.provenance})

    @classmethod
    @checked
    def load(cls, path: str | Path, model=None) -> "Edit":
        """Read what `save` wrote; with a model, also check that it fits there.

        Raises FileNotFoundError, and ValueError for a file that is no edit, was altered, or is another model's.

        >>> edit.save("edit.safetensors")
        >>> wb.Edit.load("edit.safetensors", model).editor
        'locoedit'
        """
        factors, about = files.read(path, "edit")
        try:
            about = schema.fields(about, "an edit", ("updates", "provenance"))
            entries = [schema.fields(entry, "an update", ABOUT) for entry in schema.listed(about["updates"], "updates")]
            named = {f"{entry['site']}.{name}" for entry in entries for name in ("b", "a")}
            if named != factors.keys():
                raise ValueError(f"its updates and its tensors differ at {sorted(named ^ factors.keys())[:5]}")
            parts = [Update(**e, **{name: factors[f"{e['site']}.{name}"] for name in ("b", "a")}) for e in entries]
            found = cls(parts, about["provenance"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}; save the edit again") from None
        if model is not None:
            found.check(model)
        return found

    def to_lora(self, path: str | Path, layout: Layout = "kohya") -> Path:
        """Write the edit as one LoRA file; see `workbench.edit.export.to_lora`.

        >>> edit.to_lora("zebra.safetensors").name
        'zebra.safetensors'
        >>> edit.to_lora("peft.safetensors", layout="peft").name
        'peft.safetensors'
        """
        from workbench.edit.export import to_lora

        return to_lora(self, path, layout)

    def card(self) -> str:
        """What a reader of the edit's file should know, as a README in Markdown.

        >>> print(edit.card().splitlines()[3])
        # locoedit: a zebra -> a giraffe
        """
        from workbench.edit.card import card

        return card(self)


ABOUT = ("site", "module", "base", "dtype", "family")


@checked(name=lambda name, argument: schema.site_name(name, "update_of(name=)"))
def update_of(model, name: str, b: torch.Tensor, a: torch.Tensor) -> Update:
    """An update of a model's weight at a site, by its name.

    >>> out, into = model.pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.shape
    >>> update = wb.edit.update_of(model, "unet.mid.cross.k", torch.zeros(out, 1), torch.zeros(1, into))
    >>> wb.Edit([update]).sites
    ('unet.mid.cross.k',)
    """
    site = model.sites[name]
    dtype = str(weight_of(model.pipeline, site).dtype).removeprefix("torch.")
    return Update(name, site.module, b, a, model.hashes(name)[0], dtype, model.family.name)
