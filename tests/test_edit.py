"""Edits: preview = commit, their algebra, and the editors as one."""

import conftest
import numpy as np
import pytest
import torch
from edit_helpers import BOTH, LION, PAIR, WINDOW, ZEBRA, change, images, weights

import workbench as wb
from workbench import World
from workbench.edit.editors import editable, gather, states
from workbench.edit.low_rank import Update, update_of
from workbench.edit.speed import invariant
from workbench.engine import encode
from workbench.prompts import Prompt
from workbench.sites import weight_of
from workbench.text import tokenize

CORPUS = [
    "a red car in winter",
    "two cows",
    "an elephant in the city",
    "a watercolor of a lion at night",
    "a camel",
    "a house on the beach",
]


@pytest.fixture(scope="module")
def sd1():
    torch.manual_seed(0)
    return wb.load(conftest.sd1())


# Law 7: preview = commit


def test_a_preview_draws_what_the_commit_draws(model):
    """UNet keys and values, text-encoder layers, embedding rows, and all of them together."""
    unet = wb.edit.swap(model, "a zebra", "a giraffe")
    text = wb.edit.diff_quickfix(
        model, {"a zebra": "a lion"}, sites=["text_encoder*.0.attention", "text_encoder*.1.mlp", "text_encoder*.2.fc1"]
    )
    rows = wb.edit.embedding_swap(model, "zebra", "lion")
    for edit in (unet, text, rows, unet + text + rows):
        clean, preview = images(model, World("clean", ZEBRA), World("preview", ZEBRA, edit.preview()))
        with model.applied(edit):
            committed, _ = images(model, World("a", ZEBRA), World("b", ZEBRA))
        assert np.abs(preview - committed).max() < 1e-4
        assert np.abs(preview - clean).max() > 1e-3
    assert np.array_equal(images(model, World("a", ZEBRA), World("b", ZEBRA))[0], clean)


def test_a_preview_is_data(model):
    edit = wb.edit.locoedit(model, PAIR, sites=WINDOW)
    for intervention in edit.preview():
        assert wb.Intervention.from_json(intervention.to_json()) == intervention and "MapInput" in repr(intervention)
    assert len(edit.preview()) == len(edit.updates) == 2 * len(model.sites(WINDOW))
    assert World("preview", ZEBRA, edit).interventions == edit.preview()


def test_an_edit_shows_itself(sd1):
    edit = wb.edit.swap(sd1, "a zebra", "a giraffe", sites=WINDOW) * 0.5
    assert "0.5 x swap: 2 weights, rank at most 8" in repr(edit)
    shown = edit._repr_html_()
    assert "0.5 x swap: 2 weights" in shown and "<table" in shown and "unet.mid.cross.k" in shown
    assert "<script>" not in wb.Edit(edit.updates, {"editor": "<script>"})._repr_html_()


def test_edits_add_and_scale(model):
    a, b = (
        wb.edit.locoedit(model, PAIR, sites=WINDOW),
        wb.edit.locoedit(model, {"a cow": "a camel"}, sites="unet.*.cross"),
    )
    name = a.sites[0]
    assert torch.allclose(change(a + b, name), change(a, name) + change(b, name), atol=1e-6)
    assert set((a + b).sites) == set(b.sites) and (a + b).updates[-1].rank >= 1
    for half in (a * -0.5, -0.5 * a, -a * 0.5, np.float32(-0.5) * a, torch.tensor(-0.5) * a):
        assert torch.allclose(change(half, name), -0.5 * change(a, name)) and half.editor == "-0.5 x locoedit"
    assert not change(a * 0, name).any()
    assert torch.allclose(
        torch.tensor([u.norm() for u in a.updates]),
        torch.stack([change(a, u.site).norm() for u in a.updates]).float(),
        rtol=1e-4,
    )
    assert (a + 2.0 * b).provenance["sum"][1]["scaled"] == 2.0
    with pytest.raises(TypeError):
        _ = a * b
    with pytest.raises(ValueError, match="edit \\* factor='2': give a finite number"):
        _ = a * "2"


