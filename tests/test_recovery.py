"""Recovery: nothing asked changes nothing, limits are kept, learning leaves no trace, and what the embedded model hides comes back."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from conftest import sd1, sdxl

import workbench as wb
from workbench.metrics import Measures
from workbench.recovery import learning
from workbench.recovery.recover import Recovering
from workbench.recovery.search import simplex
from workbench.recovery.specs import ATTACKS
from workbench.recovery.states import limited, readings

TEXT = "a photo of a zebra"
PROMPTS = wb.PromptSet.of(TEXT, subject="zebra")
BRIEF = dict(seeds=(0,), num_inference_steps=3, redraws=1, pictures=2, searches=2, inversions=2, relearned=(0, 2))
SOME = "unet.mid*.cross"
BOTH = pytest.mark.parametrize("tiny", [sd1, sdxl], indirect=True)  # one text encoder, and two


def erased(model, sites="unet.*.cross") -> wb.Edit:
    return wb.edit.from_concepts(model, {"a zebra": "a cow"}, sites=sites, lam=1e-3, tokens="all")


def recovering(model, edit, scorer, **spec) -> Recovering:
    return Recovering(model, edit, wb.RecoverySpec(**BRIEF | spec), PROMPTS, Measures.of(scorer), 16)


def drawn(model, asked: Recovering, *more: wb.World) -> dict[str, np.ndarray]:
    run = model.run([*asked.plain(0), *more], num_inference_steps=3, progress=False)
    return {world.name: run[world.name].values for world in run.worlds}


def content(model) -> str:
    """SHA-256 of all weights."""
    state = hashlib.sha256()
    for part in model.pipeline.components.values():
        for value in part.state_dict().values() if isinstance(part, torch.nn.Module) else ():
            state.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def hooks(model) -> int:
    parts = [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(len(module._forward_hooks) for part in parts for module in part.modules())


def test_of_an_edit_that_changes_nothing_the_closed_form_is_the_prompts_own_states(model, scorer):
    asked = recovering(model, erased(model) * 0, scorer)
    states, weights = asked.case.states([TEXT])[0], readings(asked.case)
    scale = states.norm()
    away = [((weights.solved(states, lam) - states).norm() / scale).item() for lam in (1.0, 1e-3, 1e-6, 1e-9)]
    assert away == sorted(away, reverse=True) and away[-1] < 1e-3 < away[0]
    assert weights.nearest(states, 0.2, 1e-9).norm() < 1e-9 * scale


@BOTH
def test_attacks_of_strength_zero_change_nothing(model, scorer):
    states = dict(attacks=("closed_form", "nearest_states", "concept_vector", "relearning"), relearned=(0,))
    asked = recovering(model, erased(model), scorer, distances=(0.0,), lams=(0.1,), strengths=(0.0,), **states)
    worlds = [
        world
        for attack in asked.attacks.values()
        for each, world in asked.attacked(attack, 0)
        if each.place["asks"] != "control" or world.prompt == TEXT
    ]
    images = drawn(model, asked, *worlds)
    assert len(worlds) == 2 + 2 + 3 + 2
    assert all(np.array_equal(images[world.name], images["before"]) for world in worlds)
    assert not np.array_equal(images["before"], images["unedited"])


@BOTH
@pytest.mark.parametrize("sites", ["unet.*.cross", ("unet.*.cross", "text_encoder.0.out")])
def test_completion_begins_at_the_edited_picture_and_ends_at_the_unedited(model, scorer, sites):
    asked = recovering(model, erased(model, sites), scorer, attacks=("completion",))
    completed = asked.attacks["completion"].completed
    worlds = [wb.World(str(first), TEXT, completed(PROMPTS[0], first)) for first in range(4)]
    control = wb.World("control", TEXT, completed(PROMPTS[0], 3, "control"))
    other = wb.World("other", asked.case.text(PROMPTS[0], "control"))
    images = drawn(model, asked, *worlds, control, other)
    assert np.array_equal(images["0"], images["before"])
    assert np.allclose(images["3"], images["unedited"], atol=1e-5)
    assert not np.allclose(images["1"], images["0"], atol=1e-6) and not np.allclose(images["2"], images["3"], atol=1e-6)
    if asked.case.model.family.name == "sd":  # SDXL's pooled vector stays the prompt's
        assert np.allclose(images["control"], images["other"], atol=1e-5)


def test_distances_are_kept_exactly_and_the_nearest_states_are_the_best_within(model, scorer):
    asked = recovering(model, erased(model), scorer)
    states, weights = asked.case.states([TEXT])[0], readings(asked.case)
    asked_for = states @ (weights.cross - weights.gram).T
    fit = lambda step: (
        (step * (step @ weights.gram - 2 * asked_for)).sum().item()
    )  # |W_n (C + step) - W_o C|^2, less a constant
    for most in (0.05, 0.2, 0.4):
        way = weights.solved(states, 0.1) - states
        step, best = limited(way, states, most), weights.nearest(states, most, 1e-3)
        length, own = step.norm(dim=-1), states.norm(dim=-1)
        assert torch.allclose(length, torch.minimum(most * own, way.norm(dim=-1)), rtol=1e-12)
        assert best.norm() <= most * states.norm() * (1 + 1e-9)
        assert fit(best) <= fit(step * min(1.0, (best.norm() / step.norm()).item())) + 1e-9
    longest = weights.nearest(states, float("inf"), 1e-3)
    assert weights.nearest(states, 1e6, 1e-3).equal(longest)
    short = weights.nearest(states, 0.5 * (longest.norm() / states.norm()).item(), 1e-3)
    assert short.norm() == pytest.approx(longest.norm().item() / 2, rel=1e-9)


@BOTH
def test_learning_leaves_the_model_as_it_was_also_after_an_interrupt(model, scorer, monkeypatch):
    model.generate(TEXT, num_inference_steps=1)  # the first call of an encoder leaves transformers' own hooks in it
    before, hooked = content(model), hooks(model)
    brief = dict(attacks=("token_search", "inversion", "relearning"), num_inference_steps=1, pictures=1)
    asked = recovering(model, erased(model, SOME), scorer, **brief)
    worlds = [world for attack in asked.attacks.values() for _, world in asked.attacked(attack, 0)]
    assert content(model) == before and hooks(model) == hooked and not model.edits
    run = model.run([asked.plain(0)[1], *worlds], num_inference_steps=1, progress=False)
    same = [world.name for world in worlds if np.array_equal(run[world.name], run["before"])]
    assert same == ["relearning 0", "relearning 2"]  # behind no step
    losses, loss = [], torch.nn.functional.mse_loss

    def interrupted(*given):
        losses.append(given)
        if len(losses) % 2 == 0:
            raise KeyboardInterrupt
        return loss(*given)

    monkeypatch.setattr(torch.nn.functional, "mse_loss", interrupted)
    for name, attack in recovering(model, erased(model, SOME), scorer, **brief).attacks.items():
        with pytest.raises(KeyboardInterrupt):
            list(attack.tries(PROMPTS[0]))
        assert content(model) == before and hooks(model) == hooked and not model.edits, name


def test_relearning_follows_the_loss_downhill(menagerie):
    """The same noise at every step, so that the loss of one function is seen to fall."""
    pictures = menagerie.generate("a photo of a lion", seeds=range(2), num_inference_steps=4)
    found = learning.relearned(menagerie, ("unet.mid.cross.v",), TEXT, pictures, (0, 1, 6), lr=1e-3)
    assert found[0] is None and found[6].updates[0].norm() > found[1].updates[0].norm() > 0
    latents, losses = menagerie.encode(pictures), []
    for edit in found.values():
        with menagerie.applied(edit) if edit else menagerie.lock:
            generator = torch.Generator().manual_seed(5)
            denoiser = learning.Denoiser(menagerie.pipeline)
            losses.append(learning.noised_loss(denoiser, {}, [TEXT] * 16, latents, generator).item())
    assert losses[2] < losses[1] < losses[0]


def test_points_of_the_simplex():
    allowed = torch.tensor([True, True, False, True])
    found = simplex(torch.tensor([[0.2, 0.3, 9.0, 0.5], [2.0, 0.0, 0.0, -1.0], [0.9, 0.9, 0.0, 0.0]]), allowed)
    assert torch.allclose(found, torch.tensor([[0.2, 0.3, 0.0, 0.5], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]))


@pytest.fixture(scope="module")
def found(menagerie, tmp_path_factory):
    spec = wb.RecoverySpec(
        attacks=("nearest_states", "closed_form", "completion"),
        distances=(0.1, float("inf")),
        lams=(1e-3,),
        shares=(0.0, 1.0),
        redraws=2,
        seeds=(0,),
        num_inference_steps=5,
    )
    edit = wb.edit.uce(menagerie, {"a zebra": "a cow"}, tokens="all", lam=0.01)
    folder = tmp_path_factory.mktemp("recovery")
    return menagerie, edit, spec, folder, wb.recover(menagerie, edit, PROMPTS, spec, folder=folder)


def test_what_was_hidden_comes_back_and_the_control_does_not(found):
    table = found[-1].table(resamples=50).set_index(["attack", "setting"])
    assert (table.unedited == 1).all() and (table.before == 0).all()  # never after alone
    hidden = table.loc[[("nearest_states", "distance unbounded"), ("closed_form", "lam 0.001, distance unbounded")]]
    assert (hidden.after == 1).all() and (hidden.control == 0).all() and (hidden.moved > 0).all()
    assert (table.after_low <= table.after).all() and (table.after <= table.after_high).all()
    assert table.loc["completion"].after.tolist() == [0, 1, 1]
    assert table.loc[("closed_form", "any of these")].tries == 2 and (table.redraws == 2).all()
    assert found[-1].half_back("completion") == 1 and found[-1].concept == "zebra"
    assert found[-1].curve("nearest_states", resamples=5).asks.unique().tolist() == ["concept", "control", "random"]
    assert "nearest_states" in repr(found[-1])


def test_on_the_unedited_model_the_control_shows_the_control_alone(found):
    model, edit, *_ = found
    few = dict(lams=(1e-3,), distances=(float("inf"),), redraws=1, seeds=(0,), num_inference_steps=5)
    attacked = wb.recover(model, edit * 0, PROMPTS, wb.RecoverySpec(attacks=("closed_form",), **few)).data.closed_form
    assert attacked.sel(metric="concept").mean("seed").sel(asks=["concept", "control"]).values.ravel().tolist() == [
        1,
        0,
    ]
    assert attacked.sel(metric="control").mean("seed").sel(asks=["concept", "control"]).values.ravel().tolist() == [
        0,
        1,
    ]


def test_it_goes_on_where_it_was_stopped_and_tells_other_edits(found, monkeypatch):
    model, edit, spec, folder, results = found
    monkeypatch.setattr("workbench.engine.batch.Batch.traced", None)  # nothing is drawn again
    assert wb.recover(model, edit, PROMPTS, spec, folder=folder).data.equals(results.data)
    assert wb.Recovery(wb.open_results(folder)).data.equals(results.data)
    with pytest.raises(ValueError, match="another specification"):
        wb.recover(model, edit * 0.9, PROMPTS, spec, folder=folder)


def test_curves_and_figures(found):
    axes = wb.plot.recovery(found[-1])
    assert axes.get_yticklabels()[0].get_text() == "closed form, lam 0.001, distance 0.1"
    assert wb.plot.recovery_curve(found[-1], "completion").get_xlabel() == "share of the steps by the unedited model"
    with pytest.raises(KeyError, match=r"relearning.*was not made"):
        wb.plot.recovery_curve(found[-1], "relearning")


def refused(menagerie, said, *, edit=None, prompts=PROMPTS, error=ValueError, **spec):
    edit = edit or wb.edit.uce(menagerie, {"a zebra": "a cow"}, sites="unet.mid.cross")
    with pytest.raises(error, match=said):
        wb.recover(menagerie, edit, prompts, wb.RecoverySpec(**BRIEF | spec))


def test_what_cannot_be_attacked_is_refused(menagerie, monkeypatch):
    monkeypatch.setattr("workbench.engine.batch.Batch.traced", None)  # nothing is drawn
    uce = wb.edit.uce(menagerie, {"a zebra": "a cow"}, sites="unet.mid.cross")
    other = wb.Edit([dataclasses.replace(update, base="0" * 64) for update in uce.updates])
    refused(menagerie, "the model's is .*; load the model that it was made for", edit=other)
    with menagerie.applied(uce):
        refused(menagerie, "is committed; give the unedited model", edit=uce)
    text = wb.edit.diff_quickfix(menagerie, {"a zebra": "a cow"})
    refused(
        menagerie,
        "attacks: closed_form does not fit: .* changes other weights; leave it out",
        edit=text,
        attacks=("closed_form",),
    )
    labels = PROMPTS.labels
    two = [wb.Prompt("a zebra", "zebra", "zebra"), wb.Prompt("a lion", "lion", "lion")]
    refused(
        menagerie, "their values are 'zebra', 'lion'; give prompts of the one", prompts=wb.PromptSet("two", two, labels)
    )
    none = wb.PromptSet("none", [wb.Prompt("a striped horse", "zebra", "zebra")], labels)
    refused(menagerie, "'a striped horse' does not name the concept: it lacks its subject", prompts=none)
    refused(menagerie, "needs a value for every prompt", prompts=wb.PromptSet.of("a blicket", subject="blicket"))
    refused(menagerie, "control='Zebra' is the concept itself", control="Zebra")
    few = wb.PromptSet("few", [wb.Prompt("a zebra", "zebra", "zebra")], {"zebra": "a zebra", "cow": "a cow"})
    refused(menagerie, "control='': every label", prompts=few)
    refused(menagerie, "40 tokens in front of .* lower prefix=", attacks=("token_search",), prefix=40)
    refused(menagerie, "no site matches", attacks=("relearning",), relearned_sites=("unet.qux",), error=KeyError)


def test_a_concept_that_the_grader_cannot_see_is_refused(menagerie):
    labels = {"pond": "a photo of a pond", "zebra": "a photo of a zebra", "cow": "a photo of a cow"}
    ponds = wb.PromptSet("ponds", [wb.Prompt("a photo of a zebra", "zebra", "pond")], labels)
    with pytest.raises(ValueError, match=r"it sees 'pond' in 0 of 1 pictures of the unedited model"):
        edit = wb.edit.uce(menagerie, {"a zebra": "a cow"}, sites="unet.mid.cross")
        wb.recover(menagerie, edit, ponds, wb.RecoverySpec(**BRIEF, attacks=("completion",), control="lion"))


def test_attacks_that_do_not_fit_are_left_out_and_said(menagerie, scorer):
    asked = recovering(menagerie, wb.edit.diff_quickfix(menagerie, {"a zebra": "a cow"}), scorer)
    assert list(asked.refused) == ["closed_form", "nearest_states"]
    assert list(asked.attacks) == [name for name in ATTACKS if name not in asked.refused]


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(attacks=("qux",)), "attacks='qux'"),
        (dict(distances=(-0.1,)), r"distances=-0\.1"),
        (dict(shares=(1.5,)), r"shares=1\.5"),
        (dict(template="a zebra"), "give a text that holds {} once"),
        (dict(relearned=(-1,)), "relearned=-1"),
    ],
)
def test_what_no_spec_can_mean_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        wb.RecoverySpec(**given)
