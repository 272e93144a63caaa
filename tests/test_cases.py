"""Cases from this trade's public bug reports, one test a number: what people met in other tools is right here, or refused.

Each test stands for its kind; the files named beside it vary it further.

 1  Euler ancestral: two worlds with nothing done         test_case_01_02_03; test_laws.py
 2  which seed made picture k, in a batch                 test_case_01_02_03; test_laws.py
 3  LCM, DDPM: the same seed twice                        test_case_01_02_03; test_laws.py
 4  Heun, KDPM2: prompt replaced everywhere               test_case_04_05_06; test_laws.py
 5  PNDM with and without prk steps                       test_case_04_05_06; test_laws.py
 6  PNDM: the last call has no step                       test_case_04_05_06; test_laws.py
 7  a scheduler's own, longer timesteps                   test_case_07
 8  a textual inversion of three vectors: tokens behind it    test_case_08; test_text.py
 9  LoRA loaded after the model was wrapped               test_outside_adapters.py, test_laws.py
10  unfused LoRA, own prompt given to k and v             test_outside_adapters.py
11  LoRA on the text encoder, direction recorded          test_outside_adapters.py
12  LoRA, then save_pretrained                            test_edit_cases.py
13  fused QKV, then an edit of k and v                    test_edit_cases.py
14  LoRA fused, unfused, scaled, switched                 test_edit_cases.py, test_outside_adapters.py
15  an intervention that matches nothing                  test_case_15; test_engine.py
16  a subject that stands twice, a replacement already there  test_case_16; test_text.py, test_edit.py
17  CSV: a comma at the line's end                            test_case_17; test_prompts.py
18  CSV: an unquoted comma in a prompt                        test_case_18; test_prompts.py
19  CSV in cp1252 or UTF-16, empty, with a quote left open    test_case_19; test_prompts.py
20  CSV with byte-order mark and CRLF                         test_case_20; test_prompts.py
21  CSV: a blank last row; a stray labels.csv                 test_case_21; test_prompts.py
22  a label set of one value                                  test_case_22; test_metrics.py
23  an open_clip folder without its config                    test_case_23; test_metrics.py
24  black images of a safety checker                          test_case_24; test_metrics.py
25  a string where a list of strings belongs                  test_case_25; test_inputs.py, test_prompts.py, test_metrics.py
26  inverted at 4 steps, run at 8                             test_case_26; test_prompt_to_prompt.py
27  a 16-bit PNG to invert                                    test_case_27; test_pictures.py
28  a picture with EXIF orientation                           test_case_28; test_pictures.py
29  RGBA, L and P pictures                                    test_case_29; test_pictures.py
30  the same edit committed twice                         test_edit_cases.py
31  "~" in a path                                             test_case_31; test_inputs.py
32  seeds as numpy integers, as an array                      test_case_32; test_inputs.py
33  the same seed twice                                       test_case_33; test_inputs.py
34  num_inference_steps 0, negative, 1.5                  test_case_34
35  effects(...).to_netcdf()                              test_case_35_41; test_experiments.py
36  a heat-map of NaN alone                               test_case_36
37  a truncated shard                                     test_store.py
38  copy.deepcopy(model)                                  test_edit_cases.py
39  a dict, a generator, a set, where worlds belong       test_case_39
40  seeds -1 and 2**32                                        test_case_40; test_inputs.py
41  a trace to netCDF and back                            test_case_35_41
42  punctuation at the subject                                test_case_42; test_prompt_to_prompt.py
43  an end token inside a prompt                              test_case_43; test_text.py
44  hyphens in replaced words                                 test_case_44; test_prompt_to_prompt.py
45  a guide of one space                                  test_edit_cases.py
46  an edit on a model with an unfused LoRA               test_edit_cases.py, test_outside_adapters.py
47  a word of several tokens: its map                         test_case_47; test_attention.py
48  pictures as a tensor given to a scorer                    test_case_48; test_metrics.py
"""

import io

