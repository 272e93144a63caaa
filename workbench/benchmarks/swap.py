"""The zebra / giraffe benchmark of edits: `python -m workbench.benchmarks.swap` (or `workbench benchmark swap`).

After IOAI 2024: swap two concepts by changing weights. Every editor is measured on the same prompts, seeds and starting
noise as the unedited model: swap accuracy (share of held-out prompts whose picture shows the other animal), collateral (share
of control prompts whose top class changed), leakage (paraphrases, plurals, both animals, homonyms), and distance between
images. Classes are the grader's zero-shot ones over all subjects. Edits are made, and their settings chosen (`--tune`), from
`train` and `preserve` prompts alone. Finished cells are kept in `runs/`: a stopped benchmark goes on with the same command.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from tqdm.auto import tqdm

from workbench import edit as edits
from workbench.benchmarks import swap_figures
from workbench.edit.editors import replaced
from workbench.edit.low_rank import Edit
from workbench.metrics import Scorer, pixel_distance
from workbench.models import Model, load
from workbench.prompts import Prompt, PromptSet, prompt_set
from workbench.results import Shards, mean, share

OTHER = {"zebra": "giraffe", "giraffe": "zebra"}
SETS = ("held_out", "control", "paraphrase", "plural", "two_animal", "homonym")
ALL = "unet.*.cross"
# Chosen on training prompts (benchmarks/windows.py): the best window of two, and the six layers whose leaving out costs most.
WINDOW = ("unet.up.2.0.cross", "unet.up.2.1.cross")
SIX = ("unet.down.1.0.cross", "unet.down.1.1.cross", "unet.up.2.0.cross", "unet.up.3.*.cross")
UNEDITED = "unedited"
CEILING = "told the other"  # the unedited model, given the prompt with the other animal's name
TEXT_ENCODER = ("diff_quickfix", "embedding_swap", "textual_inversion")  # outside the rules: not UNet or VAE


@dataclass(frozen=True)
class Fit:
    """What edits may be made from: prompts of both animals with their replacement, and prompts of all else."""

    train: tuple[Prompt, ...]
    preserve: tuple[Prompt, ...]

    def thinned(self, every: int) -> "Fit":
        return Fit(self.train[::every], self.preserve[::every])

    @property
    def kept(self) -> list[Prompt]:
        """Preserved prompts, and the empty one that guidance pushes away from; no subject, for all their tokens count."""
        return [Prompt("", ""), *(Prompt(prompt.prompt, "") for prompt in self.preserve)]

    @property
    def corpus(self) -> list[str]:
        return [prompt.prompt for prompt in (*self.train, *self.preserve)]


@dataclass
class SwapOptions:
    editors: tuple[str, ...] = ()
    """Which of them; all when left out."""
    tune: bool = False
    """Choose settings on training prompts instead: fitted on every second one, measured on the others."""
    every: int = 1
    """Make edits from every so many-th training prompt only."""
    images: int | None = None
    """At most so many of each set."""
    num_inference_steps: int = 8
    batch_size: int = 25
    runs: Path = Path("runs/swap")
    out: Path = Path("figures")


PAIRS = {"a zebra": "a giraffe", "a giraffe": "a zebra"}
OVERSHOOT = 1.2  # a ridge shrinks what it asks for
BEST = dict(sites=ALL, tokens="all", lam=10.0, preserve_tokens="all")


def neuron_swap(model: Model, count: int = 30) -> Edit:
    """Each animal's strongest channels set to the other's mean."""
    first, second = (edits.neurons(model, {a: b}, sites=WINDOW, count=count) for a, b in PAIRS.items())
    return first + second


def inverted(model: Model, fit: Fit) -> Edit:
    """Each animal's word learned from pictures that the model draws of the other."""
    parts = []
    for word, other in OTHER.items():
        templates = sorted({p.prompt.replace(p.subject, "{}") for p in fit.train if p.subject == other})[:16]
        pictures = model.generate(
            [template.format(other) for template in templates], seed=range(5000, 5000 + len(templates))
        )
        parts.append(edits.textual_inversion(model, word, pictures, templates=templates, updates=150))
    return parts[0] + parts[1]


