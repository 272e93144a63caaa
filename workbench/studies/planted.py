"""Which localizer is right, where the truth is known? `python -m workbench.studies.planted`.

Every localizer is asked about every accepted organism of `data/planted`: a low-rank edit in known layers gives a new word an
existing look, and the localizer is to name these layers, of all of their class (components of the text encoder, cross-attention
layers). Nulls, new words in the unedited model, say how often it names a layer where there is nothing to find. Then an edit that
is to take the word's look away is made at the true layers, at each localizer's answer, and at random layers.

Writes `planted.csv` (the leaderboard), `planted_organisms.csv` (each answer), `planted_edits.csv` and `planted.png`. Finished organisms
are kept in `runs/planted`: what was stopped goes on with the same command, and localizers that a finished organism was not asked by
yet are asked alone. `--redraw` draws from the tables in `--out`.
"""

import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
import xarray as xr
from matplotlib.figure import Figure
from scipy.stats import rankdata

import workbench as wb
from workbench.drawing import COLOURS, GREY, WIDTH, house, intervals, save
from workbench.edit.low_rank import Edit
from workbench.experiments.statistics import chance_of_best, mean, share
from workbench.files import write_bytes
from workbench.loading import DATA
from workbench.localize.localizers import Localizer
from workbench.menagerie.captions import caption
from workbench.menagerie.plant import NULL, edit_of, organisms, plain_scenes
from workbench.menagerie.planting import CROSS, Organism, captions_of
from workbench.processes import worked
from workbench.progress import Bar

SETS = {"subject": "object", "style": "style", "season": "season"}  # whose labels know an attribute's values
CLASSES = {"text": ("text_encoder.*.{attention,mlp}",), "cross": ("unet.*.cross",)}
TOKENS = {"text": ("subject_last", "all"), "cross": ("all",)}  # cross-attention layers are restored whole
WEIGHTS = {"attention": ("out",), "mlp": ("fc2",), "cross": ("cross.k", "cross.v")}  # of a layer, that an edit changes
EDITED, LAM = 24, 0.01  # captions whose states the edit is solved for, and its ridge
ORDINARY = {
    "subject": ("zebra", "giraffe", "lion"),
    "style": ("stained glass", "pixel art", "watercolor"),
    "season": ("summer", "winter"),
}
MEANINGLESS = {1: "ver", 2: "bip"}  # neutral words, by their tokens
PERMUTATIONS = 2000
LEVEL = 0.05  # of the p-value at which a localizer is taken to say that it found something
ANSWERS = ("true layers", "random layers")
BUILT_ON = {"restored and knocked out": ("causal tracing", "knock-out"), "beyond ordinary words": ("causal tracing",)}
DRAW = "board"  # of captions that no organism was trained or graded on


@dataclass
class PlantedOptions:
    prompts: int = 6
    """Held-out captions of each organism."""
    seeds: int = 1
    num_inference_steps: int = 8
    controls: int = 12
    """Other captions, whose pictures an edit is to leave as they are."""
    only: tuple[str, ...] = ()
    """Names of organisms and nulls; all when left out."""
    minutes: float | None = None
    """Begin no organism later than this."""
    processes: int = 1
    device: str = "cpu"
    batch_size: int = 32
    organisms: Path = DATA / "planted"
    runs: Path = Path("runs/planted")
    out: Path = Path("runs/figures")
    redraw: bool = False
    """Measure nothing, draw from the tables in `out`."""


@dataclass(frozen=True)
class Question:
    """One organism or null, asked of one class of layers. layers: the true ones; none of a null."""

    name: str
    place: str
    attribute: str
    look: str
    word: str
    neutral: str
    layers: tuple[str, ...]
    kind: str
    strict: bool

    @property
    def part(self) -> str:
        return f"{self.name}-{self.place}"


def main(options: PlantedOptions):
    if not options.redraw:
        measure(options)
        answers, edits = (pd.concat(parts(options, kind), ignore_index=True) for kind in ("answers", "edits"))
        options.out.mkdir(parents=True, exist_ok=True)
        answers.to_csv(options.out / "planted_organisms.csv", index=False)
        edits.to_csv(options.out / "planted_edits.csv", index=False)
        leaderboard(answers).round(4).to_csv(options.out / "planted.csv", index=False)
    board, edits = (pd.read_csv(options.out / f"{name}.csv") for name in ("planted", "planted_edits"))
    print(board.round(2).to_string(index=False))
    save(figure(board, edits), options.out / "planted.png")


