"""Attention maps, contribution, the lens and the comparison of localizers: laws on random pipelines, truth on the menagerie."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import workbench as wb
from workbench import (
    AttentionSpec,
    PromptSet,
    TraceSpec,
    World,
    attention_contribution,
    attention_maps,
    diffusion_lens,
    mask_iou,
    plot,
)
from workbench.engine import Fold
from workbench.menagerie.world import Scene, render
from workbench.studies import looking, memory

ELEPHANT = "a photo of an elephant in the savanna"
QUICK = dict(num_inference_steps=3, guidance_scale=3.0, seeds=(0, 1))


def test_maps_are_the_mean_of_the_probabilities_of_every_step(model):
    maps = attention_maps(model, ELEPHANT, bins=2, **QUICK)
    sites = [site.name for site in model.sites("unet.*.cross")]
    assert list(maps.maps) == sites
    run = model.run([World("clean", ELEPHANT)], record=[f"{name}.probs" for name in sites], **QUICK)
    for name, found in maps.maps.items():
        assert found.dims == ("world", "seed", "steps", "head", "y", "x", "token")
        assert np.allclose(found.sum("token"), 1, atol=1e-5)
        every = run.values[f"{name}.probs"].values.reshape(1, 2, 3, *found.shape[3:])
        assert np.allclose(found.values[:, :, 0], every[:, :, :2].mean(2), atol=1e-6)
        assert np.allclose(found.values[:, :, 1], every[:, :, 2], atol=1e-6)
    assert maps.maps[sites[0]].steps.values.tolist() == ["0-0.5", "0.5-1"]


def test_reading_maps_changes_no_pixel_but_by_the_explicit_softmax(model):
    plain = model.run([World("clean", ELEPHANT)], **QUICK)
    read = attention_maps(model, ELEPHANT, **QUICK)
    explicit = model.run([World("clean", ELEPHANT)], record=["unet.*.cross.probs"], **QUICK)
    assert np.array_equal(read.images, explicit.images)
    assert float(np.abs(read.images - plain.images).max()) < 1e-3
    again = model.run([World("clean", ELEPHANT)], **QUICK)
    assert np.array_equal(plain.images, again.images)


def test_a_words_map_is_the_mean_of_its_tokens(model):
    maps = attention_maps(model, ELEPHANT, **QUICK)
    positions = list(maps.tokens["clean"].of("elephant"))
    assert len(positions) > 1
    largest = max(maps.maps, key=lambda name: maps.maps[name].sizes["y"])
    word = maps.word("elephant", sites=largest)
    assert np.allclose(
        word.sel(site=largest).values, maps.maps[largest].isel(token=positions).mean("token").values, atol=1e-6
    )
    every = maps.word("elephant")
    assert every.sizes["site"] == len(maps.maps) and every.sizes["y"] == maps.maps[largest].sizes["y"]
    assert [
        int(every.sel(site=name).isel(world=0, seed=0, steps=0, y=0, x=0).notnull().sum()) for name in maps.maps
    ] == [values.sizes["head"] for values in maps.maps.values()]


def test_entropy_is_zero_of_a_point_and_one_of_a_plane(menagerie):
    maps = attention_maps(menagerie, ELEPHANT, num_inference_steps=1)
    site = "unet.up.3.1.cross"
    values = maps.maps[site]
    values[:] = 0
    values[..., maps.tokens["clean"].of("savanna")[0]] = 0.25
    values[:, :, :, :, 3, 5, maps.tokens["clean"].of("photo")[0]] = 0.5
    plane, point = (maps.focus(word, sites=site).squeeze() for word in ("savanna", "photo"))
    tokens = len(maps.tokens["clean"].of("savanna"))
    assert np.isclose(plane.entropy, 1) and np.isclose(plane.mass, 0.25 / tokens)
    assert np.isclose(point.entropy, 0) and np.isclose(point.mass, 0.5 / 256)
    assert maps.focus("photo", per_head=True).entropy.dims == ("site", "world", "seed", "steps", "head")
    assert maps.sharpest("photo").site[0] == site


def test_word_maps_cover_rendered_subjects(menagerie):
    """Seen once, half noised: the map of the word at up.3.1 covers the subject far better than chance, and than another word's."""
    options = looking.LookingOptions(pictures=12)
    pictures = looking.draw_pictures(options)
    images = {each.world.name: each.image for each in pictures}
    maps = attention_maps(menagerie, [each.world for each in pictures], images=images, step=12)
    found = [
        float(mask_iou(looking.word_map(maps, each), each.mask).sel(site="unet.up.3.1.cross")) for each in pictures
    ]
    chance = [iou for name, _, iou in looking.baselines(pictures) if name == looking.CHANCE]
    assert np.mean(found) > 0.4 > 4 * np.mean(chance)


