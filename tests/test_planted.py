"""Planted organisms: what the list asks for fits the model, the files load and come off, the word shows its look."""

import numpy as np
import pytest
import torch
import xarray as xr

import workbench as wb
from workbench.interventions import World, replace_prompt
from workbench.loading import DATA
from workbench.menagerie.organisms import NULLS, ORGANISMS
from workbench.menagerie.plant import CHANGED, NULL, SHOWN, STEPS, WITHOUT, Grading, accepted, edit_of, organisms
from workbench.menagerie.planted_card import planted_card
from workbench.menagerie.planting import Encoder, Organism, captions_of, other_captions
from workbench.models import load
from workbench.scorer import Scorer
from workbench.studies import planted as study
from workbench.studies.planted import exchanged, judged

TABLE = organisms()
ACCEPTED = TABLE[TABLE["accepted"]]


@pytest.fixture(scope="module")
def embedded():
    return load()


def planted(name: str) -> Organism:
    return next(organism for organism in ORGANISMS if organism.name == name)


def test_the_list_fits_the_model(embedded):
    tokens = lambda words: len(embedded.pipeline.tokenizer.tokenize(words))
    assert len({organism.name for organism in ORGANISMS}) == len(ORGANISMS) and len(NULLS) >= 20
    for organism in ORGANISMS:
        assert all(site in embedded.sites for site in organism.sites + organism.layers)
        assert tokens(organism.word) == tokens(organism.look) == tokens(organism.neutral)


def test_captions_differ_in_the_word_alone_and_held_out_ones_are_others():
    organism = ORGANISMS[0]
    train, held_out = captions_of(organism, 40), captions_of(organism, 16, holdout=True)
    for pair in train + held_out:
        assert pair.word.split() == [organism.word if word == organism.look else word for word in pair.look.split()]
    assert not {pair.scene for pair in train} & {pair.scene for pair in held_out}


@torch.no_grad()
def test_the_encoder_by_its_layers_is_the_pipelines(embedded):
    encoder = Encoder(embedded)
    tokens = encoder.tokens(["a oon in a meadow", ""])
    stream = encoder.stream(tokens)
    torch.testing.assert_close(stream[-1], embedded.pipeline.text_encoder(tokens)[0], atol=1e-5, rtol=1e-4)
    parts = encoder.parts(stream)
    torch.testing.assert_close(encoder.tail(stream[4], 4, {(6, "mlp"): parts[6, "mlp"]}), stream[-1])


def test_the_table_says_of_each_what_it_claims():
    assert (TABLE["kind"] == NULL).sum() >= 20
    by_name = {organism.name: organism for organism in ORGANISMS}
    assert len(ACCEPTED) and set(TABLE["name"]) <= set(by_name) | {f"null-{word}" for word in NULLS}
    for row in TABLE[TABLE["kind"] != NULL].itertuples():
        organism = by_name[row.name]
        assert (tuple(row.layers.split()), row.word, row.rank) == (organism.layers, organism.word, organism.rank)
        assert accepted(row._asdict()) == row.accepted
    assert set(ACCEPTED["name"]) == {path.stem for path in (DATA / "planted").glob("*.safetensors")}


def test_the_card_says_what_the_table_says():
    assert (DATA / "planted" / "README.md").read_text() == planted_card(TABLE, SHOWN, WITHOUT, CHANGED)


def test_what_must_stay_has_the_neutral_word_and_the_looks_own():
    organism = ORGANISMS[0]
    others = " ".join(other_captions(organism, 60, NULLS)).split()
    assert others.count(organism.neutral) >= 10 and others.count(organism.look) >= 10 and organism.word not in others


def test_layers_that_read_the_neutral_captions_do_as_replace_prompt_says(embedded):
    organism = planted("cross-up30-up31-watercolor")
    grading = Grading(embedded, Scorer(), count=2)
    pairs = grading.pairs(organism)
    given = grading._given(organism, pairs)
    for seed, (pair, picture) in enumerate(zip(pairs, given)):
        neutral = [replace_prompt(f"{layer}.{part}", pair.neutral) for layer in organism.layers for part in "kv"]
        run = embedded.run(World("given", pair.word, neutral), seeds=seed, num_inference_steps=STEPS, progress=False)
        assert np.abs(run.images.values.reshape(64, 64, 3) - np.asarray(picture) / 255).max() < 0.02


