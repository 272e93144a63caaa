"""Loading, generation, and what the embedded weights are."""

import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline

import workbench as wb
from workbench.menagerie.captions import attribute_prompts
from workbench.menagerie.evaluate import classify
from workbench.models import DATA, GRADER, MANIFEST, MENAGERIE


@pytest.fixture(scope="module")
def model():
    return wb.load()


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(MENAGERIE, tmp_path / "copy"))


def test_the_topology_is_stable_diffusion_1(model):
    pipeline = model.pipeline
    assert type(pipeline) is StableDiffusionPipeline
    assert pipeline.text_encoder.config.num_hidden_layers == 12
    assert sum(name.endswith("attn2") for name, _ in pipeline.unet.named_modules()) == 16
    assert pipeline.unet.config.down_block_types == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert pipeline.unet.config.up_block_types == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert model.num_inference_steps == 25


def test_all_weights_are_safetensors_within_60_megabytes():
    sizes = [path.stat().st_size for folder in (MENAGERIE, GRADER) for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) <= 60e6
    assert not [path for path in DATA.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]


def test_plain_diffusers_and_plain_open_clip_load_them(model):
    pipeline = StableDiffusionPipeline.from_pretrained(MENAGERIE)
    pipeline.set_progress_bar_config(disable=True)
    ours = model.generate("a zebra", seeds=3, num_inference_steps=3)[0]
    theirs = pipeline(
        "a zebra", latents=model.latents([3]), num_inference_steps=3, guidance_scale=model.guidance_scale
    ).images[0]
    assert np.array_equal(ours, theirs)
    grader, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{GRADER}")
    tokens = open_clip.get_tokenizer(f"local-dir:{GRADER}")(["a zebra", "a giraffe on the beach"])
    assert tokens.shape == (2, 32) and tokens.argmax(1).tolist() == [3, 6]
    ours = wb.Scorer().image_embeddings([theirs])
    assert torch.allclose(
        torch.nn.functional.normalize(grader.eval().encode_image(preprocess(theirs)[None]), dim=-1), ours, atol=1e-6
    )


def test_a_seed_is_its_noise_in_any_row(model):
    alone = np.asarray(model.generate("a lion", seeds=2, num_inference_steps=4)[0], int)
    among = np.asarray(
        model.generate(["a cow", "a lion", "a car"], seeds=[0, 2, 5], num_inference_steps=4, batch_size=2)[1], int
    )
    assert np.abs(alone - among).max() <= 1  # a batch sums in another order
    assert torch.equal(model.latents([7, 2])[1:], model.latents([2]))


def test_the_embedded_model_draws_what_it_is_told(model):
    animals = ("zebra", "giraffe", "penguin", "elephant")
    images = model.generate(
        [f"a {animal} in the savanna" for animal in animals for _ in range(2)],
        seeds=list(range(2)) * 4,
        num_inference_steps=12,
    )
    grader = wb.Scorer()
    found = classify(grader, "subject", images)
    assert (found == np.repeat(animals, 2)).mean() >= 0.8
    rows = grader.class_probabilities(images, attribute_prompts("subject"))
    assert torch.allclose(rows.sum(1), torch.ones(8))
    assert (
        grader.similarity(images, [f"a {animal}" for animal in np.repeat(animals, 2)])
        > grader.similarity(images, "a car")
    ).float().mean() > 0.9


def test_generate_says_what_does_not_fit(model):
    with pytest.raises(
        ValueError, match="2 prompts, 1 negative prompts and 3 seeds; give one of each, or equally many"
    ):
        model.generate(["a cow", "a lion"], seeds=[1, 2, 3])
    with pytest.warns(UserWarning, match="prompt of 42 tokens, the text encoder reads 32: 'zebra zebra .* is cut off"):
        model.generate(" ".join(["zebra"] * 40), num_inference_steps=1)


def test_zero_shot_probabilities_marginalise_their_prompts(model):
    grader, images = wb.Scorer(), model.generate("a cow", seeds=[0, 1], num_inference_steps=2)
    single = grader.class_probabilities(images, {"cow": ["a cow"], "car": ["a car"]})
    logits = (
        grader.model.logit_scale.exp() * grader.image_embeddings(images) @ grader.text_embeddings(["a cow", "a car"]).T
    )
    assert torch.allclose(single, logits.softmax(-1), atol=1e-6)
    twice = grader.class_probabilities(images, {"cow": ["a cow"] * 2, "car": ["a car"] * 2})
    assert torch.allclose(single, twice, atol=1e-6)
    with pytest.raises(ValueError, match=r"texts per label \{'cow': 1, 'car': 2\}; give every label equally many"):
        grader.class_probabilities(images, {"cow": ["a cow"], "car": ["a car", "cars"]})


def test_a_missing_weight_file_is_named_with_what_was_expected(copy):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"diffusion_pytorch_model.safetensors is missing: SHA256SUMS expects it with SHA-256 [0-9a-f]{64}, found no file; restore it",
    ):
        wb.load(copy)


def test_an_altered_weight_file_is_named_with_both_hashes(copy):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"vae.*was altered: SHA256SUMS expects SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}; restore it .* or pass verify=False",
    ):
        wb.load(copy)
    assert wb.load(copy, verify=False).num_inference_steps == 25


def test_every_committed_file_is_in_a_manifest():
    for folder in (MENAGERIE, GRADER):
        listed = {line.split("  ", 1)[1] for line in (folder / MANIFEST).read_text().splitlines()}
        assert listed == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {
            MANIFEST
        }
        assert {"README.md"} <= listed


def test_a_live_pipeline_is_taken_as_it_is(model):
    assert wb.load(model.pipeline).pipeline is model.pipeline


def test_a_scorer_without_weights_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"Scorer\('ViT-B-32'\) names no weights; pass pretrained=, a file or one of \['openai', "
    ):
        wb.Scorer("ViT-B-32")
    shutil.copy(GRADER / "open_clip_config.json", tmp_path)
    with pytest.raises(ValueError, match=r"found no weights in .*; put open_clip_model.safetensors there"):
        wb.Scorer(f"local-dir:{tmp_path}")


def test_distances_between_images():
    from workbench.metrics import pixel_distance, ssim

    a, b = np.random.default_rng(0).random((2, 3, 16, 16, 3))
    assert np.allclose(ssim(a, a), 1) and np.allclose(pixel_distance(a, a), 0)
    assert (ssim(a, b) < 0.5).all() and np.allclose(pixel_distance(a, b), np.abs(a - b).mean((1, 2, 3)))
    assert ssim(a, b[:1]).shape == (3,)


def test_a_model_says_what_it_is(model):
    assert "StableDiffusionPipeline" in repr(model) and "unet.mid.cross.probs" in repr(model)
    record = model.record
    assert record["weights"].keys() == {"vae", "text_encoder", "unet"} and record == wb.load().record