def questions(options: PlantedOptions) -> list[Question]:
    """Accepted organisms, each of its own class of layers; nulls of either, their looks in turn."""
    table, asked = organisms(options.organisms), []
    for row in table[table.accepted].itertuples():
        place = "cross" if row.kind == CROSS else "text"
        asked.append(
            Question(row.name, place, row.attribute, row.look, row.word, row.neutral, tuple(row.layers.split()), row.kind, bool(row.strict))
        )  # fmt: skip
    looks = list(dict.fromkeys((each.attribute, each.look) for each in asked))
    for number, row in enumerate(table[table.kind == NULL].itertuples()):
        place = list(CLASSES)[number % len(CLASSES)]
        asked.append(Question(row.name, place, *looks[number % len(looks)], row.word, row.neutral, (), NULL, False))
    return [each for each in asked if not options.only or each.name in options.only]


def measure(options: PlantedOptions):
    """Ask what has not been asked yet, several at a time."""
    options.runs.mkdir(parents=True, exist_ok=True)
    due = [each for each in questions(options) if unasked(options, each)]
    with Bar(len(due), "planted", unit="organism") as bar:
        for _ in worked(Asker, (options,), due, processes=options.processes, minutes=options.minutes):
            bar.update(1)


def unasked(options: PlantedOptions, question: Question) -> list[str]:
    """Names of the localizers by which a question has not been asked yet."""
    answered = set(kept(options, question, "answers").get("localizer", ()))
    return [name for name in table_of_localizers(None, options.batch_size) if name not in answered]


def kept(options: PlantedOptions, question: Question, kind: str) -> pd.DataFrame:
    """The rows of a part so far, as texts: they are written again as they stand."""
    path = part_file(options, question, kind)
    return pd.DataFrame() if path is None else pd.read_csv(path, dtype=str, keep_default_na=False)


def part_file(options: PlantedOptions, question: Question, kind: str) -> Path | None:
    """A part's file, where it has rows: nulls are not edited, and their file of edits has no columns."""
    path = options.runs / f"{question.part}-{kind}.csv"
    return path if path.exists() and path.stat().st_size > 1 else None


