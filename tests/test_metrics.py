"""What is measured: pictures in every form and embeddings by name, label sets, a person's own metrics, flagged pictures, the default."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

import workbench as wb
from workbench.identity import fingerprint
from workbench.loading import DATA, embedded
from workbench.menagerie.world import Scene, render
from workbench.metrics import METRICS, Measures, measured
from workbench.models import GRADER
from workbench.prompts import Prompt, PromptSet
from workbench.scorer import default_scorer, draws_menagerie

LABELS = {"zebra": ("a zebra",), "cow": ("a cow",)}
ZEBRA = Prompt("a zebra", "zebra", "zebra", target="a cow", target_value="cow")


@pytest.fixture(scope="module")
def pictures():
    return [
        render(Scene(animal, scene="savanna", seed=seed))[0] for seed, animal in enumerate(("zebra", "cow", "zebra"))
    ]


def as_floats(pictures) -> np.ndarray:
    return np.stack([np.asarray(picture, np.float32) / 255 for picture in pictures])


def bright(images):
    return images.mean((1, 2, 3))


# A scorer's pictures and embeddings.


def test_pictures_in_any_form_are_scored_alike(scorer, pictures):
    array = as_floats(pictures)
    expected = scorer.image_embeddings(pictures)
    assert expected.shape == (3, 64) and torch.allclose(expected.norm(dim=1), torch.ones(3))
    for images in (array, torch.tensor(array), torch.tensor(array).permute(0, 3, 1, 2), list(array)):
        assert torch.equal(scorer.image_embeddings(images), expected)
        assert torch.equal(scorer.similarity(images, "a zebra"), scorer.similarity(pictures, "a zebra"))
        assert torch.equal(scorer.class_probabilities(images, LABELS), scorer.class_probabilities(pictures, LABELS))
    assert torch.allclose(scorer.image_embeddings(pictures[0])[0], expected[0], atol=1e-5)


def test_embeddings_have_their_own_argument(scorer, pictures):
    seen = scorer.image_embeddings(pictures)
    assert torch.equal(scorer.similarity(embeddings=seen, texts="a cow"), scorer.similarity(pictures, "a cow"))
    assert torch.equal(
        scorer.class_probabilities(embeddings=seen, labels=LABELS), scorer.class_probabilities(pictures, LABELS)
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s: s.similarity(torch.zeros(3, 64), "a cow"), "images of shape (3, 64): neither layout fits"),
        (lambda s: s.similarity(texts="a cow"), "give images, or their embeddings= by that name: one of both"),
        (
            lambda s: s.similarity(np.ones((1, 8, 8, 3)), "a cow", embeddings=torch.zeros(1, 64)),
            "give images, or their embeddings=",
        ),
        (
            lambda s: s.similarity(embeddings=torch.zeros(3, 8), texts="a cow"),
            "embeddings=torch.Size([3, 8]): give a tensor (image, channel) of 64 channels, as image_embeddings returns it",
        ),
        (lambda s: s.similarity(embeddings=torch.zeros(2, 3, 8, 8), texts="a cow"), "pictures go into images"),
        (
            lambda s: s.similarity(np.ones((3, 8, 8, 3)), ["a cow", "a car"]),
            "similarity: 3 images and 2 texts; give one",
        ),
        (lambda s: s.similarity(np.ones((3, 8, 8, 3)), 3), "texts=3: give a text"),
        (lambda s: s.similarity([], "a cow"), "images holds none; give at least one"),
        (
            lambda s: s.class_probabilities(np.ones((1, 8, 8, 3)), {"cow": "a cow"}),
            "class_probabilities has the labels ['cow'], and the probability of an only label is always 1; give texts for",
        ),
        (lambda s: s.class_probabilities(np.ones((1, 8, 8, 3)), {}), "the probability of an only label is always 1"),
        (lambda s: s.class_probabilities(np.ones((1, 8, 8, 3))), "class_probabilities: labels=None: give a mapping"),
        (
            lambda s: s.class_probabilities(np.ones((1, 8, 8, 3)), ["cow", "car"]),
            "class_probabilities: labels=['cow', 'car']: give a mapping",
        ),
        (
            lambda s: s.image_embeddings([Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8))]),
            "images [1] of 2 are black through and through, as a safety checker's are; leave them out, or load the model with",
        ),
    ],
)
def test_what_cannot_be_scored_is_told(scorer, call, text):
    with pytest.raises(ValueError) as error:
        call(scorer)
    assert text in str(error.value)


def test_a_labels_text_given_as_a_string_is_one(scorer, pictures):
    strings = {"zebra": "a zebra", "cow": "a cow"}
    assert torch.equal(scorer.class_probabilities(pictures, strings), scorer.class_probabilities(pictures, LABELS))
    assert torch.equal(scorer.text_embeddings("a zebra"), scorer.text_embeddings(["a zebra"]))


# Which scorer.


def test_the_embedded_grader_is_the_default_of_the_embedded_model_alone(tiny):
    model = wb.load(tiny)
    assert default_scorer(wb.load()).record["model"] == "the menagerie's grader"
    with pytest.raises(ValueError) as error:
        default_scorer(model)
    assert f'this is another {type(tiny).__name__}; name a scorer, as scorer=wb.Scorer("ViT-B-32"' in str(error.value)
    with pytest.raises(ValueError, match="scorer=None: the embedded grader knows the embedded model's world alone"):
        Measures.of(None, model)
    assert Measures.of(wb.Scorer(), model).scorer.record["model"] == "the menagerie's grader"  # when it is named


@pytest.mark.parametrize("name", embedded())
def test_every_embedded_model_draws_the_graders_world(name):
    vae = AutoencoderKL.from_pretrained(DATA / name / "vae")
    assert draws_menagerie(SimpleNamespace(vae=vae)) and not draws_menagerie(SimpleNamespace())


def test_an_edited_or_coarse_embedded_model_is_still_its_own():
    half = wb.load(dtype="float16").pipeline
    with torch.no_grad():
        for parameter in (*half.unet.parameters(), *half.text_encoder.parameters()):
            parameter.mul_(1.1)
    assert draws_menagerie(half)
    with torch.no_grad():
        half.vae.decoder.conv_out.weight.mul_(1.5)
    assert not draws_menagerie(half)


def test_folders_are_told_what_they_lack(tmp_path, monkeypatch):
    files = {path.name: path for path in GRADER.iterdir()}

    def folder(*names):
        made = tmp_path / "-".join(["clip", *names])
        made.mkdir()
        for name in names:
            (made / name).write_bytes(files[name].read_bytes())
        return made

    weights, config = "open_clip_model.safetensors", "open_clip_config.json"
    for names, text in (
        ((weights,), f"found no {config} in"),
        ((config,), "found no weights in"),
        ((weights, config), "found no tokenizer in"),
    ):
        path = folder(*names)
        for given in (path, f"local-dir:{path}"):
            with pytest.raises(ValueError) as error:
                wb.Scorer(given)
            assert text in str(error.value) and str(path) in str(error.value)
    whole = folder(weights, config, *(name for name in files if name.startswith(("tokenizer", "vocab", "merges"))))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = wb.Scorer(f"~/{whole.name}")
    assert found.record["weights"] == fingerprint(wb.Scorer().model)
    with pytest.raises(ValueError, match=r"brings its own weights, but pretrained='openai'; leave pretrained out"):
        wb.Scorer(whole, pretrained="openai")
    (whole / weights).rename(whole / "weights.pt")  # which open_clip does not look for: random weights would score
    with pytest.raises(ValueError, match=r"found no weights in .*\(.safetensors, .bin, .pth are read\)"):
        wb.Scorer(whole)


@pytest.mark.parametrize(
    ("model", "pretrained", "text"),
    [
        ("ViT-B/32", None, "Scorer('ViT-B/32') names no weights; pass pretrained=, a file or one of ['openai', "),
        (
            "ViT-B-32",
            "opneai",
            "Scorer('ViT-B-32', pretrained='opneai'): no such file, and no such tag; the tags are [",
        ),
        (
            "ViT-B-33",
            "openai",
            "Scorer('ViT-B-33'): open_clip has no such model, and no such folder exists; the nearest are",
        ),
        (
            "local-dir:/nowhere",
            None,
            "Scorer('local-dir:/nowhere'): /nowhere is no folder; name one with open_clip_config",
        ),
    ],
)
def test_models_and_weights_that_do_not_exist(model, pretrained, text):
    with pytest.raises(ValueError) as error:
        wb.Scorer(model, pretrained=pretrained)
    assert text in str(error.value)


# A person's own metrics.


def test_an_own_metric_stands_where_a_scorer_stands(scorer, pictures):
    images = as_floats(pictures)
    metric = wb.Metric("brightness", bright, unit="share of white")
    alone = measured(metric, images, images, ZEBRA, LABELS)
    assert list(alone) == ["pixel_distance", "ssim", "brightness"] and np.allclose(
        alone["brightness"], images.mean((1, 2, 3))
    )
    both = measured(Measures.of([scorer, metric]), images, images, ZEBRA, LABELS)
    plain = measured(scorer, images, images, ZEBRA, LABELS)
    assert list(both) == [*plain, "brightness"] and all(np.array_equal(both[name], plain[name]) for name in plain)
    assert set(plain) == {*METRICS, "target_probability", "target_similarity"}
    named = measured(bright, images, images, ZEBRA, LABELS)
    assert np.array_equal(named["bright"], alone["brightness"])


def test_a_metric_may_return_tensors_lists_and_nan():
    images = np.full((2, 4, 4, 3), 0.5, np.float32)
    for value in (torch.tensor([1.0, 2.0]), [1, 2], np.array([1, 2]), (1.0, 2.0)):
        assert wb.Metric("m", lambda images, value=value: value)(images).tolist() == [1.0, 2.0]
    assert np.isnan(wb.Metric("m", lambda images: [np.nan, 1.0])(images)).tolist() == [True, False]
    found = wb.Metric("m", lambda images: [image.size[0] for image in wb.as_pil(images)])
    assert found(torch.zeros(2, 3, 5, 7)).tolist() == [7, 7]


@pytest.mark.parametrize("value", [1.0, [1.0], [[1.0, 2.0]], ["a", "b"], [np.inf, 1.0], None])
def test_what_a_metric_must_not_return(value):
    metric = wb.Metric("tail length", lambda images: value)
    with pytest.raises(
        ValueError, match=r"metric 'tail length' returned .* for 2 images; return one finite number for each"
    ):
        metric(np.zeros((2, 4, 4, 3)))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda s: wb.Metric("similarity", bright),
            "Metric(name='similarity'): give a name of its own; taken are probability",
        ),
        (lambda s: wb.Metric("", bright), "Metric(name=''): give a name of its own"),
        (
            lambda s: wb.Metric("m", 3),
            "Metric('m', 3): give a function of images (image, y, x, colour) that returns one number",
        ),
        (
            lambda s: Measures.of(lambda images: images),
            "give a wb.Scorer, or a measure of your own with a name, as wb.Metric('",
        ),
        (lambda s: Measures.of("ViT-B-32"), "scorer='ViT-B-32': give a wb.Scorer"),
        (lambda s: Measures.of([s, s]), "give at most one Scorer, and metrics of different names; found 2 scorers"),
        (lambda s: Measures.of([bright, bright]), "found 0 scorers and the metrics ['bright', 'bright']"),
        (lambda s: Measures.of([]), "scorer=[]: give at most one Scorer"),
    ],
)
def test_measures_that_do_not_fit(scorer, call, text):
    with pytest.raises(ValueError) as error:
        call(scorer)
    assert text in str(error.value)


def brightness_above(threshold: float):
    return lambda images: (images.mean((1, 2, 3)) > threshold).astype(float)


def test_metrics_are_told_apart_by_their_code_and_settings(scorer):
    record = lambda function, **more: wb.Metric("m", function, **more).record
    assert record(bright) == record(bright) and record(bright) != record(lambda images: images.mean((1, 2, 3)) + 1)
    assert record(brightness_above(0.5)) == record(brightness_above(0.5)) != record(brightness_above(0.6))
    assert record(functools.partial(bright)) != record(functools.partial(bright, 1))
    assert record(bright, version="a") != record(bright, version="b") and record(bright, unit="x") != record(bright)
    assert Measures.of(scorer).record == scorer.record
    both = Measures.of([scorer, bright]).record
    assert both["weights"] == scorer.record["weights"] and both["metrics"][0]["metric"] == "bright"
    json.dumps(both)


def test_a_metrics_record_depends_on_no_order_and_no_address():
    ones, others = frozenset([0, 8]), frozenset([8, 0])
    assert repr(ones) != repr(others)  # equal sets whose order is another
    made = lambda held: lambda images: [float(len(held)) for _ in images]
    assert wb.Metric("m", made(ones)).record == wb.Metric("m", made(others)).record
    assert wb.Metric("m", made(object())).record == wb.Metric("m", made(object())).record
    assert wb.Metric("m", made(ones)).record != wb.Metric("m", made(frozenset([1]))).record


# Labels, values, flags.


def test_prompts_without_values_are_measured_by_similarity(scorer, pictures):
    images = as_floats(pictures)
    found = measured(scorer, images, images, Prompt("a zebra"), {})
    assert list(found) == ["similarity", "pixel_distance", "ssim"]
    target = measured(scorer, images, images, Prompt("a zebra", target="a cow"), {})
    assert "target_similarity" in target and "target_probability" not in target


def test_a_set_of_one_label_is_refused_before_anything_is_drawn(scorer):
    one = PromptSet("mine", (Prompt("a red car", "red", "red"),), {"red": "a photo of red"})
    with pytest.raises(
        ValueError, match=r"prompt set 'mine' has the labels \['red'\], and the probability of an only label"
    ):
        Measures.of(scorer).check(one)
    Measures.of(bright).check(one)  # which asks for no probability
    Measures.of(scorer).check(PromptSet("mine", (Prompt("a red car"),)))
    Measures.of(scorer).check(wb.prompt_set("object"))


def test_black_pictures_are_flagged_not_scored(scorer, pictures):
    images = as_floats(pictures)
    clean = measured(scorer, images, images, ZEBRA, LABELS)
    hidden = images.copy()
    hidden[1] = 0
    metric = wb.Metric("brightness", bright)
    with pytest.warns(UserWarning, match="1 of 3 images were withheld by a safety checker .* their metrics are NaN"):
        found = measured(Measures.of([scorer, metric]), hidden, images, ZEBRA, LABELS)
    for name, values in found.items():
        assert np.isnan(values).tolist() == [False, True, False]
        if name in clean:
            assert np.allclose(values[[0, 2]], clean[name][[0, 2]], atol=1e-6)
    with pytest.warns(UserWarning, match="3 of 3 images were withheld"):
        assert all(np.isnan(values).all() for values in measured(scorer, 0 * images, images, ZEBRA, LABELS).values())
    with pytest.warns(UserWarning, match="1 of 3 images were withheld"):
        told = measured(scorer, images, images, ZEBRA, LABELS, flagged=[False, False, True])
    assert np.isnan(told["similarity"]).tolist() == [False, False, True]
    dark = measured(scorer, images, hidden, ZEBRA, LABELS)  # a reference that was withheld
    assert np.isnan(dark["ssim"]).tolist() == [False, True, False] and not np.isnan(dark["similarity"]).any()


def test_shapes_that_do_not_fit_one_another(scorer, pictures):
    images = as_floats(pictures)
    assert np.allclose(measured(bright, images, images[:1], ZEBRA, LABELS)["pixel_distance"][0], 0)
    for reference, more in ((images[:2], {}), (images[:, :32], {}), (images, {"flagged": [True]})):
        with pytest.raises(
            ValueError, match=r"measured: images \(3, 64, 64, 3\), reference .* do not fit; give as many"
        ):
            measured(bright, images, reference, ZEBRA, LABELS, **more)
