"""The named editors: settings of one closed-form solver.

    edit = locoedit(model, {"a zebra": "a giraffe"}, sites=("unet.up.1.0.cross", "unet.up.1.1.cross"))
    edit = swap(model, "zebra", "giraffe", templates=("a {}", "a {} in the savanna"), tokens="all", preserve=prompts)

`concepts` maps words to the words that they shall act as, filled into `templates`; or it is prompts that have a subject and
a replacement (`wb.prompt_set`). `sites` are names, globs or sites: a cross-attention layer stands for its k and v, a text
encoder's attention for its output projection, an mlp for its second layer. `tokens` says which positions are keys:
"subject_last", "subject", "after_subject", "eos", "padding", "all", or several of these; the guide's positions follow from
aligning both prompts at the end of the words, at each place where they stand. `preserve` are words (filled into the templates) or
prompts whose keys, at `preserve_tokens`, shall give what they gave.

With joint attention (Stable Diffusion 3, FLUX) `context_embedder` is the one layer that is given the text alone; its tokens are those
of all encoders. The text's own key and value projections of a block ("transformer.3.joint" stands for them) are given what depends on
the step and on the picture: their keys are gathered over runs, `runs=` says which (`workbench.edit.looks`), and each block has an M of
its own.

`rank`, which every editor here takes, cuts what is done to the layers' input: all cross-attention layers, which are given the same
text states, get one matrix M before their weights (W' = W M), and M - I is cut to so many singular values. So the edit is that many
pairs of vectors of the text's width, whatever the number of layers and prompts, and its LoRA a file of kilobytes. Layers of the text
encoder, each with an input of its own, have an M each. See `workbench.edit.closed_form`.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange

from workbench import schema
from workbench.arguments import Check, at_least_zero, checked, instance_of, line, one_of, optional
from workbench.edit.closed_form import Preservation, Solution, solve
from workbench.edit.looks import GIVEN, ROUNDING, KeyRuns, Looks, is_look
from workbench.edit.low_rank import Edit, Update, update_of
from workbench.edit.moments import Moments
from workbench.edit.words import warn_of_untrained
from workbench.engine import encode, text_values
from workbench.inputs import count, number, plain, several, shown, strings, text
from workbench.prompts import Prompt
from workbench.sites import Site, Sites, weight_of
from workbench.text import POSITIONS_FIX, Joined, Tokens, replace_words, text_of, tokens_of

TEMPLATES = ("{}", "a photo of {}", "an image of {}", "a picture of {}")
Concepts = Mapping[str, str] | Sequence[Prompt]
Where = str | int | Sequence[str | int]

SOLVER: dict[str, Check] = dict(
    lam=at_least_zero,
    weight=partial(number, above=0),
    preserve_weight=at_least_zero,
    preservation=one_of("ridge", "covariance", "nullspace"),
    retain=at_least_zero,
    rank=count,
)


def where(value: Any, argument: str) -> Where:
    """Positions, parts of the prompt or words: one or several of these."""
    held = plain(value)
    several_of = isinstance(held, (list, tuple))
    given = list(held) if several_of else [held]
    if not given or not all(isinstance(each, (str, int)) and not isinstance(each, bool) for each in given):
        raise ValueError(f"{argument}={shown(value)}: {POSITIONS_FIX}")
    for each in given:
        text(each, argument) if isinstance(each, str) else schema.wholes(each, argument)
    return tuple(given) if several_of else given[0]


def as_templates(value: Any, argument: str) -> tuple[str, ...]:
    """Texts with a place for the concept."""
    found = strings(value, argument)
    if not all("{}" in template for template in found):
        raise ValueError(f"{argument}={shown(found)}: give texts that each hold {{}}, where the concept goes")
    return found


def to_preserve(value: Any, argument: str) -> tuple[str | Prompt, ...]:
    """Words or prompts: one, several or none."""
    given = (value,) if isinstance(value, (str, Prompt)) else several(value, argument, "give words or wb.Prompt(...)s")
    return tuple(each if isinstance(each, Prompt) else text(each, argument) for each in given)


def as_corpus(value: Any, argument: str) -> tuple[str, ...] | Moments:
    """Prompts, or their moments."""
    return value if isinstance(value, Moments) else strings(value, argument)


def a_source(value: Any, argument: str) -> str | Site:
    """What layers are given: the text states, or a site's input."""
    if not isinstance(value, Site) and not (isinstance(value, str) and value == "text states"):
        raise ValueError(
            f"{argument}={shown(value)}: give a site, such as model.sites['text_encoder.0.out'], or leave it out"
        )
    return value


