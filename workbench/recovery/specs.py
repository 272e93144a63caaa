"""What a test of recovery is asked, as frozen values; the command line reads them before anything heavy is imported."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from workbench.arguments import Check, line, numbers, one_of
from workbench.experiments.spec import Spec
from workbench.inputs import count, number, shown, strings, text
from workbench.schema import site_names, wholes

ATTACKS = (
    "closed_form",
    "nearest_states",
    "concept_vector",
    "token_search",
    "inversion",
    "completion",
    "relearning",
)
"""In the order of their cost."""
UNBOUNDED = float("inf")


@dataclass(frozen=True, kw_only=True)
class RecoverySpec(Spec):
    """What a test of recovery asks: which attacks, at which budgets.

    >>> wb.RecoverySpec(attacks=("closed_form", "completion"), control="lion").distances
    (0.1, 0.2, 0.4, inf)
    """

    attacks: tuple[str, ...] = ()
    """Which of closed_form, nearest_states, concept_vector, token_search, inversion, completion and relearning; all that fit the edit
    when left out."""
    control: str = ""
    """Words that the control attacks ask for in place of the subject: another concept. Left out, the first of the prompts' labels that
    is neither the concept nor one of the edit's own words."""
    redraws: int = 8
    """So many other seeds of the edited model, without an attack, for each image: how often the concept is in any of them tells what
    trying often is worth by itself."""
    lams: tuple[float, ...] = (1e-3, 1e-1, 1.0)
    """Of closed_form: its ridge, as a share of the weights' mean squared singular value."""
    distances: tuple[float, ...] = (0.1, 0.2, 0.4, UNBOUNDED)
    """Of closed_form and nearest_states: how far the attacked states may be from the prompt's, |C' - C| / |C|."""
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    """Of concept_vector: how many times the vector is added."""
    neutral: str = ""
    """Of concept_vector: words in place of the subject in prompts without the concept; the subject is left out when there are none."""
    template: str = "a photo of a {}"
    """Of inversion and relearning: the prompt of the pictures that they learn from."""
    pictures: int = 8
    """Of token_search, inversion and relearning: so many pictures of the concept, drawn by the unedited model from seeds of their own."""
    prefix: int = 3
    """Of token_search: so many tokens are put in front of the prompt."""
    searches: int = 40
    """Of token_search: so many gradient steps for each prompt."""
    inversions: int = 200
    """Of inversion: so many gradient steps."""
    inversion_lr: float = 5e-3
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75)
    """Of completion: shares of the steps, the first ones, that the unedited model does."""
    relearned: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    """Of relearning: numbers of gradient steps behind which pictures are drawn."""
    relearned_sites: tuple[str, ...] = ()
    """Of relearning: globs of the layers whose weights are trained; the edit's own when left out."""
    relearning_lr: float = 1e-3
    """Of relearning: Adam's rate. Numbers of steps speak of this rate: at a tenth of it they are about ten times as many."""

    def _checks(self) -> dict[str, Check]:
        positive = partial(number, above=0, most=1e3)
        return dict(
            attacks=attacks,
            control=line,
            redraws=count,
            lams=partial(numbers, above=0),
            distances=distances,
            strengths=numbers,
            neutral=line,
            template=template,
            pictures=count,
            prefix=count,
            searches=count,
            inversions=count,
            inversion_lr=positive,
            shares=partial(numbers, least=0, most=1),
            relearned=relearned,
            relearned_sites=globs,
            relearning_lr=positive,
        )


def attacks(value: Any, argument: str) -> tuple[str, ...]:
    """Names of attacks, each once; none for all that fit."""
    if isinstance(value, (list, tuple)) and not value:
        return ()
    names = tuple(one_of(*ATTACKS)(each, argument) for each in strings(value, argument))
    return tuple(dict.fromkeys(names))


def distances(value: Any, argument: str) -> tuple[float, ...]:
    """Numbers of at least 0, infinity among them."""
    given = value if isinstance(value, (list, tuple)) else [value]
    bounded = [each for each in given if not (isinstance(each, float) and each == UNBOUNDED)]
    if bounded or not given:
        numbers(bounded, argument, least=0)
    return tuple(map(float, given))


def template(value: Any, argument: str) -> str:
    """A text with one place for the concept."""
    found = text(value, argument)
    if found.count("{}") != 1:
        raise ValueError(f"{argument}={shown(value)}: give a text that holds {{}} once, where the concept goes")
    return found


def relearned(value: Any, argument: str) -> tuple[int, ...]:
    """Numbers of gradient steps, in order."""
    return tuple(sorted(wholes(value, argument, least=0)))


def globs(value: Any, argument: str) -> tuple[str, ...]:
    """Globs of sites, or none."""
    return () if isinstance(value, (list, tuple)) and not value else site_names(value, argument)
