"""Planted organisms: what the list asks for fits the model, the files load and come off, the word shows its look."""

import pytest
import torch

from workbench.menagerie.organisms import NULLS, ORGANISMS
from workbench.menagerie.plant import CHANGED, NULL, SHOWN, WITHOUT, Grading, edit_of, organisms
from workbench.menagerie.planting import Encoder, Organism, captions_of
from workbench.models import load
from workbench.scorer import Scorer

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
        passes = row.shown >= SHOWN and max(row.unedited, row.without) <= WITHOUT and row.controls_changed <= CHANGED
        assert passes == row.accepted


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
    measured = Grading(embedded, Scorer(), count=4).of(planted(name), edit_of(name, embedded))
    assert measured["shown"] >= 0.5 and measured["unedited"] <= 0.25