def test_what_is_said_of_an_edit_stays_short(sd1):
    """Scaling is one factor, a sum one list, however often and in whatever order; the limit on depth is never met."""
    edit = wb.edit.locoedit(sd1, PAIR, sites=WINDOW, templates=["{}"])
    often = edit
    for _ in range(100):
        often = -(often * 0.5) * -2
    assert often.provenance["of"] == edit.provenance and often.provenance["scaled"] == 1.0
    total = edit
    for _ in range(100):
        total = total + edit
    assert len(total.provenance["sum"]) == 101 and total.provenance["sum"][7] == edit.provenance
    part = (2 * edit).at("unet.mid.cross.k") * 3
    assert part.provenance["of"]["at"] == ["unet.mid.cross.k"] and part.provenance["of"]["scaled"] == 2


def test_balanced_factors_are_the_same_product_and_survive_half_precision(menagerie):
    """Factors of keys that are nearly equal cancel; rounded to bfloat16 each, the product is off by 6 %, balanced by 0.3 %."""
    edit = wb.edit.locoedit(menagerie, PAIR, sites="unet.*.cross")
    for update in edit.updates:
        product, (b, a) = change(edit, update.site), update.balanced()
        assert (b.double() @ a.double() - product).norm() < 1e-6 * product.norm()
        assert torch.allclose(b.norm(dim=0), a.norm(dim=1), rtol=1e-3)
        off = [
            ((x.bfloat16().double() @ y.bfloat16().double() - product).norm() / product.norm()).item()
            for x, y in ((update.b, update.a), (b, a))
        ]
        assert off[1] < 0.004 < 0.01 < off[0]


def test_balanced_factors_keep_rows_of_zeros(sd1):
    swapped = wb.edit.embedding_swap(sd1, "zebra", "lion").updates[0]
    b, a = swapped.balanced()
    assert torch.equal(b.any(1), swapped.b.any(1)) and torch.allclose(b @ a, swapped.b @ swapped.a, atol=1e-6)
    nothing = (0 * wb.edit.locoedit(sd1, PAIR, sites=WINDOW)).updates[0]
    assert not any(factor.any() for factor in nothing.balanced())
    tall = update_of(sd1, "unet.mid.cross.k", torch.randn(16, 40), torch.randn(40, 16))
    assert torch.allclose(torch.matmul(*tall.balanced()), tall.b @ tall.a, atol=1e-4)


def test_a_part_of_an_edit_is_the_edit_of_that_part(model):
    layers = [site.name for site in model.sites("unet.*.cross")][1:3]
    whole, part = (wb.edit.swap(model, "a zebra", "a giraffe", sites=sites) for sites in ("unet.*.cross", layers))
    for some in (whole.at(*layers), whole.at(*(f"{layer}.[kv]" for layer in layers))):
        assert some.sites == part.sites and all(torch.equal(a.b, b.b) for a, b in zip(some.updates, part.updates))
    with pytest.raises(KeyError, match=r"the edit changes nothing at \['text_encoder.0.out'\]; its sites are unet"):
        whole.at("unet.*", "text_encoder.0.out")


def test_the_rank_is_at_most_the_number_of_pairs(model):
    for templates in (["{}"], ["{}", "a photo of {}"]):
        for edit, pairs in (
            (wb.edit.locoedit(model, PAIR, sites=WINDOW, templates=templates), 1),
            (wb.edit.swap(model, "a zebra", "a giraffe", sites=WINDOW, templates=templates), 2),
        ):
            assert {update.rank for update in edit.updates} == {pairs * len(templates)}
            dense_rank = torch.linalg.matrix_rank(change(edit, edit.sites[0]), rtol=1e-5)
            assert dense_rank <= pairs * len(templates)


# Law 9 and the editors


def test_the_editors_are_one_solver(model):
    equal = dict(sites=WINDOW, lam=0.3, tokens="subject")
    first, *others = (
        editor(model, PAIR, **equal)
        for editor in (wb.edit.locoedit, wb.edit.uce, wb.edit.time_edit, wb.edit.diff_quickfix)
    )
    for other in others:
        assert all(torch.equal(a.b, b.b) and torch.equal(a.a, b.a) for a, b in zip(first.updates, other.updates))
    pair = wb.edit.swap(model, "a zebra", "a giraffe", **equal)
    both = wb.edit.uce(model, BOTH, **equal)
    assert all(torch.equal(change(pair, name), change(both, name)) for name in pair.sites)
    turns = wb.edit.uce(model, PAIR, **equal) + wb.edit.uce(model, {"a giraffe": "a zebra"}, **equal)
    assert not torch.allclose(change(pair, pair.sites[0]), change(turns, pair.sites[0]), atol=1e-3)


