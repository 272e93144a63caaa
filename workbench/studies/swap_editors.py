"""The editors of the swap benchmark by name, and the settings that its tuning compares."""

from collections.abc import Callable
from functools import partial
from typing import Any

from workbench import edit as edits
from workbench.edit.low_rank import Edit
from workbench.models import Model
from workbench.studies.edits import Editor, Fit

OTHER = {"zebra": "giraffe", "giraffe": "zebra"}
PAIRS = {f"a {animal}": f"a {other}" for animal, other in OTHER.items()}
ALL = "unet.*.cross"
# Chosen on training prompts (studies/windows.py): the best window of two, and the six layers whose leaving out costs most.
WINDOW = ("unet.up.2.0.cross", "unet.up.2.1.cross")
SIX = ("unet.down.1.0.cross", "unet.down.1.1.cross", "unet.up.2.0.cross", "unet.up.3.*.cross")
OVERSHOOT = 1.2  # a ridge shrinks what it asks for
BEST = dict(sites=None, tokens="all", lam=10.0, preserve_tokens="all")
TEXT_ENCODER = ("diff_quickfix", "embedding_swap", "textual_inversion")  # outside the rules: not UNet or VAE

Maker = Callable[[Model, Fit], Edit]


def solved(model: Model, fit: Fit, *, preserve: bool = True, scale: float = 1.0, **settings: Any) -> Edit:
    """The closed form from all training prompts, at the chosen settings but for these."""
    kept = fit.kept if preserve else ()
    edit = edits.from_concepts(model, fit.train, preserve=kept, **BEST | settings)
    return edit if scale == 1.0 else edit * scale


def from_a_fifth(model: Model, fit: Fit) -> Edit:
    return solved(model, fit.thinned(5))


def locoedit(model: Model, fit: Fit, *, sites: Any) -> Edit:
    return edits.locoedit(model, PAIRS, sites=sites or model.family.edited)


def time(model: Model, fit: Fit) -> Edit:
    return edits.time_edit(model, PAIRS)


def uce(model: Model, fit: Fit) -> Edit:
    return edits.uce(model, PAIRS, preserve=sorted({f"a {p.subject}" for p in fit.preserve if p.value == p.subject}))


def rome(model: Model, fit: Fit) -> Edit:
    return edits.rome(model, PAIRS, sites=model.family.edited, corpus=fit.corpus)


def neuron_swap(model: Model, fit: Fit, *, count: int = 30) -> Edit:
    """Each animal's strongest channels set to the other's mean."""
    first, second = (edits.neurons(model, {a: b}, sites=WINDOW, count=count) for a, b in PAIRS.items())
    return first + second


def diff_quickfix(model: Model, fit: Fit) -> Edit:
    return edits.diff_quickfix(model, PAIRS)


def embedding_swap(model: Model, fit: Fit) -> Edit:
    return edits.embedding_swap(model, *OTHER)


def inverted(model: Model, fit: Fit) -> Edit:
    """Each animal's word learned from pictures that the model draws of the other."""
    parts = []
    for word, other in OTHER.items():
        templates = sorted({p.prompt.replace(p.subject, "{}") for p in fit.train if p.subject == other})[:16]
        pictures = model.generate(
            [template.format(other) for template in templates], seeds=range(5000, 5000 + len(templates))
        )
        parts.append(edits.textual_inversion(model, word, pictures, templates=templates, updates=150))
    return parts[0] + parts[1]


EDITORS: dict[str, Maker] = {
    "swap": partial(solved, editor="swap", scale=OVERSHOOT),
    "swap, six layers": partial(solved, editor="swap", sites=SIX, scale=OVERSHOOT),
    "swap, null space": partial(solved, editor="swap", preservation="nullspace", retain=0.03),
    "swap, nothing preserved": partial(solved, editor="swap", preserve=False),
    "swap, two layers": partial(solved, editor="swap", sites=WINDOW),
    "swap, last subject token": partial(solved, editor="swap", tokens="subject_last"),
    "locoedit, two layers": partial(locoedit, sites=WINDOW),
    "locoedit, all layers": partial(locoedit, sites=None),
    "time": time,
    "uce": uce,
    "rome": rome,
    "neurons, two layers": neuron_swap,
    "diff_quickfix": diff_quickfix,
    "embedding_swap": embedding_swap,
    "textual_inversion": inverted,
}

TUNED: dict[str, Maker] = {
    "chosen": partial(solved, scale=OVERSHOOT),
    **{f"scaled {factor:g}": partial(solved, scale=factor) for factor in (1.0, 1.4)},
    **{f"lam {lam:g}": partial(solved, lam=lam) for lam in (0.1, 1.0, 100.0)},
    "preserve_weight 0": partial(solved, preserve=False, preserve_weight=0.0),
    **{f"preserve_weight {weight:g}": partial(solved, preserve_weight=weight) for weight in (0.1, 4.0)},
    "tokens: last of the subject": partial(solved, tokens="subject_last"),
    "tokens: subject and after": partial(solved, tokens=("subject", "after_subject")),
    "tokens: end and padding": partial(solved, tokens=("eos", "padding")),
    **{
        f"null space, retain {retain:g}": partial(solved, preservation="nullspace", retain=retain)
        for retain in (0.01, 0.03)
    },
    "a fifth of the prompts": from_a_fifth,
    "k only": partial(solved, sites="unet.*.cross.k"),
    "v only": partial(solved, sites="unet.*.cross.v"),
    "down and mid layers": partial(solved, sites=("unet.down.*.cross", "unet.mid*.cross")),
    "up layers": partial(solved, sites="unet.up.*.cross"),
}


def editors(model: Model, fit: Fit, names: tuple[str, ...], *, tuning: bool = False) -> dict[str, Editor]:
    """Editors by name, all when none is named; raises ValueError for an unknown one."""
    makers = TUNED if tuning else EDITORS
    if unknown := set(names) - set(makers):
        raise ValueError(f"editors={sorted(unknown)}: unknown; there are {', '.join(makers)}")
    return {
        name: Editor(partial(makers[name], model, fit), "text encoder" if name in TEXT_ENCODER else "UNet")
        for name in names or makers
    }