import conftest
import numpy as np
import pytest
import torch
import xarray as xr
from diffusers import (
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from PIL import Image

import workbench as wb
from workbench.inputs import seeds, strings, user_path
from workbench.localize import causal_trace
from workbench.menagerie.world import Scene, render
from workbench.models import GRADER
from workbench.text import replace_words, tokenize, tokens_of

ZEBRA = "a zebra in the savanna"
HEADER = "prompt,subject,value\n"


def refused(call, *texts: str):
    """The call raises a ValueError that says all of these."""
    with pytest.raises(ValueError) as error:
        call()
    for text in texts:
        assert text in str(error.value)


@pytest.fixture
def read(tmp_path):
    """The prompt set in a file of this content."""

    def reading(content: str | bytes) -> wb.PromptSet:
        path = tmp_path / "prompts.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return wb.prompt_set(path)

    return reading


def picture() -> Image.Image:
    return render(Scene("zebra", scene="savanna", seed=3))[0]


def test_case_08_textual_inversion():
    """compel#28: positions behind a word of three vectors were off by two."""
    pipeline = conftest.sd1()
    pipeline.load_textual_inversion({"<cat>": torch.randn(3, 16)}, token="<cat>")
    tokens = tokens_of(pipeline, "a <cat> next to a zebra")
    converted = pipeline.maybe_convert_prompt("a <cat> next to a zebra", pipeline.tokenizer)
    read = pipeline.tokenizer(converted).input_ids
    (zebra,) = tokens.of("zebra")
    assert zebra == 8 and read[zebra] == pipeline.tokenizer.convert_tokens_to_ids("zebra</w>")
    assert [tokens.pieces[i] for i in tokens.of("<cat>")] == ["<cat>", "<cat>_1", "<cat>_2"]


def test_case_16_subjects_that_stand_twice_and_replacements_already_there(menagerie):
    tokenizer = menagerie.pipeline.tokenizer
    for prompt in ("a zebra and a zebra", "a zebra next to an elephant", "an elephant next to a zebra"):
        change = replace_words(prompt, "zebra", "elephant")
        old, new = (tokenize(tokenizer, text) for text in (prompt, change.text))
        pairs = dict(change.aligned(old, new, range(old.end + 1)))
        for word in ("and", "next", "to", "an", "a"):
            if word in prompt.split():
                assert [new.pieces[pairs[i]] for i in old.of(word)] == [word] * len(old.of(word))
        assert all(new.pieces[pairs[i]] == "ant" for i in old.of("zebra")) and pairs[old.end] == new.end
    cart = wb.Prompt("a cart and a car", "car", "car", "cow")
    assert causal_trace.replaced(menagerie, cart) == ("a cart and a cow", "cow")
    cow = wb.Prompt("a cow next to a car, a car", "car", "car", "cow")
    assert causal_trace.replaced(menagerie, cow)[0] == "a cow next to a cow, a cow"


def test_case_17_a_comma_at_the_lines_end(read):
    """pandas#14124: all columns shift."""
    refused(lambda: read(HEADER + "a cow,cow,cow\na zebra,zebra,zebra,\n"), "prompts.csv, line 3", "ends in a comma")


def test_case_18_an_unquoted_comma(read):
    """pandas#27515."""
    refused(lambda: read(HEADER + "a zebra, running,zebra,zebra\n"), "prompts.csv, line 2: 4 values", "in quotes")
    refused(lambda: read("ID,prompt\n1,a zebra, running\n"), "prompts.csv, line 2: 3 values")
    assert read(HEADER + '"a zebra, running",zebra,zebra\n')[0].prompt == "a zebra, running"


def test_case_19_encodings_and_broken_files(read):
    refused(
        lambda: read((HEADER + "a café,café,café\n").encode("cp1252")), "prompts.csv, line 2", "cp1252", "CSV UTF-8"
    )
    refused(lambda: read((HEADER + "a cow,cow,cow\n").encode("utf-16")), "prompts.csv is in UTF-16", "CSV UTF-8")
    refused(lambda: read(""), "prompts.csv is empty")
    refused(lambda: read(HEADER + 'a cow,cow,cow\n"a zebra,zebra,zebra\n'), "prompts.csv, line 3", "close the quote")


def test_case_20_byte_order_mark_and_crlf(read):
    found = read(b"\xef\xbb\xbf" + (HEADER + "a café,café,café\n").replace("\n", "\r\n").encode())
    assert list(found) == [wb.Prompt("a café", "café", "café")]


def test_case_21_a_blank_last_row_and_a_stray_labels_file(read, tmp_path):
    content = HEADER + "a red car,red,red\na blue car,blue,blue\n,,\n"
    assert len(read(content)) == 2
    (tmp_path / "labels.csv").write_text("label,text\nzebra,a zebra\n")
    refused(lambda: read(content), "['blue', 'red']", f"takes its labels from {tmp_path / 'labels.csv'}", "rename it")


def test_case_22_a_label_set_of_one_value(scorer):
    """open_clip#193: the probability of the only label is always 1."""
    refused(
        lambda: scorer.class_probabilities(picture(), {"zebra": "a zebra"}), "['zebra']", "always 1", "at least two"
    )


def test_case_23_an_open_clip_folder_without_its_config(tmp_path):
    (tmp_path / "open_clip_model.safetensors").write_bytes((GRADER / "open_clip_model.safetensors").read_bytes())
    refused(lambda: wb.Scorer(f"local-dir:{tmp_path}"), f"found no open_clip_config.json in {tmp_path}", "write one")


def test_case_24_black_images(scorer):
    refused(lambda: scorer.similarity(Image.new("RGB", (64, 64)), ZEBRA), "images [0] of 1 are black", "safety checker")


def test_case_25_a_string_is_one():
    assert strings("winter", "positive") == ("winter",)
    assert wb.PromptSet.of("winter").prompts == (wb.Prompt("winter"),)
    found = wb.PromptSet("x", (wb.Prompt("a cow", "cow", "cow"),), {"cow": "a cow", "zebra": "a zebra"})
    assert found.labels == {"cow": ("a cow",), "zebra": ("a zebra",)}


def test_case_26_inverted_at_four_steps_run_at_eight(menagerie):
    (photo,) = wb.invert(menagerie, picture(), ZEBRA, num_inference_steps=4, inner_steps=1)
    refused(lambda: photo.run(menagerie, num_inference_steps=8), "num_inference_steps=8: the image was inverted at 4")


def test_case_27_a_16_bit_png():
    greys = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(greys).save(file, "PNG")
    (found,) = wb.as_pil(Image.open(file))
    assert np.abs(np.asarray(found) / 255 - greys[..., None] / 65535).max() < 1 / 255


def test_case_28_a_phones_picture():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # a quarter turn clockwise
    picture().rotate(90).save(file, "PNG", exif=exif)
    (found,) = wb.as_pil(Image.open(file))
    assert np.array_equal(np.asarray(found), np.asarray(picture()))


def test_case_29_rgba_l_and_p():
    for mode in ("L", "P"):
        (found,) = wb.as_pil(picture().convert(mode))
        assert np.array_equal(np.asarray(found), np.asarray(picture().convert(mode).convert("RGB")))
    clear = picture().convert("RGBA")
    clear.putalpha(0)
    with pytest.warns(UserWarning, match="transparent in the picture is laid on white"):
        (found,) = wb.as_pil(clear)
    assert (np.asarray(found) == 255).all()


def test_case_31_the_home_folder(monkeypatch, tmp_path):
    (tmp_path / "mine.csv").write_text("prompt\na zebra\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs", "folder") == tmp_path / "runs"
    assert wb.prompt_set("~/mine.csv")[0].prompt == "a zebra"


def test_case_32_seeds_of_numpy():
    assert seeds(np.int64(3)) == (3,) and seeds(np.arange(3)) == seeds(range(3)) == (0, 1, 2)


def test_case_33_the_same_seed_twice():
    refused(lambda: seeds([3, 1, 3]), "seeds holds 3 more than once", "name each seed once")


def test_case_40_negative_and_large_seeds():
    assert seeds([-1, 2**32]) == (-1, 2**32)
    refused(lambda: seeds(2**64), f"seeds holds {2**64}: seeds go from -2**63 to 2**63 - 1")


def test_case_42_punctuation_at_the_subject(menagerie):
    tokens = tokenize(menagerie.pipeline.tokenizer, 'a "zebra", running; a cow!')
    assert [tokens.pieces[i] for i in tokens.of("zebra")] == ["zebra"]
    assert replace_words("a zebra, a cow", "zebra", "lion").text == "a lion, a cow"


def test_case_43_an_end_token_inside_a_prompt(menagerie):
    tokenizer = menagerie.pipeline.tokenizer
    refused(lambda: tokenize(tokenizer, "a zebra <|endoftext|> a cow"), "'<|endoftext|>'", "take it out of the prompt")


def test_case_44_hyphens(menagerie):
    tokenizer = menagerie.pipeline.tokenizer
    found = wb.align(tokenizer, "a black-and-white zebra, running", "a striped zebra, running")
    assert ("black-and-white", "striped") in found.pairs and np.allclose(found.matrix.sum(1), 1)
    for word in ("zebra", "running"):
        assert (found.matrix[np.ix_(found.source.of(word), found.target.of(word))] == 1).all()
    refused(lambda: wb.align(tokenizer, "a zebra - running", "a zebra running"), "words: a | zebra | - | running")


def test_case_47_the_map_of_a_word_is_the_mean_of_its_tokens(menagerie):
    prompt = "an elephant"
    tokens = tokenize(menagerie.pipeline.tokenizer, prompt)
    values = np.random.default_rng(0).random((1, 1, 1, 1, 4, 4, len(tokens.ids)))
    axes = ("world", "seed", "steps", "head", "y", "x", "token")
    maps = {"unet.mid.cross": xr.DataArray(values, dims=axes, coords={"world": ["w"], "seed": [0], "steps": ["all"]})}
    images = xr.DataArray(np.zeros((1, 1, 4, 4, 3)), dims=("world", "seed", "y", "x", "colour"))
    found = wb.AttentionMaps(maps, images, {"w": tokens}).word("elephant")
    assert len(tokens.of("elephant")) == 5
    assert np.allclose(found.values[0], values[..., list(tokens.of("elephant"))].mean(-1), atol=1e-6)


def test_case_48_pictures_as_a_tensor(scorer):
    pictures = [picture(), render(Scene("cow", scene="city", seed=1))[0]]
    tensor = torch.stack([torch.tensor(np.asarray(each)) for each in pictures]).permute(0, 3, 1, 2) / 255
    assert torch.equal(scorer.similarity(tensor, ZEBRA), scorer.similarity(pictures, ZEBRA))
    seen = scorer.image_embeddings(pictures)
    assert torch.equal(scorer.similarity(embeddings=seen, texts=ZEBRA), scorer.similarity(pictures, ZEBRA))
    refused(lambda: scorer.similarity(seen, ZEBRA), "images of shape (2, 64): neither layout fits")


# The engine and experiments: schedulers, seeds, what worlds may be, results on disk


def tiny(scheduler=None, **config):
    """A tiny model of its own, with another scheduler."""
    torch.manual_seed(0)
    pipeline = conftest.sd1()
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = scheduler(
            **dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear") | config
        )
    return wb.load(pipeline)


def drawn(model, worlds, **more):
    return model.run(worlds, **dict(seeds=(0, 5), num_inference_steps=4, guidance_scale=3.0, progress=False) | more)


@pytest.mark.parametrize("scheduler", [EulerAncestralDiscreteScheduler, LCMScheduler, DDPMScheduler])
def test_case_01_02_03_stochastic_schedulers(scheduler):
    """Worlds with nothing done are equal; a seed draws the same picture alone, in a batch, and twice."""
    model = tiny(scheduler)
    run = drawn(model, [wb.World("a", ZEBRA), wb.World("b", "a lion"), wb.World("c", ZEBRA)])
    assert np.array_equal(run["a"], run["c"]) and not np.allclose(run["a"], run["b"], atol=1e-3)
    assert not np.allclose(run["a"][0], run["a"][1], atol=1e-3)
    alone = drawn(model, ZEBRA, seeds=5)
    assert np.allclose(alone[ZEBRA][0], run["a"].sel(seed=5), atol=1e-5)
    assert np.array_equal(alone.images, drawn(model, ZEBRA, seeds=5).images)
    once, again = (model.generate(ZEBRA, seeds=5, num_inference_steps=4) for _ in range(2))
    assert np.array_equal(once[0], again[0])


@pytest.mark.parametrize(
    ("scheduler", "config", "calls"),
    [
        (HeunDiscreteScheduler, {}, (0, 0, 1, 1, 2, 2, 3)),
        (KDPM2DiscreteScheduler, {}, (0, 0, 1, 1, 2, 2, 3)),
        (PNDMScheduler, dict(skip_prk_steps=True), (0, 0, 1, 2, 3)),
        (PNDMScheduler, dict(skip_prk_steps=False), (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3)),
    ],
)
def test_case_04_05_06_steps_of_several_calls(scheduler, config, calls):
    """The prompt replaced at all layers and steps gives the target's picture; every call belongs to a step, the last too."""
    model = tiny(scheduler, timestep_spacing="trailing", **config)
    given = wb.World("given", ZEBRA, [wb.replace_prompt("unet.*.cross.context", "a lion")])
    run = drawn(model, [wb.World("zebra", ZEBRA), given, wb.World("lion", "a lion")], record="unet.noise")
    assert np.allclose(run["given"], run["lion"], atol=1e-5) and not np.allclose(run["zebra"], run["lion"], atol=1e-3)
    assert tuple(run.values["unet.noise"].step.values) == calls == model.calls(4).step
    assert run.fired == {("given", 0): len(calls) * len(model.sites("unet.*.cross.context"))}
    last = [wb.World("plain", ZEBRA), wb.World("last", ZEBRA, [wb.scale("unet.noise", 30.0, steps=3)])]
    run = drawn(model, last)
    assert run.fired == {("last", 0): calls.count(3)} and not np.allclose(run["plain"], run["last"], atol=1e-3)


def test_case_07_a_schedulers_own_timesteps(monkeypatch):
    """One that sets more than the table says is refused, before anything is drawn."""
    model = tiny(DDPMScheduler)
    own = DDPMScheduler.set_timesteps
    monkeypatch.setattr(DDPMScheduler, "set_timesteps", lambda self, steps, **more: own(self, 2 * steps, **more))
    refused(lambda: drawn(model, ZEBRA), "num_inference_steps=4: DDPMScheduler sets 8 timesteps", "4 are expected")


def test_case_15_an_intervention_that_matches_nothing():
    with pytest.raises(KeyError, match=r"no site matches 'unet\.\*\.crosss'; of \d+ sites the nearest are"):
        drawn(tiny(), wb.World("a", ZEBRA, [wb.scale("unet.*.crosss", 2.0)]))


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "8"])
def test_case_34_numbers_of_steps(steps):
    model = tiny()
    for call in (
        lambda: drawn(model, ZEBRA, num_inference_steps=steps),
        lambda: model.generate(ZEBRA, num_inference_steps=steps),
    ):
        kind = f"{steps!r} is a {type(steps).__name__}; " if type(steps) is not int else ""
        refused(call, f"num_inference_steps={steps!r}: {kind}give a whole number, at least 1")