NAMED: dict[str, Check] = {"lam": at_least_zero}
key_runs = optional(instance_of("workbench.edit.looks:KeyRuns", fix="wb.edit.KeyRuns(seeds=(0, 1)), or leave it out"))


@checked(
    **SOLVER,
    sites=optional(schema.site_names),
    lam_v=at_least_zero,
    templates=as_templates,
    tokens=where,
    preserve=to_preserve,
    preserve_tokens=where,
    corpus=as_corpus,
    runs=key_runs,
    editor=line,
)
def from_concepts(
    model,
    concepts: Concepts,
    *,
    sites,
    lam: float,
    lam_v: float | None = None,
    templates: Sequence[str] = TEMPLATES,
    tokens: Where = "subject_last",
    average: bool = False,
    weight: float = 1.0,
    preserve: Sequence[str | Prompt] = (),
    preserve_tokens: Where | None = None,
    preserve_weight: float = 1.0,
    preservation: Preservation = "ridge",
    corpus: Sequence[str] | Moments | None = None,
    retain: float = 0.01,
    rank: int | None = None,
    runs: KeyRuns | None = None,
    editor: str = "from_concepts",
) -> Edit:
    """The edit that makes some words' states at linear layers act as others', by `workbench.edit.closed_form.solve`.

    lam_v: another lam for value projections. average: one key and guide per concept, the mean over templates. corpus: prompts
    whose second moments (or the moments) preservation="covariance" and "nullspace" keep. rank: at most, cut before the layers'
    weights; all that was solved when left out. runs: of layers of joint attention, the runs over which keys, preserved keys and
    moments are gathered; two seeds and every step when left out. The rest: see the module and `solve`. Returns an `Edit` of rank
    at most the number of keys.

    Raises, with nothing changed, KeyError for unknown sites; ValueError for sites that are not given text, words that a
    prompt lacks, keys equal to their guides, or a singular system.

    >>> found = wb.edit.from_concepts(
    ...     model, {"a zebra": "a giraffe"}, sites="unet.mid.cross", lam=0.1, tokens=("subject_last", "eos")
    ... )
    >>> found.sites, found.rank
    (('unet.mid.cross.k', 'unet.mid.cross.v'), 8)
    >>> wb.edit.from_concepts(model, {"a zebra": "a giraffe"}, sites="unet.*.cross", lam=0.1, tokens="all", rank=1).rank
    1
    """
    pairs = as_pairs(concepts, templates)
    if corpus is not None and preservation == "ridge":
        raise ValueError(
            'corpus= has no effect with preservation="ridge"; give preservation="covariance" or "nullspace", or leave it out'
        )
    warn_of_untrained(model, (words for pair in pairs for words in (pair.subject, pair.replacement)), "concepts=", 3)
    kept = preserved_prompts(preserve, strings(templates, "templates"))
    preserve_tokens = tokens if preserve_tokens is None else preserve_tokens
    found, diagnostics, solutions = [], {}, {}
    groups = by_input(model, editable(model, sites))
    check_moments(model, groups, corpus)
    looks = Looks(model, groups, runs)
    for source, members in groups.items():
        old, new = gather(model, source, pairs, tokens, average, looks)
        if torch.equal(old, new):
            raise ValueError(
                f"concepts=: the words' states at {called(source)} are those of their guides; name other words, or tokens= beyond them"
            )
        preserved = gather(model, source, kept, preserve_tokens, looks=looks)[0] if kept else None
        moments = corpus if corpus is None or isinstance(corpus, Moments) else seconds(model, source, corpus, looks)
        for site in members:
            strength = lam_v if lam_v is not None and site.kind == model.family.values else lam
            if (source, strength) not in solutions:
                solution = solve(
                    old,
                    lam=strength,
                    weight=weight,
                    preserved=preserved,
                    preserve_weight=preserve_weight,
                    preservation=preservation,
                    moments=moments,
                    retain=retain,
                )
                solutions[source, strength] = solution, solution.change(new - old, rank) if rank else None
            (solution, change), w = solutions[source, strength], weight_of(model.pipeline, site).detach().cpu().double()
            factors = change.factors(w) if change else solution.factors((new - old) @ w.T)
            found.append(update := update_of(model, site.name, *factors))
            diagnostics[site.name] = diagnose(update, w, solution) | ({"kept": change.kept} if change else {})
    settings = {
        "lam": lam,
        "lam_v": lam_v,
        "tokens": tokens,
        "average": average,
        "weight": weight,
        "preservation": preservation,
        "preserve_weight": preserve_weight,
        "preserve_tokens": preserve_tokens,
        "retain": retain,
        "rank": rank,
        "prompts": [[p.prompt, p.subject, p.replacement] for p in pairs],
        "preserve": [p.prompt for p in kept],
    } | ({"runs": looks.record()} if looks.sources else {})
    return Edit(found, provenance(editor, model, diagnostics, **settings))