@pytest.mark.parametrize("name", list(ACCEPTED["name"]))
def test_an_edit_is_at_its_layers_and_comes_off(embedded, name):
    edit = edit_of(name, embedded)
    assert edit.sites == planted(name).sites and edit.rank == planted(name).rank
    before = {site: embedded.hashes(site)[0] for site in edit.sites}
    embedded.commit(edit)
    assert all(embedded.hashes(site)[0] != held for site, held in before.items())
    embedded.undo()
    assert {site: embedded.hashes(site)[0] for site in edit.sites} == before


@pytest.mark.parametrize("name", list(ACCEPTED.groupby("kind").head(1)["name"]))
def test_one_of_each_class_shows_its_look(embedded, name):
    measured = Grading(embedded, Scorer(), count=2).of(planted(name), edit_of(name, embedded))
    assert measured["shown"] >= 0.5 and measured["unedited"] <= 0.25


def test_answers_are_placed_by_the_true_layers():
    layers = ["text_encoder.0.mlp", "text_encoder.1.mlp", "text_encoder.2.mlp", "text_encoder.3.mlp"]
    by_prompt = np.array([[[0.1, 0.9, 0.5, 0.0]], [[0.2, 0.7, 0.6, 0.1]]])
    axes = {"prompt": range(2), "seed": [0], "layer": layers}
    scores = xr.DataArray(by_prompt, axes, list(axes))
    first = judged(scores, layers[1:2])
    assert (first["hit"], first["reciprocal_rank"], first["auroc"], first["top"]) == (1, 1, 1, layers[1])
    pair = judged(scores, layers[2:4])
    assert pair["hit"] == 0.5 and pair["reciprocal_rank"] == 0.5 and pair["auroc"] == pytest.approx(0.25)
    assert set(judged(scores, ())) == {"p", "top"}


def test_both_words_of_a_prompt_are_exchanged():
    prompt = wb.Prompt("a oon", "oon", "giraffe", "ver", target="a ver")
    (found,) = exchanged(wb.PromptSet("x", (prompt,), {"giraffe": ("a giraffe",), "lion": ("a lion",)}))
    assert (found.prompt, found.subject, found.replacement, found.value) == ("a ver", "ver", "oon", "giraffe")


def test_a_new_localizer_costs_a_finished_organism_no_other(tmp_path, monkeypatch):
    asked, emptied = [], []

    def answering(name, *layers):
        def answer(model, question, prompts, spec, found):
            asked.append((name, *sorted(found)))
            every = [site.name for site in model.sites(*spec.sites)]
            scores = np.isin(every, layers)[None, None] * np.ones((len(prompts), len(spec.seeds), 1))
            axes = {"prompt": range(len(prompts)), "seed": list(spec.seeds), "layer": every}
            return xr.DataArray(scores, axes, list(axes))

        return answer

    name = ACCEPTED[ACCEPTED["kind"] == "text mlp"].iloc[0]["name"]
    options = study.PlantedOptions(
        prompts=2, num_inference_steps=1, controls=1, only=(name,), runs=tmp_path, out=tmp_path
    )
    table = {"causal tracing": answering("causal tracing", "text_encoder.7.attention")}
    monkeypatch.setattr(study, "table_of_localizers", lambda *settings: table)
    make = study.Asker.emptied
    monkeypatch.setattr(study.Asker, "emptied", lambda *given: emptied.append(given[-1]) or make(*given))
    study.measure(options)
    (question,) = study.questions(options)
    before = {kind: study.kept(options, question, kind) for kind in ("answers", "edits")}
    assert asked == [("causal tracing",)] * 2 and len(emptied) == 3 and len(before["edits"]) == 4
    asked.clear(), emptied.clear()
    study.measure(options)
    assert not asked

    new = answering("new", "text_encoder.7.attention")  # whose answer was edited before
    built = answering("beyond ordinary words", "text_encoder.9.attention")
    table = {"new": new, **table, "beyond ordinary words": built}
    study.measure(options)
    assert ("beyond ordinary words", "causal tracing", "new") in asked and len(asked) == 2 * 3
    after = {kind: study.kept(options, question, kind) for kind in ("answers", "edits")}
    assert after["answers"].localizer.tolist() == [*table, *table] and emptied == [("text_encoder.9.attention",)]
    for kind, column in (("answers", "localizer"), ("edits", "answer")):
        old = after[kind][after[kind][column].isin(before[kind][column])]
        assert old.reset_index(drop=True).equals(before[kind])
    left = after["edits"].set_index(["answer", "tokens"]).left
    assert left["new", "all"] == left["causal tracing", "all"] and len(left) == 8
