"""Edits of a rank, projections and reflections: one matrix before all layers' weights, cut, projected or mirrored."""

import math
import warnings

import conftest
import numpy as np
import pytest
import torch
from edit_helpers import BOTH, PAIR, WINDOW, ZEBRA, change, images, weights

import workbench as wb
from workbench import World
from workbench.edit.attacked import Readings
from workbench.edit.closed_form import projection
from workbench.edit.editors import gather
from workbench.edit.projections import miss
from workbench.prompts import Prompt
from workbench.sites import weight_of

TEXT = ("text_encoder*.0.attention", "text_encoder*.1.mlp")
CORPUS = [
    "a red car in winter",
    "two cows",
    "an elephant in the city",
    "a camel",
    "a house on the beach",
    "a lion at night",
]
QUICK = dict(corpus=CORPUS, tokens="subject_last", templates=wb.edit.editors.TEMPLATES)
WORDS = ("a zebra", "a giraffe")
MADE = {
    "uce": lambda model, **settings: wb.edit.uce(
        model, PAIR, sites=WINDOW, preserve=["a lion"], tokens="all", **settings
    ),
    "locoedit": lambda model, **settings: wb.edit.locoedit(model, PAIR, sites=WINDOW, lam_v=1.0, **settings),
    "time_edit": lambda model, **settings: wb.edit.time_edit(
        model, BOTH, sites=WINDOW, templates=["a photo of {}"], **settings
    ),
    "swap": lambda model, **settings: wb.edit.swap(model, *WORDS, sites=WINDOW, **settings),
    "diff_quickfix": lambda model, **settings: wb.edit.diff_quickfix(model, BOTH, sites=TEXT, **settings),
    "null space": lambda model, **settings: wb.edit.from_concepts(
        model, BOTH, sites=WINDOW, lam=0.1, preserve=["a lion"], preservation="nullspace", **settings
    ),
    "rome": lambda model, **settings: wb.edit.rome(
        model, BOTH, sites=WINDOW, corpus=wb.edit.moments_of(model, CORPUS).floored(1e-2), **settings
    ),
}


@pytest.fixture(scope="module")
def sd1():
    torch.manual_seed(0)
    return wb.load(conftest.sd1())


@pytest.fixture(scope="module", params=[conftest.sd1, conftest.sdxl], ids=lambda make: make.__name__)
def model(request):
    """A random pipeline of each family."""
    torch.manual_seed(0)
    return wb.load(request.param())


@pytest.fixture(autouse=True)
def pairs_that_do_not_suit():
    """Random models know no opposites: what is said of that has a test of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="reflect: ", category=UserWarning)
        yield


def reflected(model, **settings):
    return wb.edit.reflect(model, *WORDS, **QUICK | settings)


def erased(model, **settings):
    return wb.edit.oblique(model, *WORDS, **QUICK | settings)


# Ranks


@pytest.mark.parametrize("name", MADE)
def test_an_edit_has_at_most_its_rank_and_the_full_rank_is_no_cut(model, name):
    for edit, rank in ((MADE[name](model, rank=1), 1), (MADE[name](model, rank=2), 2)):
        assert (
            edit.rank == (1 if name == "rome" else rank) and edit.provenance["rank"] == rank
        )  # rome's two differ by sign
        for update in edit.updates:
            assert torch.linalg.matrix_rank(change(edit, update.site), rtol=1e-5) <= rank
    whole, every = MADE[name](model), MADE[name](model, rank=1000)
    for update in whole.updates:
        product = change(whole, update.site)
        assert torch.allclose(change(every, update.site), product, rtol=1e-4, atol=1e-5 * product.abs().max())
        assert every.provenance["diagnostics"][update.site]["kept"] == pytest.approx(1)


def test_one_matrix_is_cut_before_all_weights_and_not_each_layers_product(model):
    """W u s for every layer, with one v; a layer's own best approximation of that rank is another one, and nearer to its product."""
    whole, cut = (wb.edit.swap(model, *WORDS, tokens="all", rank=rank) for rank in (None, 1))
    assert len({update.a.numpy().tobytes() for update in cut.updates}) == 1
    apart = []
    for update in cut.updates:
        product = change(whole, update.site)
        u, strengths, v = torch.linalg.svd(product)
        own = strengths[0] * torch.outer(u[:, 0], v[0])
        assert (product - own).norm() <= (product - change(cut, update.site)).norm() * (1 + 1e-5)
        apart.append(((own - change(cut, update.site)).norm() / own.norm()).item())
    assert max(apart) > 1e-2
    text = wb.edit.diff_quickfix(model, PAIR, sites="text_encoder*.[01].attention", rank=1)
    assert len({update.a.numpy().tobytes() for update in text.updates}) == len(text.updates)


