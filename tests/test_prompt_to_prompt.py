"""Prompt-to-Prompt: mappers by hand, laws on random pipelines of every family, real images, and what raises."""

import io
import json
from itertools import combinations

import conftest
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPTokenizer

import workbench as wb
from workbench import LocalBlend, World, align, invert, prompt_to_prompt
from workbench.engine import Settings, prepare
from workbench.interventions import Intervention
from workbench.menagerie.world import Scene, render
from workbench.models import MENAGERIE
from workbench.p2p import alignment
from workbench.p2p.edit import up_to
from workbench.text import tokenize

ZEBRA, GIRAFFE, ELEPHANT = "a zebra in the savanna", "a giraffe in the savanna", "an elephant in the savanna"
BIG = "a big giraffe in the savanna"
QUICK = dict(num_inference_steps=3, guidance_scale=3.0, seeds=(0, 1), progress=False)
EVERY = dict(cross_replace_steps=1.0, self_replace_steps=1.0, self_resolution=1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(MENAGERIE / "tokenizer")


def apart(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


# The mapper, by hand. Tokens of the menagerie: elephant = el e p h ant, flamingo and hydrant of several, zebra, giraffe, lion of one.


def moved(found) -> dict[int, dict[int, float]]:
    """Target token: source token: share."""
    return {
        int(j): {int(i): float(found.matrix[i, j]) for i in np.flatnonzero(found.matrix[:, j])}
        for j in range(len(found.matrix))
    }


def test_words_of_one_token_swap_by_the_identity(tokenizer):
    found = align(tokenizer, ZEBRA, GIRAFFE)
    assert np.array_equal(found.matrix, np.eye(len(found.matrix)))
    assert ("zebra", "giraffe") in found.pairs and found.new == ()


def test_unequal_counts_are_averaged_and_what_follows_is_shifted(tokenizer):
    length = tokenizer.model_max_length
    found = align(
        tokenizer, ZEBRA, ELEPHANT
    )  # start a zebra in the savanna end -> start an el e p h ant in the savanna end
    expected = {
        0: {0: 1.0},
        1: {1: 1.0},
        **{j: {2: 0.2} for j in range(2, 7)},
        **{j: {j - 4: 1.0} for j in range(7, length - 1)},
    }
    assert moved(found) == expected | {length - 1: {i: 1.0 for i in range(length - 5, length)}}
    back = moved(align(tokenizer, ELEPHANT, ZEBRA))
    assert back == {
        0: {0: 1.0},
        1: {1: 1.0},
        2: {i: 1.0 for i in range(2, 7)},
        **{j: {j + 4: 1.0} for j in range(3, length - 4)},
        **{j: {} for j in range(length - 4, length)},
    }


def test_several_words_are_replaced_and_punctuation_stays(tokenizer):
    found = align(
        tokenizer, "a photo of a zebra, running, in the savanna!", "a photo of an elephant, standing, in the city!"
    )
    pairs = [pair for pair in found.pairs if pair[0] != pair[1]]
    assert pairs == [("a", "an"), ("zebra", "elephant"), ("running", "standing"), ("savanna", "city")]
    assert [pair for pair in found.pairs if pair[0] == ","] == [(",", ","), (",", ",")] and ("!", "!") in found.pairs
    source, target = found.source, found.target
    for word in (",", "!"):
        columns = moved(found)
        where = [j for j, piece in enumerate(target.pieces) if piece == word]
        assert [columns[j] for j in where] == [{i: 1.0} for i, piece in enumerate(source.pieces) if piece == word]


@pytest.mark.parametrize(
    ("source", "target", "new"),
    [
        ("a zebra", "a photo of a zebra", ["photo", "of", "a"]),  # in front: of two articles the earlier is the same
        ("a zebra", "a zebra, not a zebra", [",", "not", "a", "zebra"]),  # behind, the same words again
        ("a zebra", "a well-known zebra", ["well-known"]),
        ("a zebra in the savanna", "a zebra eating grass in the savanna", ["eating", "grass"]),  # inside
        ("a zebra in the savanna", "a zebra in the savanna, at night", [",", "at", "night"]),  # behind
        ("a lion and a lion", "a lion and a red lion", ["red"]),  # repeated words
        ("a zebra, running", "a zebra running", []),  # punctuation taken away
        (ZEBRA, ZEBRA, []),
    ],
)
def test_refining_aligns_what_is_common_and_leaves_the_rest_its_own(tokenizer, source, target, new):
    found = align(tokenizer, source, target, "refine")
    added = [(word, found.target.of(word)) for word in new]
    assert [pair[1] for pair in found.pairs if not pair[0]] == new
    columns = moved(found)
    for word, positions in added:
        assert any(not columns[j] for j in positions), word
    kept = [j for j in range(1, found.target.end) if columns[j]]
    assert [found.target.ids[j] for j in kept] == [
        found.source.ids[next(iter(columns[j]))] for j in kept
    ]  # equal tokens only
    assert [next(iter(columns[j])) for j in kept] == sorted(next(iter(columns[j])) for j in kept)  # in order
    assert columns[found.target.end] == {found.source.end: 1.0} and columns[0] == {0: 1.0}
    assert set(found.new) == {j for j, column in columns.items() if not column}


def test_text_that_is_appended_leaves_the_original_its_attention(tokenizer):
    source = "a zebra next to a lion"
    for more in (", a zebra", " and a zebra next to a lion", " a a a lion lion", " zebra next to a lion"):
        found = align(tokenizer, source, source + more, "refine")
        columns = moved(found)
        assert [columns[j] for j in range(found.source.end)] == [{j: 1.0} for j in range(found.source.end)]
        assert set(range(found.source.end, found.target.end)) <= set(found.new)


@given(st.lists(st.sampled_from("abc"), max_size=5), st.lists(st.sampled_from("abc"), max_size=6))
def test_of_equally_good_alignments_the_earliest(a, b):
    """Among all alignments of the greatest number of equal words: the last target place is the smallest, then the one before, ..."""
    best, size = [], -1
    for count in range(min(len(a), len(b)) + 1):
        pairs = [
            list(zip(i, j))
            for i in combinations(range(len(a)), count)
            for j in combinations(range(len(b)), count)
            if all(a[x] == b[y] for x, y in zip(i, j))
        ]
        best, size = (pairs, count) if pairs else (best, size)
    latest_first = lambda pairs: [place for pair in reversed(pairs) for place in reversed(pair)]
    assert alignment.common(a, b) == min(best, key=latest_first)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a black-and-white zebra", "a striped zebra"),
        ("a striped zebra", "a black-and-white zebra"),
        ("a zebra-like cow", "a lion-like cow"),
        ("a T-shirt", "a shirt"),
        ("the lion\u2019s car", "the cow\u2019s car"),
    ],
)
def test_a_hyphenated_word_is_one(tokenizer, source, target):
    found = align(tokenizer, source, target)
    assert [pair for pair in found.pairs if pair[0] != pair[1]] == [
        (a, b) for a, b in zip(source.split(), target.split()) if a != b
    ]
    assert np.allclose(found.matrix.sum(1), 1)
    for word in set(source.split()) & set(target.split()):
        rows, columns = found.source.of(word), found.target.of(word)
        assert np.array_equal(found.matrix[np.ix_(rows, columns)], np.eye(len(rows)))


