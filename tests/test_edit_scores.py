"""Edits scored by others' measures: cases in TIMED's form, and two things where one is named."""

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.edit import cases as scored
from workbench.studies import compose, timed
from workbench.studies.edits import told_other

CASE = wb.edit.EditCase("a car", "a red car", {"a car at night": "a red car at night"}, {"a house": "a red house"})


def test_a_file_in_timeds_form_is_read(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text(
        "old,new,positive1,gt1,positive2,gt2,negative1,gn1\n"
        "A cat,A green cat,A kitten,A green kitten,Two cats,Two green cats,A dog,A green dog\n"
    )
    (case,) = wb.edit.read_cases(path)
    assert case.prompts() == [
        ("efficacy", "A cat", "A green cat"),
        ("generality", "A kitten", "A green kitten"),
        ("generality", "Two cats", "Two green cats"),
        ("specificity", "A dog", "A green dog"),
    ]
    path.write_text("old,new,positive1,gt1,negative1\nA cat,A green cat,A kitten,A green kitten,A dog\n")
    with pytest.raises(ValueError, match=r"cases.csv lacks the columns \['gn1'\]"):
        wb.edit.read_cases(path)
    path.write_text("old,new,positive1,gt1,negative1,gn1\nA cat,A green cat,,A green kitten,A dog,A green dog\n")
    with pytest.raises(ValueError, match=r"cases.csv, line 2: positive1 is empty; fill it in"):
        wb.edit.read_cases(path)
    with pytest.raises(
        ValueError, match=r"negatives=\{\}: give a mapping of prompts to what the edit would make of them"
    ):
        wb.edit.EditCase("a car", "a red car", {"a car at night": "a red car at night"}, {})


def test_the_embedded_models_cases_name_their_subject_once_and_nothing_twice():
    for case in wb.edit.read_cases():
        texts = [text for _, *pair in case.prompts() for text in pair]
        assert len(set(texts)) == len(texts) == 22, case.old
        assert all(case.old.split()[-1] not in prompt for prompt, _ in case.negatives)


def test_pictures_are_judged_by_the_nearer_of_two_texts(menagerie, scorer, monkeypatch):
    """A model that draws what its prompt says is right in specificity alone, one that draws the counterpart in the two others."""
    drawn = []

    def embeddings(images):
        return scorer.text_embeddings(tuple(drawn))

    others = {prompt: other for _, prompt, other in CASE.prompts()}
    monkeypatch.setattr(scorer, "image_embeddings", embeddings)
    cases = scored.Cases(menagerie, wb.TraceSpec(seeds=(3, 4)), (CASE,), [], scorer, 4)
    for said, right in (({}, [False, False, True]), (others, [True, True, False])):

        def generate(texts, said=said, **settings):
            drawn[:] = [said.get(text, text) for text in texts]

        monkeypatch.setattr(menagerie, "generate", generate)
        assert cases.as_it_ought(CASE.prompts()) == np.repeat(right, 2).tolist()


def test_an_edit_is_made_of_each_case_and_its_pictures_are_before_and_behind(menagerie, scorer, tmp_path):
    made, before = [], menagerie.record

    def editor(model, old, new):
        made.append((old, new))
        return wb.edit.uce(model, {old: new}) * 0

    settings = dict(seeds=(0, 1), num_inference_steps=1, scorer=scorer, folder=tmp_path / "cases", batch_size=12)
    rows = wb.edit.score_cases(menagerie, editor, CASE, **settings)
    assert made == [("a car", "a red car")] and len(rows) == 3 * 2
    assert rows.unedited.equals(rows.edited)  # an edit of nothing
    assert menagerie.record == before
    again = wb.edit.score_cases(menagerie, editor, CASE, **settings)
    assert again.equals(rows)
    with pytest.raises(ValueError, match="holds the results of another specification"):
        wb.edit.score_cases(menagerie, lambda model, old, new: wb.edit.uce(model, {old: new}), CASE, **settings)
    with pytest.raises(
        ValueError, match=r"editor returned None: give a function of model, old and new that returns an edit"
    ):
        wb.edit.score_cases(menagerie, lambda model, old, new: None, CASE)
    with pytest.raises(ValueError, match=r"cases='a car': give cases, as wb.edit.read_cases"):
        wb.edit.score_cases(menagerie, editor, "a car")


def test_the_table_has_intervals_over_cases():
    rows = pd.DataFrame(
        [
            dict(case=case, measure=measure, unedited=False, edited=case < 3)
            for case in range(4)
            for measure in scored.MEASURES
            for _ in range(5)
        ]
    )
    table = wb.edit.case_table(rows).set_index("measure")
    assert (table.edited == 0.75).all() and (table.unedited == 0).all() and (table.cases == 4).all()
    assert (table.edited_low < 0.4).all()  # four cases, not twenty pictures


def test_composed_pictures_are_given_what_the_prompt_of_both_gives(menagerie):
    options = compose.ComposeOptions(every=25)
    fit = compose.Fit(tuple(wb.prompt_set("swap/compose_train")), compose.preserved()).thinned(options.every)
    acts, prompt = compose.interventions(menagerie, fit), wb.prompt_set("swap/compose_held_out")[0]
    settings = dict(seeds=0, num_inference_steps=1, progress=False)
    worlds = [wb.World("given", prompt.prompt, acts["given, all layers"](prompt)), told_other(prompt)]
    given, both = menagerie.run(worlds, **settings).images
    assert np.allclose(given, both, atol=1e-4)
    control = wb.prompt_set("swap/compose_control")[0]
    assert acts["given, all layers"](control) == [] and acts["steered, layer 0"](control)


def test_the_composed_table_counts_both_and_what_others_show():
    rows = pd.DataFrame(
        [
            ("edit", "held_out", "cow and hydrant", "cow"),
            ("edit", "held_out", "hydrant", "cow"),
            ("edit", "control", "lion and hydrant", "lion"),
            ("edit", "control", "lion", "lion"),
        ],
        columns=["method", "set", "edited", "unedited"],
    )
    table = compose.compose_table(rows).set_index(["set", "measure"]).value
    assert table.to_dict() == {
        ("held_out", "both"): 0.5,
        ("held_out", "cow alone"): 0.0,
        ("held_out", "hydrant alone"): 0.5,
        ("control", "a hydrant"): 0.5,
        ("control", "changed"): 0.5,
    }


def test_shares_of_cases_need_cases():
    with pytest.raises(ValueError, match="found no values"):
        wb.edit.case_table(pd.DataFrame(dict(case=[], measure=[], unedited=[], edited=[])))


def test_the_study_scores_every_editor_on_a_file(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text(
        "old,new,positive1,gt1,negative1,gn1\na cow,a lion,a cow at night,a lion at night,a car,a red car\n"
    )
    timed.main(timed.TimedOptions(path, seeds=1, num_inference_steps=1, runs=tmp_path / "r", out=tmp_path))
    table = pd.read_csv(tmp_path / "timed.csv")
    assert list(table.editor.unique()) == list(timed.EDITORS) and len(table) == 3 * 3
    assert (table.unedited_low <= table.unedited).all() and (table.edited <= table.edited_high).all()
