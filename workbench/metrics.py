"""What is measured on images: a scorer's similarity and zero-shot classes, distances between images, and a person's own metrics.

scorer = wb.Scorer("ViT-B-32", pretrained="laion2b_s34b_b79k")
bright = wb.Metric("brightness", lambda images: images.mean((1, 2, 3)), unit="share of white")
wb.causal_trace(model, prompts, scorer=[scorer, bright])
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType

import numpy as np
import torch
from skimage.metrics import structural_similarity

from workbench.arguments import fit, line
from workbench.inputs import shown
from workbench.models import Model
from workbench.pictures import as_array, black
from workbench.prompts import Labels, Prompt, PromptSet
from workbench.scorer import Scorer, check_labels, default_scorer

METRICS = ("probability", "similarity", "pixel_distance", "ssim")
TARGET_METRICS = ("target_probability", "target_similarity")
LACKING = {
    "probability": "value",
    "target_probability": "target_value",
    "target_similarity": "target",
}  # what prompts need for them
CONCEPT_METRICS = ("concept", "concept_probability", "concept_similarity", "opposite_similarity")


@dataclass(frozen=True, eq=False)
class Metric:
    """A person's own measure of images, wherever a `Scorer` stands.

    name: what results call it. function: takes images (image, y, x, colour), float32 in [0, 1], and returns one number for each,
    NaN where it has none; `wb.as_pil` makes PIL pictures of them. unit: of the number. version: name what the function reads
    from outside itself, such as the weights of a classifier; results of another version are not mixed.

    >>> bright = wb.Metric("brightness", lambda images: images.mean((1, 2, 3)), unit="share of white")
    >>> bright(np.ones((2, 64, 64, 3))).tolist()
    [1.0, 1.0]
    """

    name: str
    function: Callable[[np.ndarray], Sequence[float]]
    unit: str = ""
    version: str = ""

    def __post_init__(self):
        taken = (*METRICS, *TARGET_METRICS, *CONCEPT_METRICS)
        fit(self, unit=line, version=line)
        if not isinstance(self.name, str) or not self.name.strip() or self.name in taken:
            raise ValueError(f"Metric(name={shown(self.name)}): give a name of its own; taken are {', '.join(taken)}")
        if not callable(self.function):
            raise ValueError(
                f"Metric({self.name!r}, {shown(self.function)}): give a function of images (image, y, x, colour) that returns one "
                "number for each"
            )

    @property
    def record(self) -> dict[str, str]:
        """What tells this metric from others, for results to carry; of its function the name, the code and plain settings."""
        return {"metric": self.name, "unit": self.unit, "version": self.version} | _function_record(self.function)

    def __call__(self, images) -> np.ndarray:
        """One value for each image: (image,). Raises ValueError for what the function must not return."""
        array = as_array(images)
        given = self.function(array)
        values = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
        if values.shape != (len(array),) or not np.issubdtype(values.dtype, np.number) or np.isinf(values).any():
            raise ValueError(
                f"metric {self.name!r} returned {shown(values)} of shape {values.shape} for {len(array)} images; return one finite "
                "number for each, or NaN where it has none"
            )
        return values.astype(np.float64)


Scoring = "Scorer | Metric | Measures | Callable | Sequence[Scorer | Metric | Callable] | None"


@dataclass(frozen=True, eq=False)
class Measures:
    """What an experiment measures: CLIP's metrics by a scorer, if it has one, and a person's own. Make it with `Measures.of`."""

    scorer: Scorer | None
    metrics: tuple[Metric, ...] = ()

    @classmethod
    def of(cls, given, model: Model | None = None) -> "Measures":
        """What `scorer=` names: a `Scorer`, a `Metric`, a named function of images, several of these, or, left out, the embedded
        grader, for the embedded model alone.

        Raises ValueError for two scorers, two metrics of one name, a function without a name, and for anything else.
        """
        if isinstance(given, Measures):
            return given
        if given is None:
            return cls(default_scorer(model))
        several = given if isinstance(given, (list, tuple)) else [given]
        scorers = [one for one in several if isinstance(one, Scorer)]
        metrics = tuple(_metric(one) for one in several if not isinstance(one, Scorer))
        names = [metric.name for metric in metrics]
        if len(scorers) > 1 or len(set(names)) < len(names) or not several:
            raise ValueError(
                f"scorer={shown(given)}: give at most one Scorer, and metrics of different names; found {len(scorers)} scorers and "
                f"the metrics {names}"
            )
        return cls(next(iter(scorers), None), metrics)

    @property
    def record(self) -> dict:
        """What tells these measures from others; a scorer's own record where there is nothing else."""
        own = self.scorer.record if self.scorer else {}
        return {**own, "metrics": [metric.record for metric in self.metrics]} if self.metrics else dict(own)

    def names(self, prompts: Iterable[Prompt]) -> list[str]:
        """What is measured of images of these prompts, by name."""
        clip = (*METRICS[:2], *TARGET_METRICS) if self.scorer else ()
        found = [name for name in clip if name not in LACKING or any(getattr(each, LACKING[name]) for each in prompts)]
        return [*found, *METRICS[2:], *(metric.name for metric in self.metrics)]

    def require(self, metric: str, prompts: Iterable[Prompt], argument: str):
        """Raise KeyError, before anything is drawn, for a metric that will not be measured."""
        if metric not in (names := self.names(tuple(prompts))):
            needs = f" (it needs prompts with a {LACKING[metric]})" if self.scorer and metric in LACKING else ""
            raise KeyError(f"{argument}={metric!r} is not measured here{needs}; there are {', '.join(names)}")

    def check(self, prompts: PromptSet):
        """Raise ValueError, before anything is drawn, where `measured` could not measure these prompts."""
        if self.scorer and any(prompt.value or prompt.target_value for prompt in prompts):
            check_labels(prompts.labels, f"prompt set {prompts.name!r}")