def test_different_numbers_of_words_are_shown(tokenizer):
    with pytest.raises(ValueError) as error:
        align(tokenizer, "a zebra, running", "a zebra running")
    assert "(words: a | zebra | , | running, and a | zebra | running)" in str(error.value)


def test_a_prompt_without_a_start_token_is_aligned():
    from test_text import sentencepiece

    old, new = (tokenize(sentencepiece(), text, length=9) for text in ("a zebra", "in a elephant"))
    found = alignment.align_tokens(old, new, "refine")
    assert found.new == (0, 2, 3) and found.matrix[0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert found.matrix[2, 4] == 1  # end to end
    assert alignment.align_tokens(old, old).matrix.tolist() == np.eye(9).tolist()


def test_a_textual_inversion_is_aligned_with_all_its_vectors():
    model = wb.load(conftest.sd1())
    model.pipeline.load_textual_inversion({"<cat>": torch.randn(3, 16)}, token="<cat>")
    edit = prompt_to_prompt(model, "a zebra, running", "a <cat>, running", "refine", cross_replace_steps=1.0)
    found = edit.alignments["edited"]
    assert [found.target.pieces[j] for j in found.new if j <= found.target.end] == ["<cat>", "<cat>_1", "<cat>_2"]
    (i,), (j,) = found.source.of("running"), found.target.of("running")
    assert j == i + 2 and found.matrix[i, j] == 1


def test_no_attention_is_lost_in_a_replacement(tokenizer):
    names = ("zebra", "elephant", "flamingo", "lion's", "hydrant")  # of different numbers of tokens
    prompts = [f"a {name}, next to a {other}!" for name in names for other in names]
    for source in prompts:
        for target in prompts[::6]:
            found = align(tokenizer, source, target)
            assert np.allclose(found.matrix.sum(1), 1) and found.matrix[0, 0] == 1
            assert found.matrix[:, found.target.end].tolist() == np.eye(len(found.matrix))[found.source.end].tolist()


def test_an_alignment_is_printed_with_its_words(tokenizer):
    said = repr(align(tokenizer, ZEBRA, ELEPHANT))
    assert "zebra -> elephant" in said and "0.2 x zebra (2)" in said and "a -> an" in said
    assert "its own" in repr(align(tokenizer, "a zebra", "a big zebra", "refine"))


# The laws of the edit.


def test_equal_prompts_give_equal_images_and_attention_is_the_sources(model):
    sites = ["unet.mid*.cross.probs", up_to(model, "self", 1.0, "")[0].name]
    for kind in ("replace", "refine"):
        run = model.run(prompt_to_prompt(model, ELEPHANT, ELEPHANT, kind, **EVERY), record=sites, **QUICK)
        assert apart(run.images.sel(world="edited"), run.images.sel(world="source")) < 1e-4
        for values in run.values.values():
            assert np.array_equal(values.sel(world="edited"), values.sel(world="source"))


def test_nothing_injected_is_the_plain_target_and_everything_is_not(model):
    none = prompt_to_prompt(model, ZEBRA, GIRAFFE, cross_replace_steps=0.0, self_replace_steps=0.0)
    assert none[1].interventions == ()
    plain = model.run([World("source", ZEBRA), World("edited", GIRAFFE)], **QUICK)
    assert np.array_equal(model.run(none, **QUICK).images, plain.images)
    whole = model.run(prompt_to_prompt(model, ZEBRA, GIRAFFE, **EVERY), **QUICK)
    assert apart(whole.images.sel(world="edited"), plain.images.sel(world="edited")) > 1e-4


def test_mapped_attention_is_the_sources_times_the_mapper(model):
    """In every layer and step; new words keep their own; a reweighted column is that times c."""
    names = [site.name for site in model.sites("unet.*.cross.probs")]
    edits = {"replace": ELEPHANT, "refine": "a big zebra in the savanna"}
    for kind, target in edits.items():
        word = target.split()[1]
        edit = prompt_to_prompt(
            model, ZEBRA, target, kind, reweight={"savanna": 2.0}, cross_replace_steps=1.0, self_replace_steps=0.0
        )
        run = model.run(edit, record=names, **QUICK)
        found = edit.alignments["edited"]
        columns = np.full(len(found.matrix), 1.0)
        columns[list(found.target.of("savanna"))] = 2.0
        taken = [j for j in range(len(found.matrix)) if j not in found.new]
        for values in run.values.values():
            source, own = values.sel(world="source").values, values.sel(world="edited").values
            assert np.allclose(own[..., taken], (source @ found.matrix * columns)[..., taken], atol=1e-5)
            new = list(found.target.of(word))
            assert np.allclose(own[..., new], (source @ found.matrix)[..., new], atol=1e-5) == (kind == "replace")
        assert run.fired == {("edited", 0): 3 * len(names), ("edited", 1): 3 * len(names)}


def test_reweighting_by_one_changes_nothing(model):
    one, two = (
        prompt_to_prompt(model, ZEBRA, kind="reweight", reweight={"zebra": c}, cross_replace_steps=1.0)
        for c in (1.0, -2.0)
    )
    run = model.run(one, **QUICK)
    assert apart(run.images.sel(world="edited"), run.images.sel(world="source")) < 1e-4
    run = model.run(two, **QUICK)
    assert apart(run.images.sel(world="edited"), run.images.sel(world="source")) > 1e-4


def test_words_have_schedules_of_their_own(menagerie):
    edit = prompt_to_prompt(
        menagerie,
        ZEBRA,
        GIRAFFE,
        cross_replace_steps={"default_": 1.0, "giraffe": wb.window(0.0, 0.5)},
        self_replace_steps=0.0,
    )
    site = "unet.mid.cross.probs"
    run = menagerie.run(edit, record=[site], num_inference_steps=4, seeds=(0,), progress=False)
    values, giraffe = run.values[site], edit.alignments["edited"].target.of("giraffe")[0]
    same = lambda step, token: np.array_equal(
        *(values.sel(world=w).isel(step=step, token=token) for w in ("edited", "source"))
    )
    assert [same(step, giraffe) for step in range(4)] == [True, True, False, False]
    assert all(same(step, token) for step in range(4) for token in range(values.sizes["token"]) if token != giraffe)


def test_only_conditional_rows_are_touched(model):
    """The unconditional rows of the first step, bit for bit those of a batch without interventions on the same attention path."""
    edit = prompt_to_prompt(model, ZEBRA, ELEPHANT, reweight={"savanna": 3.0}, **EVERY)
    assert {action.halves for action in prepare(model, list(edit), Settings(3, 3.0)).actions} <= {("cond",)}
    plain, seen = [World(world.name, world.prompt) for world in edit], []
    handle = model.pipeline.unet.conv_out.register_forward_hook(lambda module, given, out: seen.append(out.clone()))
    try:
        edited = model.run(edit, record=["unet.*.probs"], **QUICK)
        untouched = model.run(plain, record=["unet.*.probs"], **QUICK)
    finally:
        handle.remove()
    with_edit, without = seen[0], seen[3]
    assert torch.equal(with_edit[:4], without[:4]) and not torch.equal(with_edit[6:], without[6:])
    assert torch.equal(with_edit[4:6], without[4:6])  # the source's conditional rows
    assert np.array_equal(edited.images.sel(world="source"), untouched.images.sel(world="source"))


def test_the_source_is_that_of_a_run_without_the_edit_but_for_rounding(model):
    edit = prompt_to_prompt(model, ZEBRA, ELEPHANT, blend=LocalBlend(("zebra", "elephant"), resolution=1.0), **EVERY)
    pair, alone = model.run(edit, **QUICK), model.run([World("source", ZEBRA)], **QUICK)
    assert apart(pair.images.sel(world="source"), alone.images.sel(world="source")) < 1e-4


def test_several_targets_share_a_source(model):
    edit = prompt_to_prompt(model, ZEBRA, {"g": GIRAFFE, "e": ELEPHANT}, **EVERY)
    run = model.run(edit, **QUICK)
    assert [world.name for world in edit] == ["source", "g", "e"] and list(edit.alignments) == ["g", "e"]
    single = model.run(prompt_to_prompt(model, ZEBRA, ELEPHANT, **EVERY), **QUICK)
    assert apart(run.images.sel(world="e"), single.images.sel(world="edited")) < 1e-4
    assert [world.name for world in prompt_to_prompt(model, ZEBRA, [GIRAFFE, ELEPHANT])] == [
        "source",
        "edited 0",
        "edited 1",
    ]


def test_an_edit_is_data_and_prints(menagerie):
    blend = LocalBlend(("zebra", "giraffe"), subtract="savanna", resolution=0.5)
    edit = prompt_to_prompt(menagerie, ZEBRA, GIRAFFE, blend=blend, reweight={"savanna": 2.0})
    world = edit[1]
    assert World.from_json(world.to_json()) == world and hash(World.from_json(world.to_json())) == hash(world)
    assert all(
        word in repr(edit)
        for word in ("zebra -> giraffe", "MixAttention", "Array(32 x 32", "BlendLatents", "steps=0-0.8")
    )
    array = wb.set_to("unet.mid.cross", np.arange(6).reshape(2, 3) / 7)
    assert Intervention.from_json(array.to_json()) == array
    assert torch.equal(array.rule.values.tensor, torch.arange(6).reshape(2, 3) / 7)
    assert json.loads(world.to_json())["interventions"][0]["rule"]["name"] == "MixAttention"


def test_it_works_at_64_by_64_latents():
    """Of a random pipeline whose latents are as large as Stable Diffusion's: the maps are chosen by their size."""
    from conftest import sd

    torch.manual_seed(0)
    pipeline = sd(
        dict(
            sample_size=64,
            block_out_channels=(8, 8, 16, 16),
            cross_attention_dim=16,
            attention_head_dim=1,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
    )
    model = wb.load(pipeline)
    edit = prompt_to_prompt(model, ZEBRA, GIRAFFE, blend=LocalBlend(("zebra", "giraffe"), start=0.0))
    mix, blend = edit[1].interventions[1:]
    assert {model.sites(name)[0].sizes[1] for name in mix.sites} == {16 * 16, 8 * 8}
    assert {model.sites(name)[0].sizes[1] for name in blend.rule.maps} == {16 * 16}
    run = model.run(edit, num_inference_steps=2, seeds=(0,), progress=False)
    assert run.images.sizes["y"] == 128 and np.isfinite(run.images).all()
    (photo,) = invert(model, [picture(model)], [ZEBRA], num_inference_steps=2, guidance_scale=3.0, inner_steps=1)
    assert photo.latents.shape == (4, 64, 64)
    real = photo.run(model, edit, progress=False)
    assert (
        real.images.sizes["y"] == 128 and apart(real.images.sel(world="source"), run.images.sel(world="source")) > 0.01
    )


# Local blend.


def by_hand(maps, tokens, threshold, side):
    """One world's region (y, x) from its maps (step, head of any layer, pixel, token)."""
    mean = torch.tensor(maps[..., list(tokens)].mean((0, 1, 3)))
    square = mean.reshape(1, 1, round(len(mean) ** 0.5), -1)
    fine = F.interpolate(F.max_pool2d(square, 3, 1, 1), size=(side, side))[0, 0]
    return (fine / fine.max() > threshold).numpy()


def test_outside_the_mask_the_latents_are_the_sources(model):
    """At every step that blends; the mask is that of the formula, from the recorded maps."""
    found = up_to(model, "cross", 1.0, "", only=True)
    blend = LocalBlend(("zebra", "giraffe"), threshold=0.99, start=0.5, resolution=1.0)
    edit = prompt_to_prompt(model, ZEBRA, GIRAFFE, blend=blend)
    run = model.run(edit, record=["latents", *(site.name for site in found)], **QUICK | dict(num_inference_steps=4))
    rule, latents, partial = edit[1].interventions[-1].rule, run.values["latents"], 0
    assert rule.maps == tuple(site.name for site in found) and run.fired["edited", 2] == 2
    for seed in (0, 1):
        for step in range(4):
            mask, side = False, latents.sizes["y"]
            for world, tokens in (("edited", rule.own), ("source", rule.source)):
                maps = [run.values[name].sel(world=world, seed=seed).values[: step + 1] for name in rule.maps]
                mask = mask | by_hand(np.concatenate(maps, 1), tokens, 0.99, side)
            own, source = (latents.sel(world=world, seed=seed).isel(step=step).values for world in ("edited", "source"))
            if step < 2:
                assert (own != source).all((-1, -2)).any()
                continue
            assert np.array_equal(own[:, ~mask], source[:, ~mask]) and (own[:, mask] != source[:, mask]).mean() > 0.9
            partial += 0 < mask.mean() < 1
    assert partial


def test_subtracted_words_are_taken_out(menagerie):
    words = ("zebra", "giraffe")
    subtracted = ({}, dict(subtract="savanna", subtract_threshold=0.6), dict(subtract=words, subtract_threshold=0.0))
    blends = [LocalBlend(words, resolution=1.0, threshold=0.6, **more) for more in subtracted]
    edits = [prompt_to_prompt(menagerie, ZEBRA, GIRAFFE, blend=blend) for blend in blends]
    free = []
    for edit in edits:
        run = menagerie.run(edit, record=["latents"], num_inference_steps=4, seeds=(0,), progress=False)
        last = run.values["latents"].isel(step=-1, seed=0)
        free.append((last.sel(world="edited") != last.sel(world="source")).any("channel").values)
    assert free[0].sum() > free[1].sum() > free[2].sum() == 0


# Real images.


def picture(model, seed=3):
    side = model.pipeline.unet.config.sample_size * model.pipeline.vae_scale_factor
    return render(Scene("zebra", scene="savanna", seed=seed))[0].resize((side, side))


def test_inversion_runs_the_sampler_backwards(model):
    """Without noise to predict, the way back from the inverted latents is exact."""
    before = [parameter.clone() for parameter in model.pipeline.unet.conv_out.parameters()]
    with torch.no_grad():
        for parameter in model.pipeline.unet.conv_out.parameters():
            parameter.zero_()
        try:
            (photo,) = invert(model, [picture(model)], [ZEBRA], num_inference_steps=4, guidance_scale=1.0)
            run = photo.run(model, progress=False)
        finally:
            for parameter, old in zip(model.pipeline.unet.conv_out.parameters(), before):
                parameter.copy_(old)
    start = model.encode([picture(model)])[0]
    assert (
        torch.equal(photo.trajectory[0], start)
        and photo.trajectory.shape == (5, *start.shape)
        and photo.interventions == ()
    )
    assert apart(photo.latents, start) > 0.1 and apart(run.latents[0, 0], start) < 1e-4 * float(start.abs().max())


def test_a_run_follows_the_optimised_path(model):
    """The engine, with one intervention a step, ends where the optimisation did; optimised is closer to the image than not."""
    settings = dict(num_inference_steps=2, guidance_scale=5.0, inner_steps=4)
    images, prompts = [picture(model), picture(model, 8)], [ZEBRA, GIRAFFE]
    weights = wb.models.fingerprint(model.pipeline.unet)
    needs = [parameter.requires_grad for parameter in model.pipeline.unet.parameters()]
    plain, best = (invert(model, images, prompts, null_text=null, **settings) for null in (False, True))
    assert weights == wb.models.fingerprint(model.pipeline.unet)
    assert needs == [parameter.requires_grad for parameter in model.pipeline.unet.parameters()]
    for without, photo in zip(plain, best):
        error = {}
        for name, found in (("plain", without), ("best", photo)):
            latents = found.run(model, progress=False).latents.values[0, 0]
            error[name] = float(np.square(latents - found.trajectory[0].numpy()).mean())
        assert error["best"] == pytest.approx(photo.loss[-1], rel=2e-2, abs=1e-6)
        assert len(photo.interventions) == 2 and not without.interventions
        assert error["best"] <= error["plain"] * 1.001
    alone = invert(model, images[1:], prompts[1:], **settings)[0]  # each image by itself
    assert np.allclose(alone.loss, best[1].loss, rtol=5e-2, atol=1e-6)


def test_a_real_image_is_reconstructed_then_edited(menagerie):
    image = picture(menagerie)
    (photo,) = invert(menagerie, [image], [ZEBRA], num_inference_steps=4)
    run = photo.run(menagerie, prompt_to_prompt(menagerie, ZEBRA, GIRAFFE, self_resolution=1.0), progress=False)
    (plain,) = invert(menagerie, [image], [ZEBRA], num_inference_steps=4, null_text=False)
    truth = np.asarray(image) / 255
    error = lambda drawn: np.abs(drawn - truth).mean()
    source = run.images.sel(world="source").values[0]
    assert error(source) < error(plain.run(menagerie, progress=False).images.values[0, 0])
    assert apart(run.images.sel(world="edited"), source) > 0.1
    assert run.fired["edited", 2] == 16 and sum(run.fired[w, n] for w, n in run.fired if w == "source") == 4 * 16


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("kind='swap': may be 'replace', 'refine', 'reweight'", lambda m: prompt_to_prompt(m, ZEBRA, GIRAFFE, "swap")),
        ("kind='replace' needs a target; give the prompt to draw", lambda m: prompt_to_prompt(m, ZEBRA)),
        ("has 5, 'a big giraffe in the savanna' has 6; use kind=\"refine\"", lambda m: prompt_to_prompt(m, ZEBRA, BIG)),
        (
            "found target='a giraffe in the savanna', reweight=None; give reweight={word: factor}",
            lambda m: prompt_to_prompt(m, ZEBRA, GIRAFFE, "reweight"),
        ),
        (
            "reweight: ['lion'] are in none of the prompts",
            lambda m: prompt_to_prompt(m, ZEBRA, GIRAFFE, reweight={"lion": 2.0}),
        ),
        (
            "cross_replace_steps: ['zebra'] are in none of the prompts",
            lambda m: prompt_to_prompt(m, ZEBRA, GIRAFFE, cross_replace_steps={"default_": 0.8, "zebra": 0.2}),
        ),
        (
            "'big' is new in 'a big zebra' and keeps its own attention at all steps; leave it out",
            lambda m: prompt_to_prompt(
                m, "a zebra", "a big zebra", "refine", cross_replace_steps={"default_": 0.8, "big": 0.2}
            ),
        ),
        (
            "reweight: 'zebra' has no steps; raise cross_replace_steps",
            lambda m: prompt_to_prompt(m, ZEBRA, kind="reweight", reweight={"zebra": 2.0}, cross_replace_steps=0.0),
        ),
        (
            'has no "default_" for the other words',
            lambda m: prompt_to_prompt(m, ZEBRA, GIRAFFE, cross_replace_steps={"giraffe": 0.2}),
        ),
        (
            "self_replace_steps=1.4: give the share of the steps, from 0 to 1",
            lambda m: prompt_to_prompt(m, ZEBRA, GIRAFFE, self_replace_steps=1.4),
        ),
        (
            "self_resolution=0.01: self-attention has sides [2, 4, 8, 16] of latents of 16; raise it to at least 0.125",
            lambda m: prompt_to_prompt(m, ZEBRA, GIRAFFE, self_resolution=0.01),
        ),
        (
            "blend.words: ['lion'] are in none of the prompts",
            lambda m: prompt_to_prompt(m, ZEBRA, GIRAFFE, blend=LocalBlend("lion")),
        ),
        (
            "'a giraffe in the savanna' has none of them, and nothing says where to blend",
            lambda m: prompt_to_prompt(m, ZEBRA, GIRAFFE, blend=LocalBlend("zebra")),
        ),
        (
            "stands beyond what the text encoder reads of 'a a a",
            lambda m: prompt_to_prompt(m, "a " * 40 + "zebra", "a " * 40 + "lion"),
        ),
        ('by other names than "source"', lambda m: prompt_to_prompt(m, ZEBRA, {"source": GIRAFFE})),
        (
            "images of 8 x 8 pixels: the model draws 64 x 64; resize them",
            lambda m: invert(m, [Image.new("RGB", (8, 8))], [ZEBRA]),
        ),
        (
            "invert: 1 images and 2 prompts; give each image its prompt",
            lambda m: invert(m, [picture(m)], [ZEBRA, ZEBRA]),
        ),
        ("images='zebra.png': give PIL pictures", lambda m: invert(m, "zebra.png", ZEBRA)),
        ("prompts=3: give a text", lambda m: invert(m, [picture(m)], 3)),
        ("inner_steps=-1: give a whole number, at least 0", lambda m: invert(m, [picture(m)], ZEBRA, inner_steps=-1)),
        (
            "num_inference_steps=0: give a whole number, at least 1",
            lambda m: invert(m, [picture(m)], ZEBRA, num_inference_steps=0),
        ),
        (
            "latents of shape (1, 4, 8, 8): the run needs a tensor (seed, channel, y, x) = (2, 4, 16, 16)",
            lambda m: m.run([World("a", ZEBRA)], seeds=(0, 1), latents=torch.zeros(1, 4, 8, 8)),
        ),
        (
            "it was given values of shape (2, 3), the site's axes behind the row are ('pixel', 'channel') of (4, 96)",
            lambda m: m.run([World("a", ZEBRA, [wb.set_to("unet.mid.cross", np.zeros((2, 3)))])]),
        ),
        (
            "there are no halves outside the denoiser",
            lambda m: m.run([World("a", ZEBRA, [wb.scale("latents", 1.0, rows="cond")])]),
        ),
        (
            "maps of [64, 256] pixels; name those of one resolution",
            lambda m: m.run(
                [
                    World("b", ZEBRA),
                    World("a", ZEBRA, [wb.blend_latents("b", ["unet.up.{2,3}.0.cross.probs"], [1], [1])]),
                ]
            ),
        ),
    ],
)
def test_bad_input_is_told_before_anything_runs(menagerie, monkeypatch, text, call):
    assert menagerie.nn  # wrapped before, or it would keep the forward that fails
    monkeypatch.setattr(type(menagerie.pipeline), "__call__", lambda *a, **k: pytest.fail("the pipeline ran"))
    monkeypatch.setattr(type(menagerie.pipeline.unet), "forward", lambda *a, **k: pytest.fail("the UNet ran"))
    with pytest.raises((ValueError, KeyError)) as raised:
        call(menagerie)
    assert text in str(raised.value)


