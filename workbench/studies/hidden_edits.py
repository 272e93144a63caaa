"""Edits that erase a concept, by name: what the study of hidden concepts attacks, and what erases every subject and style of its grid."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from workbench import edit as edits
from workbench.edit.attacked import Readings
from workbench.edit.closed_form import solve
from workbench.edit.editors import editable, gather
from workbench.edit.low_rank import Edit, update_of
from workbench.edit.projections import to_keep
from workbench.models import Model
from workbench.prompts import Prompt, PromptSet, prompt_set, with_article
from workbench.sites import weight_of
from workbench.studies.edits import Fit, silent
from workbench.studies.swap_editors import ALL, BEST, OVERSHOOT
from workbench.text import places_of

CONCEPT, GUIDE = "zebra", "cow"
# The same kind, said before anything was measured.
GUIDES = {
    "zebra": "cow",
    "giraffe": "camel",
    "lion": "cow",
    "elephant": "cow",
    "cow": "camel",
    "camel": "cow",
    "penguin": "flamingo",
    "flamingo": "penguin",
    "car": "house",
    "hydrant": "balloon",
    "balloon": "hydrant",
    "house": "car",
}
STYLES = {
    "watercolor": "a watercolor",
    "pencil sketch": "a pencil sketch",
    "pixel art": "pixel art",
    "stained glass": "stained glass",
}
PHOTO = "a photo"
TRAINED_PLACES = ("", " in the forest", " in the desert", " on the beach")  # of the edits that erase a style
FLOORS = (0.01, 0.1, math.inf)
RESIST = (0.1, 0.3, 1.0, 3.0, math.inf)
ROUNDS = (1, 3)
RETAIN = 0.03  # chosen for the swap on training prompts
MORE = 0.2  # of SPEED: at 0.03 seven of eight training prompts still show the zebra, at 0.1 four, at 0.2 and 0.4 one
UNBOUNDED, LEAST = math.inf, 1e-3  # of the attack whose states are hardened against, and its ridge


@dataclass(frozen=True)
class Eraser:
    """One edit. family: whose points the frontier joins; learned: whether attacks by gradients are made on it too."""

    make: Callable[[], Edit]
    family: str = ""
    learned: bool = True


@dataclass(frozen=True)
class Erasure:
    """What an editor is told: words, their guide, contexts, prompts to be kept."""

    model: Model
    concept: str
    guide: str
    templates: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def fit(self) -> Fit:
        train = [Prompt(text.format(self.concept), self.concept, "", self.guide) for text in self.templates]
        return Fit(tuple(train), tuple(Prompt(text) for text in self.kept))

    @property
    def corpus(self) -> list[str]:
        return [*self.kept, *(text.format(self.guide) for text in self.templates)]

    def recipe(self, *, scale: float = 1.0, **settings) -> Edit:
        fit = self.fit
        edit = edits.from_concepts(self.model, fit.train, preserve=fit.kept, **BEST | settings)
        return edit if scale == 1.0 else edit * scale

    def locoedit(self) -> Edit:
        return edits.locoedit(self.model, self.fit.train, sites=ALL)

    def uce(self) -> Edit:
        """All tokens; the other subjects by their names."""
        others = [with_article(label) for label in prompt_set("object").labels]
        others = [word for word in others if word not in (self.concept, self.guide)]
        return edits.uce(self.model, self.fit.train, tokens="all", preserve=others)

    def speed(self, retain: float) -> Edit:
        """All tokens."""
        fit = self.fit
        return edits.speed(self.model, fit.train, preserve=fit.kept, tokens="all", retain=retain)

    def oblique(self, rank: int = 4, **settings) -> Edit:
        given = dict(corpus=self.corpus, sites=ALL) | settings
        return edits.oblique(self.model, self.concept, self.guide, templates=self.templates, rank=rank, **given)

    def by_layer(self) -> Edit:
        """Oblique at rank 4, to other guides from layer to layer: no states are what all of them ask for."""
        animals = [f"a {name}" for name in ("cow", "camel", "lion", "elephant", "giraffe")]
        others = list(STYLES.values()) if self.concept in STYLES.values() else animals
        guides = [self.guide, *(words for words in others if words not in (self.concept, self.guide))]
        kept = to_keep(self.model, "text states", self.corpus)
        layers = [site.name for site in self.model.sites(ALL)]
        edit, *more = (
            replace(self, guide=guides[i % len(guides)]).oblique(sites=layer, corpus=kept)
            for i, layer in enumerate(layers)
        )
        return sum(more, edit)

    def free(self, **given: float) -> Edit:
        """Oblique, at a floor or resistance; without a corpus where that has no effect."""
        return self.oblique(**given, **(dict(corpus=None) if math.inf in given.values() else {}))

    def hardened(self, rounds: int) -> Edit:
        """The recipe in rounds (RECE; Gong et al. 2024, arXiv 2407.12383): states that bring the concept back are keys of the next."""
        model, fit = self.model, self.fit
        members = editable(model, ALL)
        weights = [weight_of(model.pipeline, site).detach().cpu().double() for site in members]
        read = Readings.of((weight, weight) for weight in weights).gram
        keys, guides = gather(model, "text states", fit.train, BEST["tokens"])
        old, new = keys, guides
        kept = gather(model, "text states", fit.kept, BEST["preserve_tokens"])[0]
        for number in range(1 + rounds):
            solution = solve(old, lam=BEST["lam"], preserved=kept)
            change = solution.change(new - old, old.shape[1])
            if number < rounds:
                step = Readings.behind(read, change).nearest(keys, UNBOUNDED, LEAST)
                old, new = torch.cat([old, keys + step]), torch.cat([new, guides])
        updates = [update_of(model, site.name, *change.factors(weight)) for site, weight in zip(members, weights)]
        return Edit(tuple(updates), {"editor": f"recipe, hardened {rounds} times"})

    def erase(self, **settings) -> Edit:
        return edits.erase(self.model, self.concept, self.guide, **settings)

    def in_text(self, sites: str) -> Edit:
        """The recipe at a layer of the text encoder, which cross-attention reads the outcome of."""
        fit = self.fit
        return edits.from_concepts(self.model, fit.train, preserve=fit.kept, **BEST | dict(sites=sites))

    def diff_quickfix(self) -> Edit:
        return edits.diff_quickfix(self.model, self.fit.train, tokens="all")


def of_subject(model: Model, subject: str, guide: str, every: int = 1) -> Erasure:
    """The contexts of the erase benchmark's training prompts, and its prompts to be kept without those that say or show the subject."""
    templates = [prompt.prompt.replace(with_article(CONCEPT), "{}") for prompt in prompt_set("swap/erase_train")]
    kept = [prompt.prompt for prompt in silent("preserve", (subject,)) if not places_of(subject, prompt.prompt)]
    return Erasure(model, with_article(subject), with_article(guide), tuple(templates[::every]), tuple(kept[::every]))