EDITORS: dict[str, Callable[[Model, Fit], Edit]] = {
    "swap": lambda model, fit: (
        OVERSHOOT * edits.from_concepts(model, fit.train, preserve=fit.kept, editor="swap", **BEST)
    ),
    "swap, six layers": lambda model, fit: (
        OVERSHOOT * edits.from_concepts(model, fit.train, preserve=fit.kept, editor="swap", **BEST | dict(sites=SIX))
    ),
    "swap, null space": lambda model, fit: edits.from_concepts(
        model, fit.train, preserve=fit.kept, editor="swap", preservation="nullspace", retain=0.03, **BEST
    ),
    "swap, nothing preserved": lambda model, fit: edits.from_concepts(model, fit.train, editor="swap", **BEST),
    "swap, two layers": lambda model, fit: edits.from_concepts(
        model, fit.train, preserve=fit.kept, editor="swap", **BEST | dict(sites=WINDOW)
    ),
    "swap, last subject token": lambda model, fit: edits.from_concepts(
        model, fit.train, preserve=fit.kept, editor="swap", **BEST | dict(tokens="subject_last")
    ),
    "locoedit, two layers": lambda model, fit: edits.locoedit(model, PAIRS, sites=WINDOW),
    "locoedit, all layers": lambda model, fit: edits.locoedit(model, PAIRS, sites=ALL),
    "time": lambda model, fit: edits.time_edit(model, PAIRS),
    "uce": lambda model, fit: edits.uce(
        model, PAIRS, preserve=sorted({f"a {p.subject}" for p in fit.preserve if p.value == p.subject})
    ),
    "rome": lambda model, fit: edits.rome(model, PAIRS, sites=ALL, corpus=fit.corpus),
    "neurons, two layers": lambda model, fit: neuron_swap(model),
    "diff_quickfix": lambda model, fit: edits.diff_quickfix(model, PAIRS),
    "embedding_swap": lambda model, fit: edits.embedding_swap(model, *OTHER),
    "textual_inversion": inverted,
}


def _variant(**settings) -> Callable[[Model, Fit], Edit]:
    chosen = BEST | settings

    def make(model: Model, fit: Fit) -> Edit:
        return edits.from_concepts(
            model, fit.train, preserve=fit.kept if chosen.get("preserve_weight", 1) else (), **chosen
        )

    return make


TUNED: dict[str, Callable[[Model, Fit], Edit]] = {
    "chosen": lambda model, fit: OVERSHOOT * _variant()(model, fit),
    **{
        f"scaled {factor:g}": lambda model, fit, factor=factor: factor * _variant()(model, fit) for factor in (1.0, 1.4)
    },
    **{f"lam {lam:g}": _variant(lam=lam) for lam in (0.1, 1.0, 100.0)},
    **{f"preserve_weight {weight:g}": _variant(preserve_weight=weight) for weight in (0.0, 0.1, 4.0)},
    "tokens: last of the subject": _variant(tokens="subject_last"),
    "tokens: subject and after": _variant(tokens=("subject", "after_subject")),
    "tokens: end and padding": _variant(tokens=("eos", "padding")),
    **{f"null space, retain {retain:g}": _variant(preservation="nullspace", retain=retain) for retain in (0.01, 0.03)},
    "a fifth of the prompts": lambda model, fit: _variant()(model, fit.thinned(5)),
    "k only": _variant(sites="unet.*.cross.k"),
    "v only": _variant(sites="unet.*.cross.v"),
    "down and mid layers": _variant(sites=("unet.down.*.cross", "unet.mid*.cross")),
    "up layers": _variant(sites="unet.up.*.cross"),
}