class Asker:
    """Asks every localizer about one organism after another; the model stays loaded."""

    def __init__(self, options: PlantedOptions):
        self.options = options
        self.model, self.scorer = wb.load(device=options.device), wb.Scorer(device=options.device)
        self.images = 0
        self.unedited: tuple[str, float, np.ndarray] = "", 0.0, np.empty(0)  # of the organism that is being edited
        self.model.pipeline.vae.decoder.register_forward_hook(self._count)
        rng = random.Random(DRAW)
        self.controls = [caption(scene, rng, paraphrase=0) for scene in plain_scenes(options.controls, rng)]
        self.localizers = table_of_localizers(self.scorer, options.batch_size)

    def _count(self, decoder, given, pictures):
        self.images += len(pictures)

    def __call__(self, question: Question):
        due, edits = unasked(self.options, question), pd.DataFrame()
        edit = edit_of(question.name, self.model, self.options.organisms) if question.layers else None
        if edit is None:
            answers = pd.DataFrame(self.answers(question, due))
        else:
            with self.model.applied(edit):
                answers = pd.DataFrame(self.answers(question, due))
                edits = pd.DataFrame(self.edits(question, answers))
        for kind, table in {"edits": edits, "answers": answers}.items():  # answers last: they say that it is finished
            rows = pd.concat([kept(self.options, question, kind), table], ignore_index=True)
            rows = self.ordered(rows) if kind == "answers" else rows
            write_bytes(self.options.runs / f"{question.part}-{kind}.csv", rows.to_csv(index=False).encode())

    def ordered(self, answers: pd.DataFrame) -> pd.DataFrame:
        """Rows in the order of the tables, whenever each was asked."""
        names, tokens = list(self.localizers), [each for some in TOKENS.values() for each in some]
        place = [(tokens.index(row.tokens), names.index(row.localizer)) for row in answers.itertuples()]
        return answers.iloc[sorted(range(len(answers)), key=place.__getitem__)]

    def answers(self, question: Question, due: Sequence[str]) -> Iterator[dict[str, Any]]:
        """A row for each of these localizers and tokens: where it stands the true layers, and how sure it is."""
        prompts = prompts_of(question, self.options.prompts)
        for tokens in TOKENS[question.place]:
            spec = wb.TraceSpec(
                sites=CLASSES[question.place],
                tokens=(tokens,),
                corruption="replace",
                draws=1,
                seeds=tuple(range(self.options.seeds)),
                num_inference_steps=self.options.num_inference_steps,
                joint=False,
            )
            found: dict[str, xr.DataArray] = {}
            needed = {each for name in due for each in (name, *BUILT_ON.get(name, ()))}
            for name, localizer in self.localizers.items():
                if name not in needed:
                    continue
                began, images = time.monotonic(), self.images
                row = dict(organism=question.name, place=question.place, kind=question.kind, strict=question.strict)
                row |= dict(attribute=question.attribute, look=question.look, localizer=name, tokens=tokens)
                try:
                    found[name] = localizer(self.model, question, prompts, spec, found)
                except wb.Abstains:
                    if name in due:
                        yield row | dict(abstains=True)
                    continue
                if name not in due:
                    continue
                cost = dict(images=self.images - images, seconds=time.monotonic() - began)
                yield row | dict(abstains=False) | judged(found[name], question.layers) | cost

    def edits(self, question: Question, answers: pd.DataFrame) -> Iterator[dict[str, Any]]:
        """What is left of the look, and what else changes, when the word is made to mean nothing at these layers.

        Answers that were edited before are left out, and what an edit at the same layers did is not measured again.
        """
        every = [site.name for site in self.model.sites(*CLASSES[question.place])]
        rng = random.Random(question.name)
        at = {
            ("true layers", ""): question.layers,
            ("random layers", ""): tuple(rng.sample(every, len(question.layers))),
        }
        spoken = answers[~answers.abstains]
        at |= {(row.localizer, row.tokens): tuple(row.top.split()) for row in spoken.itertuples()}
        before = list(kept(self.options, question, "edits").itertuples())
        for row in before:
            at.pop((row.answer, row.tokens), None)
        edited = {row.layers: (float(row.shown), float(row.left), float(row.controls_changed)) for row in before}
        for (answer, tokens), layers in at.items():
            held = " ".join(layers)
            if held not in edited:
                edited[held] = self.edited(question, layers)
            shown, left, changed = edited[held]
            yield dict(
                organism=question.name, place=question.place, kind=question.kind, strict=question.strict, answer=answer,
                tokens=tokens, layers=held, shown=shown, left=left, controls_changed=changed,
            )  # fmt: skip

    def edited(self, question: Question, layers: Sequence[str]) -> tuple[float, float, float]:
        """Shares of pictures with the look before and after an edit at these layers, and of controls that it changes."""
        words = [prompt.prompt for prompt in prompts_of(question, self.options.prompts)]
        if self.unedited[0] != question.name:
            self.unedited = question.name, self._share(words, question), self._classes(self.controls, "subject")
        _, shown, before = self.unedited
        with self.model.applied(self.emptied(question, layers)):
            left, after = self._share(words, question), self._classes(self.controls, "subject")
        return shown, left, float((after != before).mean())

    def emptied(self, question: Question, layers: Sequence[str]) -> Edit:
        """The edit that is to take the word's look away: at these layers it is to give what the neutral word gives."""
        at = [self.model.sites[layer] for layer in layers]
        sites = [f"{site.place}.{weight}" for site in at for weight in WEIGHTS[site.kind]]
        prompts = prompts_of(question, EDITED, draw="board edits")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*never learned")  # as they should be
            return wb.edit.from_concepts(
                self.model, list(prompts), sites=sites, lam=LAM, tokens="all", editor="emptied"
            )

    def _share(self, prompts: Sequence[str], question: Question) -> float:
        return float((self._classes(prompts, question.attribute) == question.look).mean())

    def _classes(self, prompts: Sequence[str], attribute: str) -> np.ndarray:
        labels = wb.prompt_set(SETS[attribute]).labels
        steps = self.options.num_inference_steps
        images = self.model.generate(list(prompts), seeds=range(len(prompts)), num_inference_steps=steps)
        return np.array(self.scorer.likeliest(images, labels))