def test_the_cut_is_the_singular_value_decomposition_of_the_dense_change():
    draw = torch.Generator().manual_seed(0)
    for pairs, channels in ((3, 8), (20, 8), (8, 8)):
        keys, guides = (torch.randn(pairs, channels, generator=draw, dtype=torch.float64) for _ in range(2))
        solution = wb.edit.solve(keys, lam=0.1)
        u, strengths, v = torch.linalg.svd((guides - keys).T @ solution.a)
        for rank in (1, 2, 3):
            cut = solution.change(guides - keys, rank)
            assert torch.allclose(cut.u @ cut.v, u[:, :rank] * strengths[:rank] @ v[:rank])
            assert cut.kept == pytest.approx(((strengths[:rank] ** 2).sum() / (strengths**2).sum()).item())
    with pytest.raises(
        ValueError, match=r"differences= has \(2, 8\) entries, the solution \(8, 8\); give guide minus key"
    ):
        solution.change(keys[:2], 1)


@pytest.mark.parametrize("make", [conftest.sd1, conftest.sdxl], ids=lambda make: make.__name__)
def test_a_lora_of_that_rank_is_the_commit(make, tmp_path):
    torch.manual_seed(0)
    model = wb.load(make())
    edits = [
        wb.edit.swap(model, *WORDS, tokens="all", rank=1) + reflected(model, rank=1),
        erased(model, rank=1) + reflected(model, sites="text_encoder*.0.attention", rank=1),
    ]
    call = dict(latents=model.latents([3]), num_inference_steps=3, guidance_scale=3.0, output_type="np")
    plain = model.pipeline(ZEBRA, **call).images
    for edit, rank in zip(edits, (2, 1)):
        file = edit.to_lora(tmp_path / f"{rank}.safetensors")
        with model.applied(edit):
            committed = model.pipeline(ZEBRA, **call).images
        model.pipeline.load_lora_weights(str(file))
        assert {len(each.lora_A.default_0.weight) for each in adapted(model.pipeline)} == {rank}
        with_lora = model.pipeline(ZEBRA, **call).images
        model.pipeline.unload_lora_weights()
        assert np.abs(with_lora - committed).max() < 1e-4 < np.abs(committed - plain).max()
        assert np.array_equal(model.pipeline(ZEBRA, **call).images, plain)


def adapted(pipeline):
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return [each for part in parts for each in part.modules() if "default_0" in getattr(each, "lora_A", {})]


# Projections


def test_all_differences_removed_make_guide_and_concept_equal(model):
    """Exactly, at full rank, at cross-attention and in the text encoder; one direction leaves some of the difference."""
    pairs = [Prompt(template.format(WORDS[0]), *WORDS[:1], "", WORDS[1]) for template in wb.edit.editors.TEMPLATES]
    for sites in (WINDOW, "text_encoder*.1.attention"):
        for floor in (1e-4, math.inf):
            corpus = CORPUS if floor < 1 else None
            full, first = (erased(model, sites=sites, floor=floor, corpus=corpus, rank=rank) for rank in (None, 1))
            for name in full.sites:
                site = model.sites[name]
                old, new = gather(model, site if site.part != "denoiser" else "text states", pairs, "subject_last")
                weight = weight_of(model.pipeline, site).detach().double()
                before, after, some = (
                    ((old - new) @ (weight + by).T).norm() for by in (0, change(full, name), change(first, name))
                )
                assert after < 1e-4 * before and after < some < before * 10
                assert 0 < first.provenance["diagnostics"][name]["kept"] < 1