def test_case_35_41_netcdf_and_back(tmp_path, scorer):
    """A trace and its effects are written as netCDF and come back."""
    model = tiny()
    prompts = wb.PromptSet("one", (wb.Prompt(ZEBRA, "zebra", "zebra"),), {"zebra": ("a zebra",), "cow": ("a cow",)})
    spec = wb.TraceSpec(sites=("text_encoder.0.mlp",), draws=1, seeds=(0,), num_inference_steps=2)
    trace = wb.causal_trace(model, prompts, spec, scorer=scorer)
    for name, data in (("trace", trace), ("effects", wb.effects(trace, "probability"))):
        data.to_netcdf(tmp_path / f"{name}.nc")
        with xr.open_dataset(tmp_path / f"{name}.nc") as held:
            xr.testing.assert_allclose(held.load(), data)


def test_case_36_a_heat_map_of_nothing():
    cells = xr.Dataset(
        {name: (("layer", "kind"), np.full((2, 2), np.nan)) for name in ("recovery", "recovery_low", "recovery_high")}
        | {"significant": (("layer", "kind"), np.zeros((2, 2), bool)), "prompts": (("layer", "kind"), np.ones((2, 2)))},
        coords={"layer": ["a", "b"], "kind": ["mlp", "hidden"]},
        attrs={"effect": "recovery", "ratio": "recovery", "unit": "share", "metric": "probability"},
    )
    refused(lambda: wb.plot.heatmap(cells, "kind", "layer", value="recovery"), "no cell has a value", "recovery")


def test_case_39_what_worlds_may_be():
    """A mapping of names and a generator are taken; a set, which has no order, and other things are refused with an example."""
    model = tiny()
    named = drawn(model, {"plain": ZEBRA, "other": wb.World("x", "a lion")})
    assert list(named.images.world.values) == ["plain", "other"]
    listed = drawn(model, (wb.World(name, text) for name, text in (("plain", ZEBRA), ("other", "a lion"))))
    assert np.array_equal(named.images, listed.images)
    for wrong in ({ZEBRA}, 3, [], {"a": 3}, [ZEBRA, 3], b"zebra"):
        refused(lambda wrong=wrong: drawn(model, wrong), "World('edited', 'a zebra', [...])")