@checked(**NAMED)
def locoedit(model, concepts: Concepts, *, sites, lam: float = 0.01, lam_v: float | None = None, **settings) -> Edit:
    """LocoEdit: keys and values of a localized window (Basu et al. 2024, arXiv 2405.01008, section 5), with lam for K and lam_v for V.

    >>> found = wb.edit.locoedit(model, {"a zebra": "a giraffe"}, sites=windows.best(2))
    >>> len(found.sites), found.rank
    (4, 4)
    """
    return from_concepts(model, concepts, sites=sites, lam=lam, lam_v=lam_v, **{"editor": "locoedit"} | settings)


@checked(**NAMED)
def diff_quickfix(model, concepts: Concepts, *, sites="text_encoder*.0.out", lam: float = 0.01, **settings) -> Edit:
    """Diff-QuickFix: the text encoder's first output projection (Basu et al. 2023, arXiv 2310.13730, section 5).

    Keys are the projection's inputs, values its outputs for the guide without the bias, which stays as it is.

    >>> wb.edit.diff_quickfix(model, {"a zebra": "a giraffe"}).sites
    ('text_encoder.0.out',)
    """
    return from_concepts(model, concepts, sites=sites, lam=lam, **{"editor": "diff_quickfix"} | settings)


@checked(**NAMED)
def time_edit(model, concepts: Concepts, *, sites=None, lam: float = 0.1, tokens="all", **settings) -> Edit:
    """TIME: all tokens of the old prompt, aligned to the new one's (Orgad et al. 2023, arXiv 2303.08084, section 4).

    >>> found = wb.edit.time_edit(model, {"a zebra": "a giraffe"}, templates="a photo of {}")
    >>> len(found.sites), found.editor
    (32, 'time_edit')
    """
    return from_concepts(model, concepts, sites=sites, lam=lam, tokens=tokens, **{"editor": "time_edit"} | settings)


@checked(**NAMED)
def uce(
    model, concepts: Concepts, *, sites=None, lam: float = 0.5, preserve: Sequence[str | Prompt] = (), **settings
) -> Edit:
    """UCE: many concepts at once, others preserved (Gandikota et al. 2024, arXiv 2308.14761, equation 7).

    >>> found = wb.edit.uce(model, {"a zebra": "a giraffe"}, preserve=["a lion", "a cow"])
    >>> found.updates[0].rank  # at most one for each template; what is preserved adds none
    4
    """
    return from_concepts(model, concepts, sites=sites, lam=lam, preserve=preserve, **{"editor": "uce"} | settings)


