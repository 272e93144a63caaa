"""Cases from public bug reports of tools that edit models, by their number in the list of cases; each stands for its kind."""

import copy

import conftest
import numpy as np
import pytest
import torch
from edit_helpers import PAIR, WINDOW, ZEBRA, images, lock_free, weights

import workbench as wb
from workbench import World
from workbench.edit.words import untrained
from workbench.sites import weight_of

KEYS = "unet.mid.cross.k"


@pytest.fixture
def sd1():
    torch.manual_seed(0)
    return wb.load(conftest.sd1())


@pytest.fixture
def lora(sd1, tmp_path):
    """Of keys and values of the middle block and of a layer of the text encoder."""
    other = wb.edit.swap(sd1, "a cow", "a lion", sites=WINDOW) + wb.edit.diff_quickfix(sd1, {"a cow": "a lion"})
    return str(other.to_lora(tmp_path / "lora.safetensors"))


def drawn(model) -> np.ndarray:
    return images(model, World("a", ZEBRA))


UNFUSED = r"carries the adapters 'default_0', which are not fused: .*call pipeline.fuse_lora\(\), then pipeline.unload_lora_weights\(\)"


def test_12_a_model_with_an_unfused_adapter_is_not_saved_as_it_cannot_be_loaded(sd1, lora, tmp_path):
    sd1.pipeline.load_lora_weights(lora)
    for fused in (False, True):
        if fused:
            sd1.pipeline.fuse_lora()
        with pytest.raises(
            ValueError,
            match=r"save_pretrained: \w+\..* carries the adapters 'default_0', which a saved folder cannot hold; call pipeline.fuse_lora",
        ):
            sd1.save_pretrained(tmp_path / "model")
        assert not (tmp_path / "model").exists()
    sd1.pipeline.unload_lora_weights()
    sd1.save_pretrained(tmp_path / "model")
    assert np.allclose(drawn(wb.load(tmp_path / "model")), drawn(sd1), atol=1e-5)


def test_13_fused_projections_are_not_edited(sd1, tmp_path):
    """They compute with another matrix: an edit of k and v would change nothing, and an undo leave it in place."""
    edit = wb.edit.locoedit(sd1, PAIR, sites=WINDOW)
    sd1.commit(edit)
    before = {name: value.clone() for name, value in sd1.pipeline.unet.state_dict().items()}
    sd1.pipeline.fuse_qkv_projections()
    uses = [
        lambda: sd1.undo(),
        lambda: sd1.commit(edit * 2),
        lambda: wb.edit.locoedit(sd1, PAIR, sites=WINDOW),
        lambda: images(sd1, World("a", ZEBRA, edit.preview())),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"projections are fused.*pipeline.unfuse_qkv_projections\(\)"):
            use()
    with pytest.raises(ValueError, match=r"save_pretrained: the projections of .* are fused.*unfuse_qkv_projections"):
        sd1.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    sd1.pipeline.unfuse_qkv_projections()
    after = sd1.pipeline.unet.state_dict()  # which keeps the fused matrices beside
    assert all(torch.equal(value, after[name]) for name, value in before.items()) and len(sd1.edits) == 1
    sd1.undo()


def test_14_adapters_fused_unfused_scaled_and_switched(sd1, lora):
    """An edit is committed to the weights that hold the fused adapter, and undone; unfused, the model draws what it drew before."""
    plain = drawn(sd1)
    sd1.pipeline.load_lora_weights(lora)
    beside = drawn(sd1)
    assert np.abs(beside - plain).max() > 1e-3
    sd1.pipeline.fuse_lora(lora_scale=0.5)
    half, keys = drawn(sd1), weight_of(sd1.pipeline, sd1.sites[KEYS])
    before = keys.detach().clone()
    edit = wb.edit.uce(sd1, {"a cow": "a camel"}, sites=WINDOW)
    with sd1.applied(edit):
        assert np.abs(drawn(sd1) - half).max() > 1e-5
    assert np.array_equal(drawn(sd1), half)
    sd1.commit(edit)
    sd1.pipeline.unfuse_lora()  # the wrong order: the commit is of weights that held the adapter
    with pytest.raises(ValueError, match="carries the adapters 'default_0', which are not fused"):
        sd1.undo()
    sd1.pipeline.disable_lora()
    with pytest.raises(ValueError, match=r"are not what the latest commit .* left: .*by a LoRA that was fused"):
        sd1.undo()
    sd1.undo(check=False)
    assert torch.equal(keys, before) and not sd1.edits