def test_rome_meets_its_value_exactly_and_is_the_limit_of_memit(model):
    moments = wb.edit.moments_of(model, CORPUS).floored(1e-4)
    edit = wb.edit.rome(model, PAIR, sites=WINDOW, corpus=moments, templates=["{}"])
    near = wb.edit.rome(model, PAIR, sites=WINDOW, corpus=moments, templates=["{}"], lam=1e-9)
    key, guide = encode(model.pipeline, [*PAIR, *PAIR.values()])[0][:, 2].double()
    for update in edit.updates:
        weight = weight_of(model.pipeline, *model.sites(update.site)).detach().double()
        new = weight + change(edit, update.site)
        assert torch.allclose(new @ key, weight @ guide, atol=1e-4) and update.rank == 1
        assert torch.allclose(change(near, update.site), change(edit, update.site), atol=1e-5)


def test_quickfix_forgets_no_bias(model):
    """Values are the projection's outputs for the new caption without the bias: with it, the new output would be off by one."""
    edit = wb.edit.diff_quickfix(model, {"a zebra": "a lion"}, lam=1e-6, templates=["{}"])
    recorded = {
        name: model.run(
            [World("w", name)], seeds=[0], num_inference_steps=1, record=["text_encoder.0.out"], guidance_scale=1.0
        )
        for name in ("a zebra", "a lion")
    }
    with model.applied(edit):
        after = model.run(
            [World("w", "a zebra")], seeds=[0], num_inference_steps=1, record=["text_encoder.0.out"], guidance_scale=1.0
        )
    at = lambda run: run.values["text_encoder.0.out"].isel(world=0, seed=0, token=2).values
    assert np.allclose(at(after), at(recorded["a lion"]), atol=1e-4) and not np.allclose(
        at(recorded["a zebra"]), at(recorded["a lion"]), atol=1e-3
    )


def test_what_is_preserved_drifts_less(model):
    kept = [Prompt(text, "") for text in CORPUS]
    free = wb.edit.swap(model, "a zebra", "a giraffe", tokens="all")
    held = wb.edit.swap(
        model, "a zebra", "a giraffe", tokens="all", preserve=kept, preserve_tokens="all", preserve_weight=10.0
    )
    states = encode(model.pipeline, CORPUS)[0].flatten(0, 1).double()
    drift = lambda edit: (states @ change(edit, edit.sites[0]).T).norm()
    assert drift(held) < 0.5 * drift(free)
    assert (
        held.provenance["diagnostics"][held.sites[0]]["drift"] > 0
        and free.provenance["diagnostics"][free.sites[0]]["drift"] is None
    )
    assert "condition" in repr(held) and "swap: " in repr(held)


def test_speed_edits_values_and_fixes_the_empty_prompt(model):
    """What stays exactly: the start token, and centres of the empty prompt; and each layer keeps what it would move the most."""
    kept = ["a cow", "a camel", "a car", "a house"]
    few = dict(tokens="all", preserve_tokens="subject_last", templates="{}", seed=1)
    edit = wb.edit.speed(model, {"a zebra": "a lion"}, preserve=kept[:2], **few)
    assert {model.sites[name].kind for name in edit.sites} == {"cross.v"}
    assert len(edit.sites) == len(model.sites("unet.*.cross"))
    empty = encode(model.pipeline, [""])[0][0].double()
    moved = lambda states, site: (states @ change(edit, site).T).norm(dim=-1)
    keys = encode(model.pipeline, ["a zebra"])[0][0].double()
    for site in edit.sites:
        held = invariant(empty.cpu(), 1)
        assert len(held) == 4 and moved(held, site).max() < 1e-5 * moved(keys, site).max()
    plain = wb.edit.speed(model, {"a zebra": "a lion"}, preserve=kept, augment=0, **few).provenance["diagnostics"]
    assert all(1 <= plain[name]["preserved keys"] < len(kept) for name in edit.sites)
    with pytest.raises(ValueError, match="preserve= is empty; give words or prompts that are to stay"):
        wb.edit.speed(model, {"a zebra": "a lion"}, preserve=[])


