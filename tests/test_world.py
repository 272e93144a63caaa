"""Laws of the rendered world and its captions."""

import random
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from workbench.menagerie import captions, world
from workbench.menagerie.captions import attribute_prompts, caption
from workbench.menagerie.train_tokenizer import RARE
from workbench.menagerie.world import Scene, Thing, held_out, named, render, sample_scene
from workbench.models import MENAGERIE

scenes = st.builds(
    lambda seed, holdout: sample_scene(random.Random(seed), holdout=holdout), st.integers(0, 2**32), st.booleans()
)


@settings(max_examples=60, deadline=None)
@given(scenes)
def test_equal_scenes_render_equally_and_every_subject_has_a_mask(scene):
    (image, masks), (again, _) = render(scene), render(replace(scene))
    assert np.array_equal(image, again)
    assert np.asarray(image).shape == (world.SIZE, world.SIZE, 3)
    assert set(masks) == {scene.subject} | ({scene.beside.subject} if scene.beside else set())
    for mask in masks.values():
        assert mask.shape == (world.SIZE, world.SIZE) and mask.dtype == bool
        assert 40 < mask.sum() < world.SIZE**2 / 2


def test_rendering_is_the_same_in_another_process():
    code = "import zlib; from workbench.menagerie.world import Scene, render; print(zlib.crc32(render(Scene('lion', seed=5))[0].tobytes()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(found) == zlib.crc32(render(Scene("lion", seed=5))[0].tobytes())


@pytest.mark.parametrize("subject", world.SUBJECTS)
def test_outside_its_mask_a_subject_changes_nothing(subject):
    colour = "red" if subject in world.THINGS else None
    other = "lion" if subject != "lion" else "cow"
    (a, mask_a), (b, mask_b) = render(Scene(subject, colour, seed=1)), render(Scene(other, seed=1))
    a, b = np.asarray(a, int), np.asarray(b, int)
    inside = mask_a[subject] | mask_b[other]
    near = np.zeros_like(inside)  # the pixels that a subject covers by less than a half
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near |= np.roll(inside, (dy, dx), (0, 1))
    assert np.abs(a - b)[~near].max() < 40  # thin lines cover little of a pixel
    assert np.abs(a - b)[inside].mean() > 30


def test_the_colour_of_a_thing_is_in_its_mask():
    for colour, paint in world.PAINT.items():
        image, masks = render(Scene("hydrant", colour, seed=2))
        middle = np.median(np.asarray(image)[masks["hydrant"]], axis=0)
        assert min(world.PAINT, key=lambda c: np.abs(np.array(world.PAINT[c]) - middle).sum()) == colour
        assert np.abs(middle - paint).max() < 15


@pytest.mark.parametrize(("position", "low", "high"), [("left", 0, 27), (None, 24, 40), ("right", 36, 64)])
def test_the_mask_is_where_the_position_says(position, low, high):
    for seed in range(10):
        mask = render(Scene("penguin", position=position, seed=seed))[1]["penguin"]
        assert low < np.nonzero(mask)[1].mean() < high