def test_the_oblique_projection_spares_what_is_kept_and_a_high_floor_is_the_orthogonal_one(model):
    spared, blind = erased(model, sites=WINDOW), erased(model, sites=WINDOW, corpus=None, floor=math.inf)
    high = erased(model, sites=WINDOW, floor=1e9)
    kept = wb.edit.projections.to_keep(model, "text states", CORPUS).second
    for name in spared.sites:
        drift = [(change(edit, name) @ kept * change(edit, name)).sum().sqrt() for edit in (spared, blind)]
        assert drift[0] < drift[1]
        said, weight = spared.provenance["diagnostics"][name]["drift"], weight_of(model.pipeline, model.sites[name])
        weight = weight.detach().double()
        assert said == pytest.approx((drift[0] / (weight @ kept * weight).sum().sqrt()).item(), rel=1e-3)
        assert torch.allclose(change(high, name), change(blind, name), atol=1e-4)
    assert blind.provenance["floor"] == "infinite" and blind.provenance["corpus"] is None


def test_what_resists_takes_the_concept_out_of_what_layers_give_and_so_does_its_lora(sd1, tmp_path):
    def readings(edit):
        weights = [weight_of(sd1.pipeline, sd1.sites[name]).detach().double() for name in edit.sites]
        return [(old, old + change(edit, name)) for old, name in zip(weights, edit.sites)]

    apart, left = [], []
    for resist in (0.0, 1.0, 1e3, math.inf):
        edit = erased(sd1, rank=None, resist=resist, corpus=None if resist == math.inf else CORPUS)
        pairs = readings(edit)
        old, new = (torch.cat(each) for each in zip(*pairs))
        apart.append(
            (new.T @ (old - new)).norm() / (old - new).norm() / new.norm()
        )  # none: what is gone is orthogonal to what is left
        states = wb.edit.editors.states(sd1, "text states", [ZEBRA])[0]
        attack = Readings.of(pairs)
        step = attack.nearest(states, math.inf, 1e-6)
        left.append((((states + step) @ new.T - states @ old.T).norm() / (states @ (old - new).T).norm()).item())
    assert apart[3] < 0.02 < apart[0] and left == sorted(left) and left[0] < 0.9 < left[3] <= 1 + 1e-6
    assert edit.provenance["resist"] == "infinite" and edit.provenance["corpus"] is None
    call = dict(prompt_embeds=(states + step)[None].float(), latents=sd1.latents([3]), num_inference_steps=2)
    call |= dict(guidance_scale=1.0, output_type="np")
    with sd1.applied(edit):
        committed = sd1.pipeline(**call).images
    plain = sd1.pipeline(**call).images
    sd1.pipeline.load_lora_weights(str(edit.to_lora(tmp_path / "resisting.safetensors")))
    attacked = sd1.pipeline(**call).images
    sd1.pipeline.unload_lora_weights()
    assert np.abs(attacked - committed).max() < 1e-4 < np.abs(committed - plain).max()


def test_a_projection_is_one_and_a_reflection_its_own_inverse():
    draw = torch.Generator().manual_seed(0)
    differences, states = (torch.randn(n, 6, generator=draw, dtype=torch.float64) for n in (3, 20))
    second, eye = states.T @ states, torch.eye(6, dtype=torch.float64)
    for metric in (second, None):
        for rank in (1, 2, None):
            removed = projection(differences, metric, rank=rank)
            mirrored = projection(differences, metric, rank=rank, times=2.0)
            m, mirror = (eye + each.u @ each.v for each in (removed, mirrored))
            assert torch.allclose(m @ m, m) and torch.allclose(mirror @ mirror, eye) and len(removed.v) == (rank or 3)
        assert torch.allclose(m @ differences.T, torch.zeros(6, 3, dtype=torch.float64), atol=1e-9)
        assert torch.allclose(mirror @ differences.T, -differences.T)
    with pytest.raises(ValueError, match="rank=None: the differences span all 6 channels, so that nothing is left"):
        projection(states, second)
    with pytest.raises(ValueError, match=r"leave some of the 6 channels empty: .*singular; raise floor="):
        projection(differences, differences.T @ differences)


def test_a_reflection_committed_twice_is_the_identity(model):
    """Made anew from the model that holds the first, at cross-attention and in a layer of the text encoder."""
    before, plain = weights(model), images(model, World("a", ZEBRA))
    model.commit(reflected(model))
    once = images(model, World("a", ZEBRA))
    model.commit(reflected(model))
    for _ in range(2):
        model.commit(reflected(model, sites="text_encoder*.0.attention"))
    assert np.abs(once - plain).max() > 1e-3 > 1e-4 > np.abs(images(model, World("a", ZEBRA)) - plain).max()
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.abs().max()) for a, b in zip(weights(model), before))
    for _ in range(4):
        model.undo()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before))