def measured(
    scorer: "Scorer | Metric | Measures", images, reference, prompt: Prompt, labels: Labels, *, flagged=None
) -> dict[str, np.ndarray]:
    """The metrics of images (image, y, x, colour) of a prompt, each (image,).

    `probability` of the prompt's value among the labels, where it has one, and `similarity` to the prompt; the same of its target,
    where it has one, as `target_probability` and `target_similarity`; `pixel_distance` and `ssim` to the reference images (image, y,
    x, colour), or to one; then a person's own metrics. Without a scorer only the last three.

    flagged: bool (image,), images that a safety checker withheld; left out, those that are black through and through. They, and
    distances to such a reference, are NaN, with a warning.
    """
    given, pictures, reference = Measures.of(scorer), as_array(images), as_array(reference)
    hidden = black(pictures) if flagged is None else np.asarray(flagged, bool).reshape(-1)
    if len(hidden) != len(pictures) or reference.shape not in (pictures.shape, (1, *pictures.shape[1:])):
        raise ValueError(
            f"measured: images {pictures.shape}, reference {reference.shape} and {len(hidden)} flags do not fit; give as many of each, "
            "of one size, or one reference"
        )
    if hidden.any():
        warnings.warn(
            f"{hidden.sum()} of {len(hidden)} images were withheld by a safety checker (they are black); their metrics are NaN; "
            "load the model with safety_checker=False to draw them",
            stacklevel=2,
        )
    seen, kept = pictures[~hidden], np.broadcast_to(reference, pictures.shape)[~hidden]
    values: dict[str, np.ndarray] = {}
    if given.scorer and len(seen):
        values |= _clip_metrics(given.scorer, seen, prompt, labels)
    elif given.scorer:
        values |= dict.fromkeys(METRICS[:2], np.empty(0))
    distances = {"pixel_distance": pixel_distance(seen, kept), "ssim": ssim(seen, kept)}
    values |= {name: np.where(black(kept), np.nan, each) for name, each in distances.items()}
    values |= {metric.name: metric(seen) if len(seen) else np.empty(0) for metric in given.metrics}
    return {name: _spread(each, hidden) for name, each in values.items()}


def pixel_distance(a, b) -> np.ndarray:
    """Mean absolute difference of images (..., y, x, colour) in [0, 1]: 0 for equal ones, at most 1."""
    return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean((-3, -2, -1))


def ssim(a, b) -> np.ndarray:
    """Structural similarity of images (..., y, x, colour) in [0, 1]: 1 for equal ones (Wang et al. 2004; scikit-image)."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    pairs = zip(a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:]))
    return np.array([structural_similarity(x, y, channel_axis=-1, data_range=1.0) for x, y in pairs]).reshape(
        a.shape[:-3]
    )


def _clip_metrics(scorer: Scorer, images: np.ndarray, prompt: Prompt, labels: Labels) -> dict[str, np.ndarray]:
    embeddings, names = scorer.image_embeddings(images), list(labels)
    probabilities = None
    if prompt.value or prompt.target_value:
        probabilities = scorer.class_probabilities(embeddings=embeddings, labels=labels).numpy()
    values: dict[str, np.ndarray] = {}
    if prompt.value:
        values["probability"] = probabilities[:, names.index(prompt.value)]
    values["similarity"] = scorer.similarity(embeddings=embeddings, texts=prompt.prompt).numpy()
    if prompt.target_value:
        values["target_probability"] = probabilities[:, names.index(prompt.target_value)]
    if prompt.target:
        values["target_similarity"] = scorer.similarity(embeddings=embeddings, texts=prompt.target).numpy()
    return values


def _spread(values: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Values of the images that are not hidden, at their places among all; NaN at the others."""
    if not hidden.any():
        return values
    every = np.full(len(hidden), np.nan)
    every[~hidden] = values
    return every


def _metric(given) -> Metric:
    if isinstance(given, Metric):
        return given
    name = getattr(given, "__name__", None)
    if not callable(given) or isinstance(given, type) or name in (None, "<lambda>"):
        raise ValueError(
            f"scorer={shown(given)}: give a wb.Scorer, or a measure of your own with a name, as wb.Metric('brightness', function), "
            "whose function takes images (image, y, x, colour) and returns one number for each"
        )
    return Metric(name, given)


def _function_record(function: Callable) -> dict[str, str]:
    """A function's name, and a digest of its compiled code with the plain values among its defaults and enclosed variables."""
    if isinstance(function, partial):
        inner = _function_record(function.func)
        settings = _digest([_plain(function.args), _plain(tuple(sorted(function.keywords.items())))])
        return inner | {"code": _digest([inner.get("code"), settings])}
    inner = getattr(function, "__func__", function)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    if code is None:
        return {"function": name}
    cells = getattr(inner, "__closure__", None) or ()
    values = [cell.cell_contents for cell in cells] + list(getattr(inner, "__defaults__", None) or ())
    return {"function": name, "code": _digest([_code(code), *map(_plain, values)])}


def _code(code: CodeType) -> list:
    return [
        code.co_code.hex(),
        code.co_names,
        [_code(each) if isinstance(each, CodeType) else _plain(each) for each in code.co_consts],
    ]


def _plain(value: object) -> str | list:
    """A plain value for a digest that is the same in every process; only the type of any other."""
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, (frozenset, set)):
        return sorted(repr(_plain(each)) for each in value)
    return type(value).__qualname__


def _digest(parts: list) -> str:
    """SHA-256 of nested lists of texts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