def of_style(model: Model, style: str, every: int = 1) -> Erasure:
    """Subjects at places in the style, else as a photo; kept are the erase benchmark's prompts without the style."""
    subjects = [with_article(label) for label in prompt_set("object").labels]
    templates = [f"{{}} of {word}{place}" for word in subjects for place in TRAINED_PLACES]
    kept = [prompt.prompt for prompt in prompt_set("swap/preserve") if not places_of(style, prompt.prompt)]
    return Erasure(model, STYLES[style], PHOTO, tuple(templates[::every]), tuple(kept[::every]))


def erasers(own: Erasure) -> dict[str, Eraser]:
    """Every edit that erases it, by name."""
    found = {
        "LocoEdit": Eraser(own.locoedit),
        "UCE": Eraser(own.uce),
        "recipe": Eraser(own.recipe, "rounds", learned=False),
        "recipe x 1.2": Eraser(partial(own.recipe, scale=OVERSHOOT)),
        "recipe, null space": Eraser(partial(own.recipe, preservation="nullspace", retain=RETAIN), learned=False),
        "SPEED": Eraser(partial(own.speed, RETAIN), learned=False),
        f"SPEED, {MORE:g}": Eraser(partial(own.speed, MORE), learned=False),
        "oblique, rank 1": Eraser(partial(own.oblique, 1), learned=False),
        "oblique, rank 4": Eraser(own.oblique, "floor"),
        "oblique, by layer": Eraser(own.by_layer, learned=False),
        "erase": Eraser(own.erase),
    }
    for floor in FLOORS:
        name = f"floor {floor:g}" if math.isfinite(floor) else "orthogonal"
        found[name] = Eraser(partial(own.free, floor=floor), "floor", floor == math.inf)
    for resist in RESIST:
        name = f"resist {resist:g}" if math.isfinite(resist) else "resist all"
        found[name] = Eraser(partial(own.free, resist=resist), "resist", resist in (1.0, math.inf))
    for rounds in ROUNDS:
        found[f"recipe, hardened {rounds} x"] = Eraser(partial(own.hardened, rounds), "rounds", rounds == ROUNDS[-1])
    return found | {
        "Diff-QuickFix": Eraser(own.diff_quickfix, "text"),
        "text encoder, last mlp": Eraser(partial(own.in_text, last_mlp(own.model)), "text", learned=False),
    }


def last_mlp(model: Model) -> str:
    return [site.name for site in model.sites("text_encoder.*.mlp")][-1]


def held_out(prompts: int) -> PromptSet:
    """At most so many of the erase benchmark's held-out prompts, spread over them, among all labels."""
    every = list(prompt_set("swap/erase_held_out"))
    chosen = every[:: max(1, len(every) // prompts)][:prompts]
    chosen = [replace(prompt, replacement="") for prompt in chosen]
    return PromptSet("erase_held_out", chosen, prompt_set("swap/held_out").labels)