def test_14_unfusing_behind_an_undone_edit_gives_back_the_adapter(sd1, lora):
    plain = drawn(sd1)
    sd1.pipeline.load_lora_weights(lora)
    beside = drawn(sd1)
    sd1.pipeline.fuse_lora()
    assert np.allclose(drawn(sd1), beside, atol=2.5e-5)
    with sd1.applied(wb.edit.uce(sd1, {"a cow": "a camel"}, sites=WINDOW)):
        pass
    sd1.pipeline.unfuse_lora()
    assert np.allclose(drawn(sd1), beside, atol=2.5e-5)
    sd1.pipeline.unload_lora_weights()
    assert np.allclose(drawn(sd1), plain, atol=2.5e-5)


def test_14_an_adapter_that_is_merged_and_switched_off_is_not_edited(sd1, lora):
    sd1.pipeline.load_lora_weights(lora)
    sd1.pipeline.fuse_lora()
    sd1.pipeline.disable_lora()
    with pytest.raises(
        ValueError, match="which are merged and switched off, so that the next call takes them out of the weight"
    ):
        wb.edit.locoedit(sd1, PAIR, sites=WINDOW)


def test_30_the_same_edit_committed_twice_warns_and_undo_removes_one(sd1):
    edit, before = wb.edit.locoedit(sd1, PAIR, sites=WINDOW), weights(sd1)
    sd1.commit(edit)
    once = weights(sd1)
    with pytest.warns(UserWarning, match="this very edit is committed already .*now hold it 2 times"):
        sd1.commit(edit)
    with pytest.warns(UserWarning, match="now hold it 3 times"), wb.load(sd1.pipeline).applied(edit):
        pass
    sd1.undo()
    assert all(torch.equal(a, b) for a, b in zip(once, weights(sd1)))
    sd1.undo()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(sd1)))
    sd1.commit(edit)  # not committed now: no warning


def test_38_a_model_is_copied_deeply(sd1):
    edit = wb.edit.locoedit(sd1, PAIR, sites=WINDOW)
    plain = drawn(sd1)
    other = copy.deepcopy(sd1)
    other.commit(edit)
    assert np.array_equal(drawn(sd1), plain) and not np.array_equal(drawn(other), plain)
    assert (other.num_inference_steps, other.guidance_scale) == (sd1.num_inference_steps, sd1.guidance_scale)
    assert not sd1.edits
    with sd1.lock:
        assert lock_free(other)


@pytest.mark.parametrize("guide", [" ", "", "\t\n"])
def test_45_a_guide_of_blanks_is_refused(sd1, guide):
    for editor in (wb.edit.uce, wb.edit.time_edit, wb.edit.diff_quickfix, wb.edit.neurons):
        with pytest.raises(ValueError, match=r"concepts\['a zebra'\]=.*: give a text that says something"):
            editor(sd1, {"a zebra": guide}, sites=WINDOW)
    with pytest.raises(ValueError, match="prompts that have a subject and a replacement"):
        wb.edit.uce(sd1, [wb.Prompt("a zebra", "zebra", "", guide)])


def test_45_a_concept_that_is_its_own_guide_is_refused(sd1):
    with pytest.raises(ValueError, match="concepts=: 'a zebra' is to act as itself, which changes nothing"):
        wb.edit.uce(sd1, {"a zebra": " A zebra"})
    with pytest.raises(ValueError, match="concepts=: 'zebra' is to act as itself"):
        wb.edit.swap(sd1, "zebra", "Zebra")