def test_localized_layers_stand_for_their_keys_and_values(model):
    layers = [site.name for site in model.sites("unet.*.cross")][:2]
    for asked in (tuple(layers), model.sites(*layers), list(model.sites(*layers)), iter(layers)):
        assert [site.name for site in editable(model, asked)] == [
            f"{layer}.{kind}" for layer in layers for kind in "kv"
        ]
    assert [site.name for site in editable(model, "text_encoder.1.{attention,mlp}")] == [
        "text_encoder.1.out",
        "text_encoder.1.fc2",
    ]


def test_keys_are_aligned_at_the_end_of_the_words_at_each_place(sd1):
    """A subject that stands twice, beside its own replacement: each key is a state of the prompt, its guide that of the same place."""
    for text, guide in (
        ("a zebra in the city", "an elephant in the city"),
        ("a zebra and an elephant and a zebra, running", "an elephant and an elephant and an elephant, running"),
    ):
        pairs = [wb.Prompt(text, "a zebra", replacement="an elephant")]
        old, new = states(sd1, "text states", [text, guide])
        before, after = (tokenize(sd1.pipeline.tokenizer, words) for words in (text, guide))
        for tokens in ("subject_last", "all"):
            keys, guides = gather(sd1, "text states", pairs, tokens)
            wanted = before.of("zebra") if tokens == "subject_last" else range(len(before.ids))
            assert torch.equal(keys, old[list(wanted)])
            places, new_places = before.places("a zebra"), after.places("an elephant")
            new_places = new_places if len(places) == 1 else [new_places[0], new_places[2]]
            for i, taken in zip(wanted, guides):
                if i in before.of("zebra"):
                    place = next(place for place in places if i in place)
                    assert torch.equal(taken, new[new_places[places.index(place)][-1]])
                elif i == before.end:
                    assert torch.equal(taken, new[after.end])


def test_averaged_keys_are_counted_from_the_place_that_they_belong_to(sd1):
    """Two places of one subject are one key where they are averaged: the mean of both last tokens."""
    pairs = [wb.Prompt("a zebra and a zebra", "zebra", replacement="elephant")]
    apart, averaged = (gather(sd1, "text states", pairs, "subject_last", average=each) for each in (False, True))
    for separate, mean in zip(apart, averaged):
        assert len(separate) == 2 and len(mean) == 1 and torch.allclose(separate.mean(0), mean[0])


def test_lam_v_is_obeyed(model):
    same, other = (wb.edit.locoedit(model, PAIR, sites=WINDOW, lam=0.1, lam_v=lam) for lam in (None, 100.0))
    for a, b in zip(same.updates, other.updates):
        assert torch.equal(a.a, b.a) != a.site.endswith(".v")


def test_neurons_set_the_strongest_channels_to_the_neutral_mean(model):
    edit = wb.edit.neurons(
        model,
        {"a zebra": "a lion"},
        sites=WINDOW,
        count=3,
        lam=1e-8,
        templates=["{}", "a photo of {}", "a picture of {}"],
    )
    for update in edit.updates:
        assert (update.b.abs().sum(1) > 0).sum() == 3
    name = edit.sites[0]
    changed = (change(edit, name).abs().sum(1) > 0).nonzero().flatten().tolist()
    with model.applied(edit):
        after = model.run([World("w", "a zebra")], seeds=[0], num_inference_steps=1, record=[name], guidance_scale=1.0)
    read = lambda text: model.run(
        [World("w", text)], seeds=[0], num_inference_steps=1, record=[name], guidance_scale=1.0
    ).values[name]
    neutral = [
        read(text).values[0, 0, 0, at]
        for text, at in (("a lion", 2), ("a photo of a lion", 5), ("a picture of a lion", 5))
    ]
    assert np.allclose(after.values[name].values[0, 0, 0, 2, changed], np.mean(neutral, 0)[changed], atol=2e-3)


def test_embedding_rows_are_swapped(model):
    edit = wb.edit.embedding_swap(model, "zebra", "giraffe")
    assert len(edit.updates) == len(model.sites("text_encoder*.embedding"))
    with model.applied(edit):
        swapped, _ = images(model, World("a", "a zebra in the city"), World("b", "a zebra"))
    plain, _ = images(model, World("a", "a giraffe in the city"), World("b", "a giraffe"))
    assert np.allclose(swapped, plain, atol=1e-4)