def test_a_projection_is_previewed_saved_and_undone_like_every_edit(model, tmp_path):
    before = weights(model)
    for edit in (erased(model) + reflected(model, sites=TEXT), reflected(model) + erased(model, sites=TEXT)):
        preview = images(model, World("a", ZEBRA, edit.preview()))
        edit.save(tmp_path / "edit.safetensors")
        with model.applied(wb.Edit.load(tmp_path / "edit.safetensors", model)):
            assert np.abs(images(model, World("a", ZEBRA)) - preview).max() < 1e-4
        assert "rank 1, floor 0.0001" in edit.card() and f"{edit.editor}: a zebra -> a giraffe" in edit.card()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before))


def test_how_far_a_reflection_misses():
    """0 for opposites; a third as far on the other side: 0.5, nearer to its own place from there; beyond 1 on one side."""
    mirror = projection(torch.tensor([[1.0, 0.0]], dtype=torch.float64), None, times=2.0)
    at = lambda x: torch.tensor([[x, 7.0]], dtype=torch.float64)
    for first, second, expected in ((1, -1, 0), (3, -1, 0.5), (-1, 3, 0.5), (1, 0, 1), (3, 1, 2)):
        assert miss(mirror, at(first), at(second)) == pytest.approx(expected)


def test_a_pair_that_does_not_suit_a_reflection_is_told_beforehand(menagerie, monkeypatch):
    pairs = (("a lion", "a penguin"), ("a cow", "a camel"), ("a zebra", "a giraffe"))
    make = lambda pair: wb.edit.reflect(menagerie, *pair, sites=WINDOW, **QUICK)
    misses = [make(pair).provenance["miss"]["text states"] for pair in pairs]
    limit = sorted(misses)[1]
    monkeypatch.setattr(wb.edit.projections, "SUITS", limit)
    for pair, missed in zip(pairs, misses):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make(pair)
        assert len(caught) == (missed > limit)
        for each in caught:
            assert each.filename == __file__
            for text in (
                f"reflect: {pair[0]!r} and {pair[1]!r} do not lie opposite one another about the origin",
                f"at text states a reflected word misses the other's place by {missed:.2f} of the way between them",
            ):
                assert text in str(each.message)


# Erasing within a budget


def test_of_several_guides_the_one_is_taken_that_moves_what_is_kept_the_least(menagerie):
    guides = ("a cow", "a car")
    found = wb.edit.erase(menagerie, "a zebra", guides, sites=WINDOW, rank=2)
    apart = {guide: wb.edit.oblique(menagerie, "a zebra", guide, sites=WINDOW, rank=2) for guide in guides}
    drift = {
        guide: np.mean([row["drift"] for row in edit.provenance["diagnostics"].values()])
        for guide, edit in apart.items()
    }
    assert found.provenance["guides"] == pytest.approx(drift) and found.provenance["guide"] == min(drift, key=drift.get)
    for site in found.sites:
        own = change(apart[found.provenance["guide"]], site)
        assert torch.allclose(change(found, site), own, atol=1e-5 * own.abs().max())
    assert "budget" not in found.provenance and found.editor == "erase"
    text = wb.edit.erase(menagerie, "a zebra", guides[0], sites="text_encoder.0.attention")
    assert text.sites == ("text_encoder.0.out",) and text.rank == 4