def prompts_of(question: Question, count: int, *, draw: str = DRAW, holdout: bool = True) -> wb.PromptSet:
    """Captions with the word, of held-out combinations or not; the neutral word is what corrupts them, and what LocoGen gives a layer."""
    word, neutral = question.word, question.neutral
    named = Organism("", question.kind, (), question.attribute, question.look, word, neutral, 1)
    pairs = captions_of(named, count, holdout=holdout, draw=draw)
    prompts = [wb.Prompt(pair.word, word, question.look, neutral, target=pair.neutral) for pair in pairs]
    return wb.PromptSet(question.name, tuple(prompts), wb.prompt_set(SETS[question.attribute]).labels)


def exchanged(prompts: wb.PromptSet) -> wb.PromptSet:
    """The same with both words exchanged: what a trace then restores is the neutral word's."""
    changed = [
        replace(prompt, prompt=prompt.target, subject=prompt.replacement, replacement=prompt.subject, target="")
        for prompt in prompts
    ]
    return wb.PromptSet(prompts.name, tuple(changed), prompts.labels)


Asked = Callable[[wb.Model, Question, wb.PromptSet, wb.TraceSpec, Mapping[str, xr.DataArray]], xr.DataArray]


def table_of_localizers(scorer: wb.Scorer | None, batch_size: int) -> dict[str, Asked]:
    """The workbench's own, and three ideas of what tells where knowledge is stored from where it flows through.

    "knock-out": the clean run, one layer given what the neutral word gives it: a layer through which any word flows has others
    beside it, in the stream, while what is stored in one layer is lost with it. "restored and knocked out": the smaller of the
    two effects. "beyond ordinary words": what restoring does, less what it does for ordinary words of the same attribute.
    """
    plain = wb.localizers(scorer=scorer, batch_size=batch_size)
    tracing = plain["causal tracing"]
    table: dict[str, Asked] = {name: partial(_alone, localizer) for name, localizer in plain.items()}
    return table | {
        "knock-out": partial(_knocked_out, tracing),
        "restored and knocked out": _both,
        "beyond ordinary words": partial(_beyond, tracing),
    }


def _alone(localizer: Localizer, model, question, prompts, spec, found) -> xr.DataArray:
    return localizer(model, prompts, spec)


def _knocked_out(tracing: Localizer, model, question, prompts, spec, found) -> xr.DataArray:
    return -tracing(model, exchanged(prompts), spec)


def _both(model, question, prompts, spec, found) -> xr.DataArray:
    return np.minimum(found["causal tracing"], found["knock-out"])