class Cells:
    """One benchmark: every editor on every set, each cell kept as it is finished. targets: what a value's picture is to show."""

    def __init__(
        self, model: Model, scorer: Scorer, sets: dict[str, PromptSet], options, folder: Path, targets: dict[str, str]
    ):
        self.model, self.scorer, self.sets, self.options, self.targets = model, scorer, sets, options, targets
        asked = {
            "experiment": "swap",
            "targets": targets,
            "num_inference_steps": options.num_inference_steps,
            "batch_size": options.batch_size,
            "model": model.record,
            "scorer": scorer.record,
            "edits": [BEST, OVERSHOOT, WINDOW, SIX, options.every],
            "prompts": {name: [prompt.prompt for prompt in some] for name, some in sets.items()},
        }
        self.shards = Shards(asked, folder)
        self.bar = tqdm(desc="images", unit="image", disable=None)
        self.unedited: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def pictures(self, name: str, told: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Images of a set as the model now is, one prompt and one seed each: (image, y, x, colour), and the grader's probabilities
        (image, label). told: with the replacement in the prompt."""
        prompts = self.sets[name]
        texts = [replaced(prompt) if told else prompt.prompt for prompt in prompts]
        images = self.model.generate(
            texts,
            seed=range(len(prompts)),
            batch_size=self.options.batch_size,
            num_inference_steps=self.options.num_inference_steps,
        )
        self.bar.update(len(images))
        return np.stack([np.asarray(image) for image in images]) / 255, self.scorer.class_probabilities(
            images, prompts.labels
        ).numpy()

    def before(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in self.unedited:
            self.unedited[name] = self.pictures(name)
        return self.unedited[name]

    def measure(
        self, editor: str, make: Callable[[], Edit | None], rules: str = "UNet", sets: Sequence[str] | None = None
    ):
        """Rows of one editor on some or all sets: what each picture shows, edited and not, and how far they are apart."""
        todo = [name for name in sets or self.sets if f"{editor}-{name}" not in self.shards]
        if not todo:
            return
        references = {name: self.before(name) for name in todo}
        edit = make()
        for name in todo:
            before = after = references[name]
            if edit is not None:
                with self.model.applied(edit):
                    after = self.pictures(name)
            about = dict(
                editor=editor,
                set=name,
                rules=rules,
                rank=0 if edit is None else max(update.rank for update in edit.updates),
            )
            self.shards.write(f"{editor}-{name}", [about | row for row in self.rows(name, before, after)])

    def ceiling(self, name: str):
        """What the unedited model draws of a set when told the replacement: no edit can be expected to do better."""
        if f"{CEILING}-{name}" not in self.shards:
            rows = self.rows(name, self.before(name), self.pictures(name, told=True))
            self.shards.write(
                f"{CEILING}-{name}", [dict(editor=CEILING, set=name, rules="no edit", rank=0) | row for row in rows]
            )

    def rows(
        self, name: str, before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray]
    ) -> list[dict]:
        prompts, labels = self.sets[name], list(self.sets[name].labels)
        unedited, edited = ([labels[i] for i in probabilities.argmax(1)] for _, probabilities in (before, after))
        distances, found = pixel_distance(after[0], before[0]), []
        for i, prompt in enumerate(prompts):
            target = self.targets.get(prompt.value)
            probability = None if target is None else float(after[1][i, labels.index(target)])
            found.append(
                dict(
                    prompt=i,
                    value=prompt.value,
                    target=target,
                    edited=edited[i],
                    unedited=unedited[i],
                    probability=probability,
                    distance=float(distances[i]),
                )
            )
        return found


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each editor and measure: value, 95 % interval, number of images."""
    found = []
    for _, cell in rows.groupby(["editor", "set"], sort=False):
        swapped, changed = cell.edited == cell.target, cell.edited != cell.unedited
        measures = {"changed": share(changed), "image distance": mean(cell.distance)}
        if cell.target.notna().all():
            measures |= {"swapped": share(swapped), "probability of the target": mean(cell.probability)}
            for animal, part in cell.assign(swapped=swapped).groupby("value"):
                found.append(_row(cell, f"swapped, {animal}", share(part.swapped)) | {"n": len(part)})
        found += [_row(cell, measure, values) for measure, values in measures.items()]
    return pd.DataFrame(found)


def _row(cell: pd.DataFrame, measure: str, values: tuple[float, float, float]) -> dict:
    first = cell.iloc[0]
    return dict(
        editor=first.editor,
        rules=first.rules,
        rank=first["rank"],
        set=first.set,
        measure=measure,
        value=round(values[0], 4),
        low=round(values[1], 4),
        high=round(values[2], 4),
        n=len(cell),
    )


def score(table: pd.DataFrame, efficacy: str = "held_out", control: str = "control") -> pd.DataFrame:
    """The benchmark's one number, 100 (swap accuracy - collateral), with both, the best editors first."""
    pick = lambda name, measure: table[(table.set == name) & (table.measure == measure)].set_index("editor")["value"]
    found = pd.DataFrame({"swap_accuracy": pick(efficacy, "swapped"), "collateral": pick(control, "changed")})
    found["score"] = 100 * (found.swap_accuracy - found.collateral)
    return found.join(table.drop_duplicates("editor").set_index("editor")[["rules", "rank"]]).sort_values(
        "score", ascending=False
    )


def main(options: SwapOptions):
    model, scorer = load(), Scorer()
    makers = TUNED if options.tune else EDITORS
    if unknown := set(options.editors) - set(makers):
        raise ValueError(f"editors={sorted(unknown)}: unknown; there are {', '.join(makers)}")
    train, preserve = prompt_set("swap/train"), prompt_set("swap/preserve")
    if options.tune:
        fit = Fit(tuple(train)[::2], tuple(preserve)[::2])
        sets = {"train": train[1::2][::3], "preserve": preserve[1::2][::5]}
    else:
        fit, sets = Fit(tuple(train), tuple(preserve)), {name: prompt_set(f"swap/{name}") for name in SETS}
    sets = {
        name: some[:: max(1, len(some) // options.images)] if options.images else some for name, some in sets.items()
    }
    cells = Cells(model, scorer, sets, options, options.runs / ("tune" if options.tune else "benchmark"), OTHER)
    cells.measure(UNEDITED, lambda: None)
    cells.ceiling("train" if options.tune else "held_out")
    made = cache(lambda name: makers[name](model, fit.thinned(options.every)))
    for some in filter(None, (list(sets)[:2], list(sets)[2:])):  # efficacy and collateral of all, before any leakage
        for name in options.editors or makers:
            cells.measure(name, lambda name=name: made(name), "text encoder" if name in TEXT_ENCODER else "UNet", some)
    table = summary(cells.shards.table())
    ranked = score(table, *sets) if options.tune else score(table)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = "swap_tuning" if options.tune else "swap"
    table.to_csv(options.out / f"{stem}.csv", index=False)
    print(ranked.round(3).to_string())
    if not options.tune:
        swap_figures.frontier(table, options.out / "swap.png")
        best = ranked[(ranked.rules == "UNet") & (ranked.index != UNEDITED)].index[0]
        shown = {
            name: made(name)
            for name in dict.fromkeys((best, "uce", "locoedit, all layers"))
            if name in set(table.editor)
        }
        swap_figures.before_and_after(model, shown, sets, options.out / "swap_images.png", options.num_inference_steps)


if __name__ == "__main__":
    main(tyro.cli(SwapOptions))