def test_an_erasure_is_lowered_until_what_is_kept_stays(menagerie):
    """First its rank, then its strength; what was tried is reported, and a strength below 1 warns."""
    keep = ["a lion on the beach", wb.Prompt("a red car in the city", "car")]
    settings = dict(sites="unet.up.*.cross", keep=keep, num_inference_steps=2)
    wide = wb.edit.erase(menagerie, "a zebra", "a cow", rank=2, **settings, similarity=0.01)
    assert wide.rank == 2 and len(wide.provenance["budget"]["tried"]) == 1
    assert wide.provenance["corpus"].startswith("Moments") and wide.provenance["keep"][1] == "a red car in the city"
    whole = wb.edit.erase(menagerie, "a zebra", "a cow", rank=1, **settings, similarity=0.01)
    most = max(edit.provenance["budget"]["chosen"]["mean"] for edit in (wide, whole))
    asked = 1 - 0.4 * (1 - most)
    with pytest.warns(
        UserWarning, match=r"erase: the pictures of keep= stay above similarity=.* only at 0\.\d+ of the edit"
    ):
        weak = wb.edit.erase(menagerie, "a zebra", "a cow", rank=2, **settings, similarity=asked)
    budget = weak.provenance["budget"]
    strength = budget["chosen"]["strength"]
    assert [each["rank"] for each in budget["tried"]] == [2, 1, 1, 1, 1, 1] and strength == weak.provenance[
        "strength"
    ] < 1
    assert budget["chosen"]["mean"] >= asked and budget["chosen"]["lowest"] <= budget["chosen"]["mean"]
    assert all(each["mean"] < asked for each in budget["tried"] if each["strength"] > strength)
    for site in weak.sites:
        assert torch.allclose(change(weak, site), strength * change(whole, site), atol=1e-5)
        row, of = (edit.provenance["diagnostics"][site] for edit in (weak, whole))
        assert (
            row["relative_norm"] == pytest.approx(strength * of["relative_norm"], rel=1e-4)
            and row["kept"] == of["kept"]
        )
    scorer = wb.Scorer()
    before, after = [], []
    for drawn, by in ((before, weak * 0), (after, weak)):
        with menagerie.applied(by):
            pictures = menagerie.generate(["a lion on the beach", keep[1].prompt], seeds=(0, 1), num_inference_steps=2)
        drawn.append(scorer.image_embeddings(pictures))
    assert (before[0] * after[0]).sum(-1).mean().item() == pytest.approx(budget["chosen"]["mean"], abs=1e-5)
    assert not menagerie.edits


@pytest.mark.parametrize(
    ("text", "use"),
    [
        (
            "keep= holds 'a zebra and a lion', which has the concept 'a zebra' itself; leave it out",
            lambda m: wb.edit.erase(m, "a zebra", "a lion", keep=["a zebra and a lion"]),
        ),
        (
            "scorer=None: the embedded grader knows the embedded model's world alone",
            lambda m: wb.edit.erase(m, "a zebra", "a lion", keep=["a lion"]),
        ),
        (
            "similarity=1.5: give a finite number, above 0 and at most 1",
            lambda m: wb.edit.erase(m, "a zebra", "a lion", similarity=1.5),
        ),
        (
            "similarity=1: at 0.0625 of its strength the edit of rank 1 still changes the 1 pictures of keep= to 0.9",
            lambda m: wb.edit.erase(
                m, "a zebra", "a lion", keep=["a car"], similarity=1, scorer=wb.Scorer(), num_inference_steps=3
            ),
        ),
        ("rank=0: give a whole number, at least 1", lambda m: wb.edit.uce(m, PAIR, rank=0)),
        ("rank=1.5: 1.5 is a float; give a whole number", lambda m: wb.edit.swap(m, *WORDS, rank=1.5)),
        ("rank=0: give a whole number", lambda m: erased(m, rank=0)),
        ("floor=-1: give a number, at least 0, or math.inf", lambda m: erased(m, floor=-1)),
        ("corpus= has no effect with floor=math.inf", lambda m: erased(m, floor=math.inf)),
        ("corpus= has no effect with resist=math.inf", lambda m: erased(m, resist=math.inf)),
        ("resist=-1: give a number, at least 0, or math.inf", lambda m: erased(m, resist=-1)),
        ("'a zebra' is to act as itself", lambda m: wb.edit.oblique(m, "a zebra", "A zebra")),
        ("guide='': give a text that says something", lambda m: wb.edit.oblique(m, "a zebra", "")),
        ("the states of 'a zebra' at text states are those of 'a giraffe'", lambda m: erased(m, tokens=[0])),
        ("unet.mid.self.k is not given text states", lambda m: erased(m, sites="unet.mid.self.k")),
        (
            "the differences span all 16 channels, so that nothing is left; give a rank= below that",
            lambda m: reflected(m, tokens="all", rank=None),
        ),
        (
            "leave some of the 16 channels empty: their second moment is singular; raise floor=",
            lambda m: erased(m, floor=0, corpus=wb.edit.Moments.of(torch.eye(16)[:3])),
        ),
        (
            "corpus= has moments of 3 channels, the states at text states have 16; take both from the same site's input",
            lambda m: erased(m, corpus=wb.edit.Moments.of(torch.eye(3))),
        ),
    ],
)
def test_wrong_uses_are_told_and_change_nothing(sd1, text, use):
    before = weights(sd1)
    with pytest.raises(ValueError) as raised:
        use(sd1)
    assert text in str(raised.value)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(sd1))) and not sd1.edits
