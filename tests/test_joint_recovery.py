"""Recovery on transformers: attacks on the states that enter them, completion and relearning; what needs a UNet is refused."""

import numpy as np
import pytest
import torch
from test_recovery import BRIEF, content
from test_transformers import LION, ZEBRA, apart, pair

import workbench as wb
from workbench.edit.embeddings import Denoiser
from workbench.metrics import Measures
from workbench.recovery.recover import Recovering

PROMPTS = wb.PromptSet.of(ZEBRA, subject="zebra")
two_families = pytest.mark.parametrize("name", ["sd3", "flux"])


def erased(model, sites=None, **more) -> wb.Edit:
    return wb.edit.from_concepts(model, {"a zebra": "a lion"}, sites=sites, lam=1e-3, tokens="all", **more)


def recovering(model, edit, scorer, **spec) -> Recovering:
    spec = wb.RecoverySpec(**BRIEF | dict(control="car") | spec)
    return Recovering(model, edit, spec, PROMPTS, Measures.of(scorer), 16)


def drawn(model, asked: Recovering, attack: str) -> dict[str, np.ndarray]:
    """Images of the unedited, the edited and the attacked model; of an attack's tries by number."""
    worlds = [*asked.plain(0), *(world for _, world in asked.attacked(asked.attacks[attack], 0))]
    found = model.run(
        worlds, num_inference_steps=3, guidance_scale=1.0, progress=False
    )  # attacks leave the negative prompt
    return {world.name: found[world.name].values for world in worlds}


@two_families
def test_attacks_of_no_strength_change_nothing_and_strong_ones_bring_the_picture_back(name, scorer):
    model, _ = pair(name)
    edit, before = erased(model), content(model)
    assert edit.sites == ("transformer.context_embedder",)
    states = ("closed_form", "nearest_states", "concept_vector")
    asked = recovering(
        model, edit, scorer, attacks=states, distances=(0.0, float("inf")), lams=(1e-9,), strengths=(0.0, 1.0)
    )
    for attack in states:
        images = drawn(model, asked, attack)
        assert apart(images["unedited"], images["before"]) > 1e-3
        assert apart(images[f"{attack} 0"], images["before"]) < 1e-5 < apart(images[f"{attack} 1"], images["before"])
    images = drawn(
        model, asked, "closed_form"
    )  # the embedder gives what it gave, and the pooled vector is the prompt's own
    assert apart(images["closed_form 1"], images["unedited"]) < 0.01 * apart(images["before"], images["unedited"])
    assert content(model) == before


@two_families
def test_completion_and_relearning(name, scorer):
    """Of edits of the denoiser, of a block's keys and values, and of a text encoder whose states the denoiser is given."""
    model, _ = pair(name)
    before = content(model)
    runs = wb.edit.KeyRuns(seeds=(0,), num_inference_steps=2)
    blocks = erased(model, "transformer.[01].joint", runs=runs)
    asked = recovering(model, blocks, scorer, attacks=("completion", "relearning"), shares=(0.0, 0.5, 1.0))
    images = drawn(model, asked, "completion")
    assert apart(images["completion 0"], images["before"]) < 1e-5 > apart(images["completion 2"], images["unedited"])
    assert min(apart(images["completion 1"], images[other]) for other in ("before", "unedited")) > 1e-5
    images = drawn(model, asked, "relearning")
    assert apart(images["relearning 0"], images["before"]) < 1e-5 < apart(images["relearning 1"], images["before"])
    assert content(model) == before and "closed_form" in recovering(model, blocks, scorer).refused
    if name == "flux":
        words = wb.edit.uce(model, {"a zebra": "a lion"}, sites="text_encoder_2.0.wo", tokens="all")
        images = drawn(model, recovering(model, words, scorer, attacks="completion", shares=(1.0,)), "completion")
        assert apart(images["completion 0"], images["unedited"]) < 1e-5 < apart(images["before"], images["unedited"])


@two_families
def test_the_loss_that_relearning_takes_is_of_what_the_pipeline_predicts(name):
    model, _ = pair(name)
    (picture,) = model.generate(LION, num_inference_steps=1)
    step, steps, guidance = 1, 4, model.family.guidance if name == "flux" else 1.0
    found = model.run_once(
        {"a": ZEBRA},
        {"a": picture},
        step=step,
        num_inference_steps=steps,
        guidance_scale=guidance,
        record="transformer.noise",
    )
    share = torch.tensor([model.calls(steps).timestep[step] / 1000], dtype=torch.float32)
    noise, clean = model.latents(0), model.encode([picture])
    mixed = torch.lerp(clean, noise, share)
    with torch.no_grad():
        velocity = model.family.velocity(model.pipeline, mixed, share, *model.family.encode(model.pipeline, [ZEBRA]))
    expected = torch.tensor(found.values["transformer.noise"].values[0, 0])
    difference = apart(model.family.packed(velocity), expected)
    print(name, "velocity", difference)
    assert difference < 1e-4 < expected.abs().max()
    times = torch.tensor([499])
    predicted, target = Denoiser(model.pipeline)([ZEBRA], clean, noise, times)
    assert torch.equal(target, noise - clean) and predicted.shape == target.shape


@two_families
def test_what_needs_a_unet_or_other_weights_is_refused(name, scorer):
    model, _ = pair(name)
    for attack in ("token_search", "inversion"):
        with pytest.raises(
            ValueError, match=f"{attack} does not fit: it learns what CLIP's embeddings are given .* UNets alone"
        ):
            recovering(model, erased(model), scorer, attacks=attack)
    words = wb.edit.uce(model, {"a zebra": "a lion"}, sites="text_encoder.0.fc2", tokens="all")
    with pytest.raises(
        ValueError, match=r"given the text alone \(transformer.context_embedder\), and the edit changes"
    ):
        recovering(model, words, scorer, attacks="closed_form")
    with pytest.raises(ValueError, match="reaches the denoiser through the pooled vector too"):
        recovering(model, words, scorer, attacks="completion")
    every = recovering(model, erased(model), scorer)
    assert set(every.refused) == {"token_search", "inversion"} and len(every.attacks) == 5


def test_an_erased_animal_comes_back_on_the_trained_one():
    """Of the embedded transformer: the whole test, closed form."""
    model = wb.load("menagerie-dit")
    spec = wb.RecoverySpec(
        attacks="closed_form", seeds=(0,), redraws=1, num_inference_steps=3, lams=1e-3, distances=float("inf")
    )
    kept = [f"a {word} in the {place}" for word in ("lion", "cow", "car", "penguin") for place in ("savanna", "city")]
    edit = wb.edit.oblique(model, "a zebra", "a cow", rank=2, templates=("{}", "a photo of {}"), corpus=kept)
    found = wb.recover(model, edit, "a photo of a zebra", spec, subject="zebra")
    back = found.data.closed_form.sel(metric="concept", asks="concept").mean()
    assert found.data.before.sel(metric="concept").mean() == 0 and back == 1
