"""Probing: what is nowhere is read nowhere, what is planted is read, and no probe has seen what it is asked about."""

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.localize.localizers import layers_of
from workbench.localize.probing import held_out

QUICK = dict(num_inference_steps=1, batch_size=8)
SITES = ("text_encoder*.{0,1}.mlp", "unet.mid*.cross", "unet.mid.1.resnet")


def prompts(*texts: str, replacement: str) -> wb.PromptSet:
    return wb.PromptSet("own", [wb.Prompt(text, "zebra", replacement=replacement) for text in texts])


def test_identical_wordings_are_at_chance(model):
    same = prompts("a zebra", "the old zebra at night", "two of a zebra", replacement="zebra")
    found = wb.probe(model, same, SITES, tokens="all", seeds=(0, 1), **QUICK)
    assert dict(found.sizes) == {"prompt": 3, "seed": 2, "layer": len(model.sites(*SITES))}
    assert (found.margin == 0).all() and (found.accuracy == 0.5).all() and (found.control == 0.5).all()


def test_positions_in_front_of_the_word_cannot_tell_it(menagerie):
    """The text encoder is causal."""
    asked = prompts("a photo of a zebra", "stained glass of a zebra", "a sketch of a zebra", replacement="lion")
    found = {at: wb.probe(menagerie, asked, "text_encoder.*.mlp", tokens=at) for at in ("of", "subject_last")}
    assert np.abs(found["of"].margin).max() < 1e-3
    first = found["subject_last"].isel(layer=0)
    assert (first.accuracy == 1).all() and (first.margin > 0.5).all() and found["subject_last"].accuracy.mean() > 0.8


def test_a_planted_direction_is_told_perfectly_and_control_labels_are_not():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(12, 2, 1, 32, generator=generator, dtype=torch.double).expand(-1, -1, 2, -1)  # of a prompt
    direction = torch.randn(32, generator=generator, dtype=torch.double)
    signs = torch.tensor([1.0, -1.0])[:, None]
    planted = held_out(0.1 * noise + signs * direction, 0.1)
    assert (planted["accuracy"] == 1).all() and np.abs(planted["margin"] - 1).max() < 0.05
    assert abs(planted["control"].mean() - 0.5) < 0.15
    turned = signs * torch.randn(
        60, 1, 1, 32, generator=generator, dtype=torch.double
    )  # another direction in each prompt
    assert abs(held_out(turned.expand(-1, 2, -1, -1), 0.1)["margin"].mean()) < 0.2


def test_a_probe_is_ridge_regression_of_the_other_prompts():
    states = torch.randn(4, 1, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    others = states[1:].reshape(-1, 5).numpy()
    centred = others - others.mean(0)
    penalty = 0.3 * np.square(centred).sum(1).mean()
    weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(5), centred.T @ np.tile([1.0, -1.0], 3))
    answers = (states[0, 0].numpy() - others.mean(0)) @ weights
    assert held_out(states, 0.3)["margin"][0, 0] == pytest.approx((answers * [1, -1]).mean())
    assert np.allclose(held_out(7 * states + 3, 0.3)["margin"], held_out(states, 0.3)["margin"])  # no unit


def test_scores_do_not_hang_on_the_batch_and_text_has_no_seed(model):
    some = prompts("a zebra", "the old zebra at night", replacement="lion")
    few, many = (
        wb.probe(model, some, SITES, tokens="eos", seeds=(0, 3), num_inference_steps=1, batch_size=size)
        for size in (1, 8)
    )
    assert np.allclose(few.margin, many.margin, atol=1e-3)
    text = few.margin.sel(layer=[name for name in few.layer.values if name.startswith("text")])
    assert text.sizes["layer"] and (text.sel(seed=0) == text.sel(seed=3)).all()


def test_the_localizer_scores_the_layers_asked_those_of_several_encoders_together_too(model):
    spec = wb.TraceSpec(sites=SITES[:2], tokens=("eos",), seeds=(0, 1), num_inference_steps=1)
    some = prompts("a zebra", "the old zebra at night", replacement="lion")
    scores = wb.localizers()["probing"](model, some, spec)
    assert scores.dims == ("prompt", "seed", "layer") and scores.layer.values.tolist() == layers_of(model, spec)
    assert scores.notnull().all()


@pytest.mark.parametrize(
    "some, changes, said",
    [
        (
            ["a zebra"],
            {},
            "prompts holds 1: a probe is asked about prompts that it was not fitted to; give at least two",
        ),
        (["a zebra", "a lion"], {}, "a probe needs other words for the concept, which 'a zebra' lacks"),
        (
            [wb.Prompt("a zebra", "zebra", target="a lion")] * 2,
            {},
            r"tokens='subject_last': 'a lion' names no subject, which a target does not; .* or tokens='eos' or 'all'",
        ),
        (prompts("a zebra", "a zebra", replacement="lion"), dict(tokens="qux"), "'qux' is not in the prompt 'a zebra'"),
        (
            prompts("a zebra", "a zebra", replacement="lion"),
            dict(sites="unet.mid.cross.probs"),
            r"unet.mid.cross.probs has the axes \('head', 'pixel', 'token'\) in the unet: a probe reads the channels",
        ),
        (prompts("a zebra", "a zebra", replacement="lion"), dict(sites="vae.latents"), "in the vae: a probe reads"),
        (prompts("a zebra", "a zebra", replacement="lion"), dict(ridge=0), "ridge=0: give a finite number, above 0"),
    ],
)
def test_what_no_probe_can_be_fitted_to_is_refused_before_anything_runs(menagerie, monkeypatch, some, changes, said):
    monkeypatch.setattr("workbench.engine.batch.Batch.traced", None)
    monkeypatch.setattr("workbench.localize.probing.text_values", None)
    with pytest.raises(ValueError, match=said):
        wb.probe(menagerie, wb.PromptSet.of(some), **dict(sites="text_encoder.0.mlp") | changes)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(window=3), "probing speaks of layers each by itself: window=3"),
        (dict(tokens=("subject", "eos")), "probing gives one score for each layer"),
        (dict(sites=("vae.latents",)), "probing: sites: vae.latents has the axes .* in the vae"),
    ],
)
def test_the_localizer_abstains(menagerie, changes, said):
    asked = wb.TraceSpec(**dict(sites=("text_encoder.0.mlp",)) | changes)
    with pytest.raises(wb.Abstains, match=said):
        wb.localizers()["probing"](menagerie, wb.prompt_set("object")[:2], asked)


def test_layers_that_rounding_would_rank_are_not_ranked(menagerie):
    """The encoder is causal: a word that all prompts begin with has the same states in all of them."""
    first = prompts("zebra at night", "zebra on the beach", "zebra", replacement="lion")
    asked = wb.TraceSpec(sites=("text_encoder.*.mlp",), seeds=(0,))
    with pytest.raises(
        wb.Abstains, match=r"tokens='subject_last' are alike in all prompts, .* name later tokens, such as 'all'"
    ):
        wb.localizers()["probing"](menagerie, first, asked)
    assert wb.localizers()["probing"](
        menagerie, first, wb.TraceSpec(sites=asked.sites, tokens=("all",), seeds=(0,))
    ).sizes