def test_looking_once_is_a_call_of_the_unet(menagerie):
    """By hand: encode, noise, one call; the state that the engine reads is the same."""
    pipeline = menagerie.pipeline
    image, _ = render(Scene("zebra", scene="beach", seed=3))
    run = menagerie.run_once(
        [World("w", "a zebra on the beach")], {"w": image}, step=10, seeds=(4,), record=["unet.noise"]
    )
    pipeline.scheduler.set_timesteps(menagerie.num_inference_steps)
    time = pipeline.scheduler.timesteps[10]
    noisy = pipeline.scheduler.add_noise(menagerie.encode([image]), menagerie.latents([4]), time[None])
    states = pipeline.encode_prompt("a zebra on the beach", "cpu", 1, False)[0]
    with torch.no_grad():
        noise = pipeline.unet(noisy, time, states).sample
    assert np.allclose(run.values["unet.noise"].values[0, 0, 0], noise[0].numpy(), atol=1e-5)


def test_looking_once_works_in_every_family(model):
    side = model.pipeline.unet.config.sample_size * model.pipeline.vae_scale_factor
    image = render(Scene("zebra", seed=3))[0].resize((side, side))
    worlds = [World("a", "a zebra"), World("b", "a lion", [wb.ablate("unet.mid*.cross")])]
    found = attention_maps(model, worlds, images={"a": image, "b": image}, step=2, num_inference_steps=4, seeds=(0, 1))
    assert all(np.allclose(values.sum("token"), 1, atol=1e-5) for values in found.maps.values())
    again = model.run(worlds, **QUICK)
    assert np.isfinite(again.images).all() and not getattr(model.pipeline, "_interrupt", False)


def test_contribution_is_that_of_the_formula(model):
    """By hand from recorded values and probabilities; the contributions of all tokens are the layer's output without its bias."""
    prompts = PromptSet("x", (wb.Prompt(ELEPHANT, "elephant"),))
    found = attention_contribution(model, prompts, AttentionSpec(**QUICK)).clean.sel(prompt=0)
    site = model.sites("unet.mid*.cross")[0]
    run = model.run([World("clean", ELEPHANT)], record=[f"{site.name}.v", f"{site.name}.probs"], **QUICK)
    values, probs = (torch.tensor(run.values[f"{site.name}.{kind}"].values[0]) for kind in ("v", "probs"))
    values = values.unflatten(-1, (site.heads, -1)).transpose(-2, -3)  # seed step head token c
    words = list(wb.attention_maps(model, ELEPHANT, **QUICK).tokens["clean"].of("elephant"))
    out = model.pipeline.unet.get_submodule(f"{site.module.removeprefix('unet.')}.to_out.0").weight
    norm = lambda at: (
        F.linear((probs[..., at] @ values[..., at, :]).transpose(-2, -3).flatten(-2), out).norm(dim=-1).mean((-1, -2))
    )
    whole = norm(list(range(probs.shape[-1])))
    chosen = found.sel(site=site.name)
    assert np.allclose(chosen.sel(metric="contribution"), norm(words).detach(), rtol=1e-4)
    assert np.allclose(chosen.sel(metric="contribution_share"), (norm(words) / whole).detach(), rtol=1e-4)


def test_the_lens_ends_at_the_plain_image_and_begins_at_the_embedding(menagerie):
    found = diffusion_lens(menagerie, "a zebra in the savanna", **QUICK)
    plain = menagerie.run([World("w", "a zebra in the savanna")], **QUICK)
    assert found.layer.values.tolist() == [f"text_encoder.{i}.hidden" for i in range(12)]
    assert float(np.abs(found[-1].values - plain.images[0].values).max()) < 1e-4
    encoder, pipeline = menagerie.pipeline.text_encoder, menagerie.pipeline
    ids = pipeline.tokenizer("a zebra in the savanna", padding="max_length", return_tensors="pt").input_ids
    inner = getattr(encoder, "text_model", encoder)
    with torch.no_grad():
        states = inner.final_layer_norm(encoder(ids, output_hidden_states=True).hidden_states[4])  # behind layer 3
    latents = menagerie.latents([0, 1])
    by_hand = pipeline(
        prompt_embeds=states.repeat(2, 1, 1),
        latents=latents,
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="np",
        negative_prompt=["", ""],
    ).images
    assert np.allclose(found.sel(layer="text_encoder.3.hidden"), by_hand, atol=1e-3)
    assert float(np.abs(found[0] - found[-1]).max()) > 0.1


def test_the_lens_works_in_every_family(model):
    found = diffusion_lens(model, "a zebra", num_inference_steps=1)
    plain = model.run([World("w", "a zebra")], num_inference_steps=1)
    assert float(np.abs(found[-1].values - plain.images[0].values).max()) < 1e-4