@checked(**NAMED, corpus=as_corpus)
def rome(model, concepts: Concepts, *, sites, corpus: Sequence[str] | Moments, lam: float = 0.0, **settings) -> Edit:
    """ROME: W + (v - W k)(C^-1 k)^T / (k^T C^-1 k), where W' k = v exactly (Meng et al. 2022, arXiv 2202.05262, equation 2).

    k and v are means over the templates; several concepts are solved jointly; lam above 0 is MEMIT's (2210.07229).

    >>> corpus = wb.prompt_pairs("winter")[0]
    >>> moments = wb.edit.moments_of(model, corpus).floored(1e-4)
    >>> wb.edit.rome(model, {"a zebra": "a giraffe"}, sites="unet.mid.cross", corpus=moments).rank
    1
    """
    return from_concepts(
        model,
        concepts,
        sites=sites,
        lam=lam,
        corpus=corpus,
        **{"editor": "rome", "average": True, "preservation": "covariance"} | settings,
    )


@checked(**NAMED, first=text, second=text)
def swap(model, first: str, second: str, *, sites=None, lam: float = 0.01, **settings) -> Edit:
    """Each of two concepts acts as the other: both pairs in one system, not one edit after the other.

    >>> both = wb.edit.swap(model, "a zebra", "a giraffe", sites="unet.up.*.cross", tokens="all")
    >>> with model.applied(both):
    ...     pictures = model.generate(["a photo of a zebra", "a photo of a giraffe"])
    """
    return from_concepts(model, {first: second, second: first}, sites=sites, lam=lam, **{"editor": "swap"} | settings)


def as_pairs(concepts: Concepts, templates: str | Sequence[str]) -> list[Prompt]:
    """Prompts with their subject and the words that replace it; raises ValueError for words without a guide, or that are their own."""
    templates = as_templates(templates, "templates")
    if isinstance(concepts, Mapping):
        given = {schema.text(old, "concepts"): schema.text(new, f"concepts[{old!r}]") for old, new in concepts.items()}
        pairs = [Prompt(template.format(old), old, old, new) for old, new in given.items() for template in templates]
    else:
        pairs = [] if isinstance(concepts, (str, bytes)) or not isinstance(concepts, Iterable) else list(concepts)
    if not pairs or not all(
        isinstance(pair, Prompt) and pair.subject.strip() and pair.replacement.strip() for pair in pairs
    ):
        raise ValueError(
            f"concepts={shown(concepts)}: give a mapping of old words to new, as {{'a zebra': 'a giraffe'}}, or prompts that "
            "have a subject and a replacement"
        )
    plain = lambda words: words.casefold().split()
    if same := [pair.subject for pair in pairs if plain(pair.subject) == plain(pair.replacement)]:
        raise ValueError(f"concepts=: {same[0]!r} is to act as itself, which changes nothing; name another guide")
    return pairs


def preserved_prompts(preserve: Iterable[str | Prompt], templates: Sequence[str]) -> list[Prompt]:
    """Prompts as they are, and words filled into the templates."""
    return [
        one if isinstance(one, Prompt) else Prompt(template.format(one), one)
        for one in preserve
        for template in ([""] if isinstance(one, Prompt) else templates)
    ]


def editable(model, sites) -> Sites:
    """The linear layers that sites stand for, in execution order; raises ValueError for sites that have none with text as input.

    sites: all of the denoiser's that are given the text alone, when None.
    """
    family = model.family
    sites = family.edited if sites is None else sites
    chosen = []
    for site in model.sites(*schema.site_names(sites)):
        layer, kind = site.place, site.kind
        chosen += {
            "cross": [f"{layer}.cross.k", f"{layer}.cross.v"],
            "joint": [f"{layer}.{family.keys}", f"{layer}.{family.values}"],
            "context": [f"{layer}.context_embedder"],
            "attention": [f"{layer}.out"],
            "mlp": [f"{layer}.{last}" for last in ("fc2", "wo") if f"{layer}.{last}" in model.sites],
        }.get(kind, [site.name])
    found = model.sites(*chosen)
    for site in found:
        if family.joint and site.kind in (family.keys, family.values):
            if site.span is not None:
                raise ValueError(
                    f"sites=: {site.name} is given by one weight for picture and text (a block of one stream), so that an edit of it "
                    f"would be one of the picture too; name blocks of two streams, or {family.edited}"
                )
            weight_of(model.pipeline, site)
            continue
        weight_of(model.pipeline, site)
        inside = site.part == "text" and site.depth is not None  # a layer of a text encoder
        if not inside and site.kind != "context_embedder" and site not in model.sites(family.edited):
            raise ValueError(
                f"sites=: {site.name} is not given text states; name cross-attention layers (their k and v), or the text "
                f"encoder's out, fc1 and fc2 (its embedding: see embedding_swap)"
                + (
                    f"; in joint attention {family.edited} is given the text alone, and blocks' {family.keys} and {family.values} "
                    "the text's states at the step"
                    if family.joint
                    else ""
                )
            )
    return found