def test_46_a_layer_with_an_unfused_adapter_is_not_edited(sd1, lora):
    """The weight beneath is not what the layer computes with; other layers are edited, beside the adapter."""
    made_before = wb.edit.locoedit(sd1, PAIR, sites=WINDOW)
    sd1.pipeline.load_lora_weights(lora)
    before = {name: value.clone() for name, value in sd1.pipeline.unet.state_dict().items()}
    uses = [
        lambda: wb.edit.locoedit(sd1, PAIR, sites=WINDOW),
        lambda: wb.edit.diff_quickfix(sd1, {"a zebra": "a lion"}),
        lambda: sd1.commit(made_before),
        lambda: images(sd1, World("a", ZEBRA, made_before.preview())),
        lambda: weight_of(sd1.pipeline, sd1.sites[KEYS]),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=UNFUSED):
            use()
    after = sd1.pipeline.unet.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()) and not sd1.edits
    free = wb.edit.locoedit(sd1, PAIR, sites="unet.up.3.0.cross")
    with sd1.applied(free):
        committed = drawn(sd1)
    assert np.abs(images(sd1, World("a", ZEBRA, free.preview())) - committed).max() < 1e-4
    sd1.pipeline.fuse_lora()
    sd1.pipeline.unload_lora_weights()
    sd1.commit(wb.edit.locoedit(sd1, PAIR, sites=WINDOW))


def test_46_the_weight_beneath_an_adapter_that_is_switched_off_is_the_layers(sd1, lora):
    plain = weight_of(sd1.pipeline, sd1.sites[KEYS])
    sd1.pipeline.load_lora_weights(lora)
    sd1.pipeline.disable_lora()
    assert weight_of(sd1.pipeline, sd1.sites[KEYS]) is plain
    edit = wb.edit.locoedit(sd1, PAIR, sites=WINDOW)
    with sd1.applied(edit):
        committed = drawn(sd1)
    assert np.abs(images(sd1, World("a", ZEBRA, edit.preview())) - committed).max() < 1e-4


def test_weights_that_are_not_numbers_of_their_own_are_not_edited(sd1):
    """Quantized, offloaded, computed from others."""
    attention = sd1.pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    for spoil, text in (
        (
            lambda layer: setattr(layer, "weight", torch.nn.Parameter(layer.weight.to(torch.int8), False)),
            "is quantized",
        ),
        (lambda layer: layer.to("meta"), "is offloaded"),
        (lambda layer: torch.nn.utils.parametrizations.orthogonal(layer), "is computed from others at every call"),
    ):
        attention.to_k = torch.nn.Linear(16, 16, bias=False)
        spoil(attention.to_k)
        with pytest.raises(ValueError, match=rf"unet.mid.cross.k: its weight {text}"):
            weight_of(sd1.pipeline, sd1.sites[KEYS])


# Misspelt words


def test_a_misspelt_guide_warns(menagerie):
    for concepts in ({"a zebra": "a girafe"}, {"a girafe": "a zebra"}):
        with pytest.warns(
            UserWarning, match=r"concepts=: 'a girafe' holds 'gi', 'ra', 'e', which text_encoder never learned"
        ):
            wb.edit.uce(menagerie, concepts, sites=WINDOW)
    for use in (
        lambda: wb.edit.neurons(menagerie, {"a zebra": "a girafe"}, sites=WINDOW),
        lambda: wb.edit.swap(menagerie, "a zebra", "a girafe", sites=WINDOW),
        lambda: wb.edit.embedding_swap(menagerie, "zebr", "elefant"),
        lambda: wb.edit.uce(menagerie, [wb.Prompt("a zebra at night", "zebra", "", "girafe")], sites=WINDOW),
    ):
        with pytest.warns(UserWarning, match=r"which text_encoder never learned: .*Is it misspelt\?"):
            use()


def test_words_that_the_model_knows_do_not_warn(menagerie):
    """All that its captions say, words of several tokens among it."""
    words = "zebra giraffe lion elephant cow camel penguin flamingo car hydrant balloon house savanna forest beach city desert meadow"
    words += (
        " winter summer night watercolor pencil sketch photo picture left right red blue green yellow purple orange"
    )
    for word in words.split():
        assert not list(untrained(menagerie.pipeline, word)), word
    for word in ("girafe", "elefant", "zebr", "pengwin", "blicket", "lyon", "camle", "winterr"):
        assert list(untrained(menagerie.pipeline, word)), word


def test_of_a_table_that_was_never_trained_nothing_is_said(sd1):
    assert not list(untrained(sd1.pipeline, "girafe"))
    torch.manual_seed(0)
    for seed in range(20):
        torch.nn.init.normal_(
            sd1.pipeline.text_encoder.get_input_embeddings().weight,
            std=0.02,
            generator=torch.Generator().manual_seed(seed),
        )
        assert not list(untrained(sd1.pipeline, "girafe")), seed