def test_textual_inversion_learns_the_word_and_nothing_else(model):
    before = weights(model)
    pictures = model.generate("a giraffe", seeds=range(3), num_inference_steps=2)
    edit = wb.edit.textual_inversion(model, "zebra", pictures, updates=3, batch_size=2)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model)))
    assert all(p.grad is None for p in model.pipeline.unet.parameters())
    for update in edit.updates:
        row = tokenize(model.pipeline.tokenizer, "zebra").ids[1]
        assert (update.b[:, 0].nonzero().flatten().tolist(), update.rank) == ([row], 1) and update.a.abs().max() > 0
    again = wb.edit.textual_inversion(model, "zebra", pictures, updates=3, batch_size=2)
    assert torch.equal(edit.updates[0].a, again.updates[0].a)


# Wrong uses


ROW = torch.ones(1, 16)


def broken_update(**changes):
    return lambda model: Update(
        **dict(
            site="s", module="m", b=torch.ones(2, 1), a=torch.ones(1, 2), base="0" * 64, dtype="float32", family="sd"
        )
        | changes
    )


@pytest.mark.parametrize(
    ("error", "text", "use"),
    [
        (
            ValueError,
            "concepts={}: give a mapping of old words to new",
            lambda m: wb.edit.locoedit(m, {}, sites=WINDOW),
        ),
        (ValueError, "concepts='a zebra': give a mapping", lambda m: wb.edit.locoedit(m, "a zebra", sites=WINDOW)),
        (
            ValueError,
            "prompts that have a subject and a replacement",
            lambda m: wb.edit.uce(m, [Prompt(ZEBRA, "zebra")]),
        ),
        (
            ValueError,
            "templates=('a photo',): give texts that each hold {}",
            lambda m: wb.edit.locoedit(m, PAIR, sites=WINDOW, templates="a photo"),
        ),
        (
            ValueError,
            "templates=3: give a text, or a list of texts",
            lambda m: wb.edit.uce(m, PAIR, templates=3),
        ),
        (
            ValueError,
            "the words' states at text states are those of their guides",
            lambda m: wb.edit.uce(m, {"a cow": "a lion"}, tokens=[0]),
        ),
        (
            ValueError,
            "concepts=: 'a cow' is to act as itself, which changes nothing; name another guide",
            lambda m: wb.edit.uce(m, {"a cow": "A  cow"}),
        ),
        (
            ValueError,
            "concepts['a cow']=' ': give a text that says something",
            lambda m: wb.edit.uce(m, {"a cow": " "}),
        ),
        (
            ValueError,
            "concepts['a cow']=3: give a text that says something",
            lambda m: wb.edit.uce(m, {"a cow": 3}),
        ),
        (
            ValueError,
            "'giraffe' is not in the prompt 'a zebra'",
            lambda m: wb.edit.uce(m, [Prompt("a zebra", "giraffe", "", "cow")]),
        ),
        (
            KeyError,
            "no site matches 'unet.middle.cross'",
            lambda m: wb.edit.locoedit(m, PAIR, sites="unet.middle.cross"),
        ),
        (ValueError, "sites=() names nothing: give names or globs", lambda m: wb.edit.locoedit(m, PAIR, sites=())),
        (
            ValueError,
            "unet.mid.self.k is not given text states; name cross",
            lambda m: wb.edit.uce(m, PAIR, sites="unet.mid.self.k"),
        ),
        (
            ValueError,
            "unet.mid.0.resnet has no weight of its own, ResnetBlock",
            lambda m: wb.edit.uce(m, PAIR, sites="unet.mid.0.resnet"),
        ),
        (
            ValueError,
            "text_encoder.embedding is not given text states",
            lambda m: wb.edit.uce(m, PAIR, sites="text_encoder.embedding"),
        ),
        (
            ValueError,
            "count=99: unet.mid.cross.k has 16 channels; give 1",
            lambda m: wb.edit.neurons(m, PAIR, sites=WINDOW, count=99),
        ),
        (
            ValueError,
            "a variance needs two; give more templates",
            lambda m: wb.edit.neurons(m, PAIR, sites=WINDOW, templates=["{}"]),
        ),
        (
            ValueError,
            "give two different words of equally many",
            lambda m: wb.edit.embedding_swap(m, "zebra", "elephant"),
        ),
        (
            ValueError,
            "images holds none; give at least one",
            lambda m: wb.edit.textual_inversion(m, "zebra", []),
        ),
        (ValueError, "nothing to undo: model.edits is empty; commit an edit first", lambda m: m.undo()),
        (ValueError, "Edit(updates=) of the sites []: give at least one", lambda m: wb.Edit([])),
        (
            ValueError,
            "s: a= of shape (1, 2) holds 2 numbers that are not finite in torch.float32",
            broken_update(a=torch.full((1, 2), torch.inf)),
        ),
        (ValueError, "s: b= has shape (2,): give numbers (out, rank), at least one", broken_update(b=torch.ones(2))),
        (ValueError, "s: b= is (2, 1) and a= (3, 2); their ranks must agree", broken_update(a=torch.ones(3, 2))),
        (ValueError, "Update(site=)='unet.*.cross.k': give a site's name", broken_update(site="unet.*.cross.k")),
        (ValueError, "s: base='0': give a SHA-256", broken_update(base="0")),
        (ValueError, "s: dtype='int8': may be 'float64', 'float32'", broken_update(dtype="int8")),
        (
            ValueError,
            "Edit(provenance=)={'editor': nan}: give what JSON holds",
            lambda m: wb.Edit([update_of(m, "unet.mid.cross.k", ROW.T, ROW)], {"editor": float("nan")}),
        ),
        (
            ValueError,
            "Edit(updates=) holds 'unet.mid.cross.k'; give what update_of",
            lambda m: wb.Edit(["unet.mid.cross.k"]),
        ),
        (
            ValueError,
            "update_of(name=)='unet.mid.cross.[k]': give a site's name",
            lambda m: update_of(m, "unet.mid.cross.[k]", ROW.T, ROW),
        ),
        (KeyError, "no site matches 'unet.mid.cross.w'", lambda m: update_of(m, "unet.mid.cross.w", ROW.T, ROW)),
        (
            ValueError,
            "edit * factor=nan: give a finite number",
            lambda m: wb.edit.locoedit(m, PAIR, sites=WINDOW) * float("nan"),
        ),
        (
            ValueError,
            "would not be finite; scale it (edit * 0.5), or load the model in float32",
            lambda m: m.commit(wb.Edit([update_of(m, "unet.mid.cross.k", 3e38 * ROW.T, 3e38 * ROW)])),
        ),
        (
            ValueError,
            "text_encoder.embedding cannot travel as LoRA",
            lambda m: wb.edit.embedding_swap(m, "zebra", "lion").to_lora("no.safetensors"),
        ),
        (
            ValueError,
            "do not add: one is for a weight",
            lambda m: (
                wb.Edit([update_of(m, "unet.mid.cross.k", ROW.T, ROW)])
                + wb.Edit([Update("unet.mid.cross.k", "unet", ROW.T, ROW, "0" * 64, "float32", "sd")])
            ),
        ),
        (
            ValueError,
            "edit='edit.safetensors' is a str: give an edit, such as wb.edit.uce(model, {'a zebra': 'a giraffe'}); wb.Edit.load(path)",
            lambda m: m.commit("edit.safetensors"),
        ),
        (
            FileNotFoundError,
            "no such file; give path= of a file that Edit.save wrote",
            lambda m: wb.Edit.load("no/such/edit.safetensors"),
        ),
    ],
)
def test_wrong_uses_are_told_and_change_nothing(sd1, error, text, use):
    before = weights(sd1)
    with pytest.raises(error) as raised:
        use(sd1)
    assert text in str(raised.value)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(sd1))) and not sd1.edits


def test_a_preview_runs_under_the_same_checks(sd1):
    edit = wb.edit.locoedit(sd1, PAIR, sites=WINDOW)
    torch.manual_seed(0)
    wide = wb.load(conftest.sdxl())
    with pytest.raises(KeyError, match=r"no site matches 'unet\.mid\.cross\.k'"):
        images(wide, World("a", LION, edit.preview()))