def by_input(model, sites: Iterable[Site]) -> dict[str | Site, list[Site]]:
    """Sites by what they are given: "text states" for all that are given the text alone, a block's text at the step, else each its own.

    Where layers norm the text's states each in its own way (DeepFloyd IF), keys and values of one layer go together.
    """
    family, sites = model.family, list(sites)
    groups: dict[str | Site, list[Site]] = {}
    for site in sites:
        alone: str | Site = site
        if family.joint and site.kind in (family.keys, family.values):
            alone = model.sites.beside(site, GIVEN)
        elif site.part == "denoiser":
            own = family.given is not None
            alone = next(each for each in sites if each.place == site.place) if own else "text states"
        groups.setdefault(alone, []).append(site)
    return groups


def check_moments(model, groups: Mapping[str | Site, list[Site]], corpus: Sequence[str] | Moments | None):
    """Raise ValueError for moments of one input where the layers of the denoiser are given several."""
    several = [source for source in groups if isinstance(source, Site) and source.part == "denoiser"]
    if isinstance(corpus, Moments) and len(several) > 1:
        raise ValueError(
            f"corpus= are moments of one input, the {len(several)} layers of a {type(model.pipeline).__name__} are given as many; give "
            "the corpus' texts, or sites= of one layer"
        )


def called(source: str | Site) -> str:
    """What a group of layers is given, in words."""
    return source.name if isinstance(source, Site) else source


def states(model, source: str | Site, prompts: Sequence[str]) -> torch.Tensor:
    """Inputs of a group of layers: (prompt, token, channel), float64 on the CPU; each prompt is encoded once."""
    order = list(dict.fromkeys(prompts))
    batches = [order[at : at + 64] for at in range(0, len(order), 64)]
    given = model.family.given
    if given is not None and not isinstance(source, Site):
        raise ValueError(
            f"source={source!r}: the layers of a {type(model.pipeline).__name__} are given the text's states each in its own way; "
            f"name one, as model.sites({model.family.edited!r})[0]"
        )

    def inputs(some: Sequence[str]) -> torch.Tensor:
        if isinstance(source, Site) and source.part == "text":
            return text_values(model, some, [source], inputs=True)[source]
        found = encode(model.pipeline, some)[0]
        with torch.no_grad():
            return found if given is None else given(model.pipeline, source, found)

    found = torch.cat([inputs(some).cpu().double() for some in batches])
    return found[[order.index(prompt) for prompt in prompts]]