def test_localizers_are_compared_layer_by_layer(menagerie, tmp_path):
    spec = TraceSpec(sites=("unet.{mid,up.1.*}.cross",), seeds=(0,), num_inference_steps=2, draws=1, noise_multiple=6)
    prompts = wb.prompt_set("object")[:2]
    found = wb.compare_localizers(menagerie, prompts, spec, folder=tmp_path / "c", batch_size=32)
    windows = wb.LocoGen(wb.open_results(tmp_path / "c" / "locogen"))
    assert dict(found.scores.sizes) == dict(localizer=4, prompt=2, seed=1, layer=4) and found.scores.notnull().all()
    table = found.table(resamples=50)
    assert len(table) == 16 and set(table[table.localizer == "LocoGen"]["rank"]) <= set(range(1, 5))
    assert np.allclose(
        table[table.localizer == "LocoGen"].score, windows.effects(width=1).direct_effect.values.squeeze()
    )
    assert ((table.low <= table.score + 1e-9) & (table.score <= table.high + 1e-9)).mean() > 0.9
    agreement = found.agreement(resamples=50)
    assert len(agreement) == 10 and agreement.spearman.between(-1, 1).all()
    assert found.best("LocoGen", 1) == windows.best(1) and len(found.best("low entropy", 3)) == 3
    assert plot.ranks(found).get_xlabel() == "localizer" and "Spearman" in plot.agreement(found).get_xlabel()
    plt.close("all")


def test_iou_knows_a_perfect_and_an_opposite_map():
    import xarray as xr

    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:6] = True
    maps = xr.DataArray(np.stack([mask, ~mask]).astype(np.float32), dims=("site", "y", "x"))
    assert mask_iou(maps, mask).values.tolist() == [1.0, 0.0]


def test_an_overlay_keeps_the_images_size():
    import xarray as xr

    ax = plot.overlay(
        np.zeros((64, 64, 3)), xr.DataArray(np.random.default_rng(0).random((16, 16)), dims=("y", "x")), title="zebra"
    )
    assert [tuple(image.get_extent()) for image in ax.images] == [(0, 64, 64, 0)] * 2 and ax.get_title() == "zebra"
    plt.close("all")


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (KeyError, "sites='unet.*.self' matches unet.down.0.0.self", dict(sites="unet.*.self")),
        (ValueError, "bins=9: the run has 3 steps; give 1 to 3, or raise num_inference_steps", dict(bins=9)),
        (ValueError, "images and step go together; found step=2 and no images", dict(step=2)),
        (
            ValueError,
            "run_once: no image for the worlds ['clean']; images has ['zebra']",
            dict(images={"zebra": None}, step=2),
        ),
        (ValueError, "images of 8 x 8 pixels: the model draws 64 x 64; resize them", dict(images=8, step=2)),
        (
            ValueError,
            "run_once: step=7, but the run has steps 0 to 2; raise num_inference_steps",
            dict(images=64, step=7),
        ),
    ],
)
def test_bad_input_is_told_before_anything_runs(menagerie, monkeypatch, error, text, call):
    from PIL import Image

    if isinstance(call.get("images"), int):
        call = call | dict(images={"clean": Image.new("RGB", (call["images"],) * 2)})
    monkeypatch.setattr(type(menagerie.pipeline), "__call__", lambda *a, **k: pytest.fail("the pipeline ran"))
    with pytest.raises(error) as raised:
        attention_maps(menagerie, ELEPHANT, num_inference_steps=3, **call)
    assert text in str(raised.value)


def test_a_word_or_layer_that_is_not_there_is_told(menagerie):
    maps = attention_maps(menagerie, ELEPHANT, num_inference_steps=1)
    with pytest.raises(ValueError, match="'zebra' is not in the prompt"):
        maps.word("zebra")
    with pytest.raises(
        KeyError, match=r"sites='unet.up.9.\*' matches no layer whose maps were kept; they are unet.down.0.0.cross, "
    ):
        maps.word("elephant", sites="unet.up.9.*")


def test_a_fold_sees_every_step_behind_the_interventions(model):
    """Two sites read together, one of them changed by an intervention: the fold sees the changed value, of its own world."""
    name = model.sites("unet.mid*.cross")[0].name
    seen = []

    def update(total, step, worlds, values, probs):
        seen.append((step, [world.name for world in worlds]))
        return torch.stack([values.abs().amax((-1, -2)), probs.sum(-1).mean((-1, -2))], -1).float()

    fold = Fold("both", (f"{name}.v", f"{name}.probs"), ("what",), update)
    worlds = [World("clean", "a zebra"), World("zeroed", "a zebra", [wb.ablate(f"{name}.v")])]
    run = model.run(worlds, record=[fold, "unet.noise"], **QUICK)
    assert seen == [(step, ["clean", "clean", "zeroed", "zeroed"]) for step in range(3)]
    both = run.values["both"]
    assert (
        both.dims == ("world", "seed", "what")
        and (both.sel(world="zeroed")[:, 0] == 0).all()
        and (both.sel(world="clean")[:, 0] > 0).all()
    )
    assert np.allclose(both[..., 1], 1, atol=1e-5) and run.values["unet.noise"].sizes["step"] == 3
    plain = model.run(worlds, **QUICK)
    assert float(np.abs(plain.images - run.images).max()) < 1e-3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc; run it on Linux")
def test_the_memory_of_maps_does_not_grow_with_the_steps():
    peaks = memory.peaks_of("runs('menagerie', (2, 10), True)")
    assert abs(peaks[1] - peaks[0]) < 15  # MB; the raw probabilities of 10 steps take 33 more than those of 2