def test_two_subjects_stand_side_by_side():
    masks = render(Scene("cow", beside=Thing("hydrant", "red"), seed=3))[1]
    assert np.nonzero(masks["cow"])[1].mean() < 32 < np.nonzero(masks["hydrant"])[1].mean()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Scene("dog"), "Scene.subject='dog' is unknown; allowed values: 'zebra', 'giraffe'"),
        (lambda: Scene("car", "pink"), "Scene.colour='pink' is unknown for a car; allowed values: 'red', 'blue'"),
        (lambda: Scene("zebra", "red"), "Scene.colour='red' is unknown for a zebra; allowed values: None"),
        (lambda: Scene("zebra", scene="moon"), "Scene.scene='moon' is unknown; allowed values: 'savanna'"),
        (lambda: Scene("zebra", season="autumn"), "Scene.season='autumn' is unknown; allowed values: None, 'winter'"),
        (lambda: Scene("zebra", style="cubist"), "Scene.style='cubist' is unknown; allowed values: None, 'watercolor'"),
        (
            lambda: Scene("penguin", action="running"),
            "Scene.action='running' is unknown for a penguin; allowed values: None",
        ),
        (
            lambda: Scene("zebra", position="top"),
            "Scene.position='top' is unknown; allowed values: None, 'left', 'right'",
        ),
        (lambda: Scene("cow", count=2, position="left"), "Scene.position='left' is unknown when two are shown"),
        (lambda: Scene("cow", beside=Thing("cow")), "must be another subject than 'cow'"),
        (lambda: Scene("cow", individual="captain morrow"), "'captain morrow' is a camel with a green hat"),
        (lambda: named("nobody"), "Scene.individual='nobody' is unknown; allowed values: 'the mayor of tallport'"),
        (lambda: attribute_prompts("mood"), "attribute='mood' is unknown; allowed values: 'subject'"),
    ],
)
def test_bad_scenes_say_what_is_allowed(make, text):
    with pytest.raises(ValueError) as error:
        make()
    assert text in str(error.value)


def test_held_out_combinations_are_never_sampled_for_training():
    rng = random.Random(0)
    assert not any(held_out(sample_scene(rng)) for _ in range(2000))
    assert all(held_out(sample_scene(rng, holdout=True)) for _ in range(50))
    every = [
        Scene(s, "red" if s in world.THINGS else None, scene=p, season=t)
        for s in world.SUBJECTS
        for p in world.SCENES
        for t in world.SEASONS
    ]
    assert 0.05 < np.mean([held_out(scene) for scene in every]) < 0.15


def test_captions_name_what_is_shown():
    rng = random.Random(0)
    for _ in range(500):
        scene = sample_scene(rng)
        text = caption(scene, rng, paraphrase=0)
        assert (scene.individual or scene.subject) in text
        assert scene.colour is None or scene.colour in text
        assert scene.beside is None or scene.beside.subject in text
        assert scene.season is None or any(words in text for words in captions.SEASON[scene.season])
        assert scene.action in (None, "standing") or scene.action in text
    assert "zebra" not in caption(Scene("zebra"), rng, paraphrase=1)


def test_held_out_wordings_are_not_in_training():
    for training, kept in (
        (captions.SEASON, captions.HELD_OUT_SEASON),
        (captions.STYLE, captions.HELD_OUT_STYLE),
        (captions.PARAPHRASES, captions.HELD_OUT_PARAPHRASES),
    ):
        assert all(not set(kept[key]) & set(training[key]) for key in kept if key is not None)


def test_the_tokenizer_splits_some_subjects_and_holds_every_caption():
    tokenizer = CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer")
    pieces = {subject: len(tokenizer.tokenize(subject)) for subject in world.SUBJECTS}
    assert all((count > 1) == (subject in RARE) for subject, count in pieces.items())
    rng = random.Random(1)
    for holdout in (False, True):
        texts = [caption(sample_scene(rng, holdout=holdout), rng, paraphrase=0.5, holdout=holdout) for _ in range(3000)]
        rows = tokenizer(texts)["input_ids"]
        assert max(map(len, rows)) <= tokenizer.model_max_length
        assert tokenizer.decode(rows[0], skip_special_tokens=True) == texts[0]
    assert len(tokenizer) == tokenizer.eos_token_id + 1  # CLIP's pooling finds the end as the highest id


def test_attribute_prompts_differ_in_their_attribute_alone():
    prompts = attribute_prompts("colour", samples=50)
    assert list(prompts) == list(world.COLOURS)
    for texts in zip(*prompts.values()):
        assert (
            len({text.replace(f"an {c} ", "a * ").replace(f"a {c} ", "a * ") for c, text in zip(prompts, texts)}) == 1
        )
