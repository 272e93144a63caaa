"""The study of hidden concepts: its jobs, its columns, and that it draws from tables alone."""

import pandas as pd
import pytest

from workbench.studies import hidden, hidden_figures


def row(editor: str, attack: str, setting: str, after: float, **others) -> dict:
    about = dict(family="floor", rank=4, n=4, unedited=1.0, before=0.0, redraws=2, redrawn=0.25, controls=4)
    ends = dict(after_low=after / 2, after_high=after, collateral=0.1, collateral_low=0.0, collateral_high=0.2)
    return dict(editor=editor, attack=attack, setting=setting, after=after) | about | ends | others


ROWS = [
    row("near", "nearest_states", "distance 0.2", 0.75),
    row("near", "closed_form", "lam 0.001, distance 0.2", 0.5),
    row("near", "closed_form", "any of these", 1.0),
    row("near", "completion", "share 0.2", 0.25),
    row("near", "completion", "share 0.5", 0.5),
    row("beside", "nearest_states", "distance 0.2", 0.7, collateral=0.12),
    row("beside", "closed_form", "any of these", 0.9, collateral=0.12),
    row("far", "nearest_states", "distance 0.2", 0.1, collateral=0.6, collateral_high=0.7),
    row("far", "closed_form", "any of these", 0.1, collateral=0.6, collateral_high=0.7),
]


def test_a_table_is_drawn_again_without_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(hidden.wb, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    pd.DataFrame(ROWS).to_csv(tmp_path / "hidden.csv", index=False)
    hidden.main(hidden.HiddenOptions(redraw=True, out=tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "hidden.png",
        "hidden_curves.png",
        "hidden_frontier.png",
    ]


def test_the_overview_has_a_row_for_each_editor_and_leaves_empty_what_was_not_measured():
    wide = hidden_figures.wide(pd.DataFrame(ROWS))
    assert wide.index.tolist() == ["near", "beside", "far"]
    assert wide.loc["near", "states\nto 0.2"] == 0.75 and wide.loc["near", "way\nto 0.2"] == 0.5
    assert wide.loc["far", "token\nsearch"] != wide.loc["far", "token\nsearch"]


def test_names_of_points_that_lie_together_stand_in_one_list():
    texts = [text.get_text() for text in hidden_figures.frontier(pd.DataFrame(ROWS)).axes[0].texts]
    assert texts == ["near\nbeside", "far"]


def test_jobs_have_names_of_their_own_and_are_chosen_by_kind_and_editor():
    every = hidden.jobs(hidden.HiddenOptions())
    assert len({job.name for job in every}) == len(every)
    assert {job.kind for job in every} == {"learned", "states"}
    few = hidden.jobs(hidden.HiddenOptions(only=("states",), editors=("resist 1",)))
    assert [job.name for job in few] == ["states-resist-1"]
    with pytest.raises(ValueError, match=r"editors=\['nobody'\]: unknown; there are LocoEdit"):
        hidden.jobs(hidden.HiddenOptions(editors=("nobody",)))