def gather(
    model,
    source: str | Site,
    pairs: Sequence[Prompt],
    tokens: Where,
    average: bool = False,
    looks: Looks | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and their guides, each (key, in); a pair without replacement is its own guide.

    average: one key for each concept and position, counted from its last token: the mean over its prompts. looks: where sources that
    are given something else at each step are looked up; each look is a key of its own.
    """
    changes = [
        replace_words(pair.prompt, pair.subject, pair.replacement) if pair.replacement else None for pair in pairs
    ]
    guides = [change.text if change else pair.prompt for pair, change in zip(pairs, changes)]
    groups: list[object] = []
    olds: list[tuple[str, int]] = []
    news: list[tuple[str, int]] = []
    for p, (pair, change, guide) in enumerate(zip(pairs, changes, guides)):
        before, after = (_tokens(model, source, text) for text in (pair.prompt, guide))
        wanted = sorted(before.positions(tokens, pair.subject))
        for i, j in change.aligned(before, after, wanted) if change else zip(wanted, wanted):
            groups.append((pair.subject, pair.replacement, _distance(before, i, pair.subject)) if average else (p, i))
            olds.append((pair.prompt, i))
            news.append((guide, j))
    found = _values(model, source, [*olds, *news], looks)  # (place, look, channel)
    keys: dict[object, list[torch.Tensor]] = {}
    for group, old, new in zip(groups, found[: len(olds)], found[len(olds) :]):
        keys.setdefault(group, []).append(torch.stack([old, new]))
    both = torch.cat([torch.stack(own).mean(0) for own in keys.values()], 1)
    old, new = both[0], both[1]
    same = (new - old).norm(dim=1) <= ROUNDING * old.norm(
        dim=1
    )  # words before the subject: equal but for the batch's rounding
    return old, torch.where(same[:, None], old, new)


def _values(model, source: str | Site, places: Sequence[tuple[str, int]], looks: Looks | None) -> torch.Tensor:
    """Inputs of a group of layers at positions of prompts: (place, look, channel), one look where they do not depend on a run."""
    if isinstance(source, Site) and is_look(source):
        return (looks or Looks(model, [source], None)).at(source, places)
    prompts = list(dict.fromkeys(prompt for prompt, _ in places))
    held = dict(zip(prompts, states(model, source, prompts)))
    return torch.stack([held[prompt][position] for prompt, position in places])[:, None]


def _tokens(model, source: str | Site, prompt: str) -> Tokens:
    """A prompt as layers with this input are given it."""
    if isinstance(source, Site) and source.part == "text":
        return tokens_of(model.pipeline, prompt, source.tokenizer or "tokenizer")
    return text_of(model.pipeline, prompt)


def _distance(tokens: Tokens, i: int, subject: str) -> tuple[int, int]:
    """How far a position is from the last token of its place, else of the place in front of it, else of the first place.

    With the number of the encoder whose tokens it is among, where several encoders' follow each other.
    """
    if isinstance(tokens, Joined):
        stretch, (_, own) = next((n, each) for n, each in enumerate(tokens.split([i])) if each[1])
        part = tokens.stretches[stretch]
        return stretch, _distance(part, own[0], subject)[1] if part.ids else own[0]
    places = tokens.places(subject) if subject else [(0,)]
    begun = [place for place in places if place[0] <= i] or places[:1]
    return 0, i - begun[-1][-1]


@checked(prompts=strings, source=a_source, runs=key_runs)
def moments_of(
    model, prompts: Sequence[str], source: str | Site = "text states", *, runs: KeyRuns | None = None
) -> Moments:
    """Second moments of what layers are given for a corpus of prompts, at all positions but the first, which never varies.

    source: the text states that all layers are given, or a site whose layer's input it is. runs: of a layer of joint attention.

    >>> wb.edit.moments_of(model, ["a zebra", "a lion"]).total.shape
    torch.Size([96, 96])
    """
    if isinstance(source, Site):
        (source,) = by_input(model, [source])
    return seconds(model, source, prompts, Looks(model, [source], runs))


def seconds(model, source: str | Site, prompts: Sequence[str], looks: Looks | None = None, first: int = 1) -> Moments:
    """Second moments of a group of layers' inputs, at all positions from `first` on."""
    if isinstance(source, Site) and is_look(source):
        return (looks or Looks(model, [source], None)).moments(source, prompts, first)
    return Moments.of(
        rearrange(states(model, source, prompts)[:, first:], "prompt token channel -> (prompt token) channel")
    )


def diagnose(update: Update, weight: torch.Tensor, solution: Solution) -> dict:
    """What an edit's provenance says of one site; see `Edit`. None where there is nothing to compare with."""
    kept, drift = solution.preserved, None
    if len(kept) and (given := (kept @ weight.T).norm(dim=1)).all():
        drift = ((kept @ update.a.double().T @ update.b.double().T).norm(dim=1) / given).mean().item()
    return {
        "relative_norm": relative_norm(update, weight),
        "condition": solution.condition,
        "shrinkage": solution.shrinkage.mean().item(),
        "drift": drift,
    }


def relative_norm(update: Update, weight: torch.Tensor) -> float | None:
    """|b a| / |W|; None of a weight of zeros."""
    size = weight.norm().item()
    return update.norm() / size if size else None


def provenance(editor: str, model, diagnostics: dict, **settings) -> dict:
    """What made an edit, for it to carry."""
    return {"editor": editor, "pipeline": type(model.pipeline).__name__, **settings, "diagnostics": diagnostics}