def _beyond(tracing: Localizer, model, question: Question, prompts, spec, found) -> xr.DataArray:
    looks = [look for look in ORDINARY[question.attribute] if look != question.look][:2]
    tokens = model.pipeline.tokenizer.tokenize
    ordinary = [replace(question, word=look, look=look, neutral=MEANINGLESS[len(tokens(look))]) for look in looks]
    profiles = [tracing(model, prompts_of(each, max(1, len(prompts) // 2), holdout=False), spec) for each in ordinary]
    return found["causal tracing"] - sum(profile.mean(["prompt", "seed"]) for profile in profiles) / len(profiles)


def judged(scores: xr.DataArray, layers: Sequence[str]) -> dict[str, Any]:
    """How a localizer's scores (prompt, seed, layer) place the true layers; of a null, only how sure they are."""
    average = scores.mean(["prompt", "seed"])
    order = list(average.layer.values[np.argsort(-average.values, kind="stable")])
    by_prompt = scores.mean("seed").transpose("prompt", "layer").values
    row = dict(p=chance_of_best(by_prompt, permutations=PERMUTATIONS), top=" ".join(order[: max(1, len(layers))]))
    if not layers:
        return row
    true = np.isin(average.layer.values, layers)
    ranks = rankdata(average.values)
    above = ranks[true].sum() - true.sum() * (true.sum() + 1) / 2
    return row | dict(
        hit=float(np.isin(order[: len(layers)], layers).mean()),
        reciprocal_rank=1 / (1 + min(order.index(layer) for layer in layers)),
        auroc=float(above / (true.sum() * (~true).sum())),
    )


def parts(options: PlantedOptions, kind: str) -> Iterator[pd.DataFrame]:
    for question in questions(options):
        if (path := part_file(options, question, kind)) is not None:
            yield pd.read_csv(path)


GROUPS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "all": lambda rows: rows.abstains.notna(),
    "strict": lambda rows: rows.strict,
    "not strict": lambda rows: ~rows.strict,
    "text mlp": lambda rows: rows.kind == "text mlp",
    "text attention": lambda rows: rows.kind == "text attention",
}


def leaderboard(answers: pd.DataFrame) -> pd.DataFrame:
    """A row for each localizer, class of layers, tokens and group of organisms, with intervals over organisms."""
    rows = []
    for (place, tokens, localizer), held in answers.groupby(["place", "tokens", "localizer"], sort=False):
        nulls = held[(held.kind == NULL) & ~held.abstains]
        for group, chosen in GROUPS.items():
            of = held[(held.kind != NULL) & chosen(held)]
            if of.empty:
                continue
            spoke = of[~of.abstains]
            row = dict(place=place, tokens=tokens, localizer=localizer, organisms_of=group)
            row |= dict(organisms=len(of), abstained=int(of.abstains.sum()))
            for name in ("hit", "reciprocal_rank", "auroc") if len(spoke) else ():
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), _mean(spoke[name])))
            if len(spoke):
                row |= dict(zip(("sure", "sure_low", "sure_high"), share(spoke.p <= LEVEL)))
                row |= dict(images=spoke.images.mean(), seconds=spoke.seconds.mean())
            if len(nulls):
                row |= dict(nulls=len(nulls)) | dict(
                    zip(("false_alarms", "false_alarms_low", "false_alarms_high"), share(nulls.p <= LEVEL))
                )
            rows.append(row)
    return pd.DataFrame(rows)


def _mean(values: pd.Series) -> tuple[float, float, float]:
    """With its interval over organisms; of one organism there is none."""
    return tuple(mean(values)) if len(values) > 1 else (float(values.iloc[0]), np.nan, np.nan)


SERIES = (
    ("text", "subject_last", "text encoder, the word's token"),
    ("text", "all", "text encoder, all tokens"),
    ("cross", "all", "cross-attention"),
)


@house
def figure(board: pd.DataFrame, edits: pd.DataFrame) -> Figure:
    """Hit rates and false alarms of all localizers, and what is left of the look after edits at their answers."""
    names = list(dict.fromkeys(board.localizer))
    every = board[board.organisms_of == "all"]
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 1.4 + 0.34 * len(names)), layout="constrained", sharey=True)
    for number, (place, tokens, label) in enumerate(SERIES):
        rows = every[(every.place == place) & (every.tokens == tokens)].set_index("localizer").reindex(names)
        at = np.arange(len(names)) + 0.26 * (number - 1)
        for ax, value in zip(axes, ("hit", "false_alarms")):
            ends = rows[f"{value}_low"], rows[f"{value}_high"]
            intervals(ax, at, rows[value], *ends, lying=True, color=COLOURS[number], label=label)
        left = edits[(edits.place == place) & (edits.tokens == tokens)].groupby("answer").left
        ends = [_mean(left.get_group(name)) if name in left.groups else (np.nan,) * 3 for name in names]
        value, low, high = (pd.Series(each) for each in zip(*ends))
        intervals(axes[2], at, value, low, high, lying=True, color=COLOURS[number], label=label)
    for answer, style in zip(ANSWERS, ("-", "--")):
        axes[2].axvline(
            edits[edits.answer == answer].left.mean(), color=GREY, ls=style, lw=1, label=f"edited at {answer}"
        )
    axes[1].axvline(LEVEL, color=GREY, ls="--", lw=1)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    titles = ("true layers among the first", "nulls of which it is sure", "pictures that keep the look")
    for ax, title in zip(axes, titles):
        ax.set(xlim=(-0.03, 1.03), xlabel="share, 95% interval")
        ax.set_title(title, loc="left")
    fig.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


if __name__ == "__main__":
    main(tyro.cli(PlantedOptions))