def test_pictures_as_people_have_them_are_inverted(menagerie):
    """16 bits, on its side, with transparency, grey: the latents are those of the same picture in plain RGB."""
    image = picture(menagerie)
    settings = dict(num_inference_steps=1, guidance_scale=1.0)
    own = lambda given: invert(menagerie, given, ZEBRA, **settings)[0].trajectory[0]
    expected, grey = own(image), image.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.rotate(90).save(file, "PNG", exif=exif)
    assert torch.equal(own(Image.open(file)), expected)
    assert torch.equal(own(np.asarray(image) / 255), expected) and torch.equal(own([image]), expected)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert (
        deep.mode == "I;16" and torch.equal(own(deep), own(grey)) and torch.equal(own(grey), own(grey.convert("RGB")))
    )
    assert torch.equal(own(image.convert("P")), own(image.convert("P").convert("RGB")))
    clear = image.convert("RGBA")
    assert torch.equal(own(clear), expected)
    clear.putalpha(0)
    with pytest.warns(UserWarning, match="what is transparent in the picture is laid on white"):
        assert torch.equal(own(clear), own(Image.new("RGB", image.size, "white")))


def test_an_inversion_runs_at_its_own_steps_and_guidance(menagerie):
    (photo,) = invert(menagerie, picture(menagerie), ZEBRA, num_inference_steps=4, guidance_scale=3.0, inner_steps=1)
    for name, value in (("num_inference_steps", 8), ("num_inference_steps", 2), ("guidance_scale", 5.0)):
        with pytest.raises(ValueError) as error:
            photo.run(menagerie, **{name: value})
        assert f"{name}={value}: the image was inverted at {getattr(photo, name):g}" in str(error.value).replace(
            "3.0", "3"
        )
        assert f"leave {name} out, or invert it with {name}={value}" in str(error.value)
    with pytest.raises(ValueError, match=r"holds none of the run's 3 steps"):
        menagerie.run(photo.worlds(ZEBRA), latents=photo.latents[None], num_inference_steps=3, guidance_scale=3.0)
    own = photo.run(menagerie, num_inference_steps=4, guidance_scale=3.0, progress=False)
    by_hand = menagerie.run(
        photo.worlds(ZEBRA), latents=photo.latents[None], num_inference_steps=4, guidance_scale=3.0, progress=False
    )
    assert np.array_equal(own.images, by_hand.images)
    (plain,) = invert(menagerie, picture(menagerie), ZEBRA, num_inference_steps=2, null_text=False)
    with pytest.raises(ValueError, match="num_inference_steps=4: the image was inverted at 2"):
        plain.run(menagerie, num_inference_steps=4)
    plain.run(menagerie, guidance_scale=5.0, progress=False)  # without embeddings any guidance fits


def test_only_ddim_in_float32_is_inverted(menagerie, monkeypatch):
    monkeypatch.setattr(
        menagerie.pipeline, "scheduler", EulerDiscreteScheduler.from_config(menagerie.pipeline.scheduler.config)
    )
    with pytest.raises(
        ValueError,
        match=r"scheduler is EulerDiscreteScheduler, whose steps cannot be run backwards; set model.pipeline",
    ):
        invert(menagerie, [picture(menagerie)], [ZEBRA])
    monkeypatch.setattr(menagerie.pipeline, "scheduler", DDIMScheduler.from_config(menagerie.pipeline.scheduler.config))
    with pytest.raises(ValueError, match="begin with that, or invert it with another prompt"):
        invert(menagerie, [picture(menagerie)], [ZEBRA], num_inference_steps=2, guidance_scale=1.0)[0].run(
            menagerie, [World("a", GIRAFFE)]
        )
