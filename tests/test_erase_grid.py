"""UnlearnCanvas' columns: what is drawn, what counts, its intervals, and that a stopped study goes on."""

from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from workbench.experiments.statistics import share
from workbench.studies import erase_grid
from workbench.studies.erase_grid import ATTACKED, GRID, GridOptions, Job, jobs, table_of
from workbench.studies.erase_scenes import BEST, SOME, UNEDITED, attacked_scenes, canvas, graded_scenes, scenes
from workbench.studies.hidden_edits import GUIDES, STYLES


def row(editor: str, target: str, measure: str, hits: int, n: int) -> dict:
    kind = "style" if target in STYLES else "subject"
    return dict(editor=editor, kind=kind, target=target, guide="a cow", measure=measure, hits=hits, n=n)


def test_each_subject_stands_in_each_style_at_each_place_with_a_seed_of_its_own():
    assert len(scenes()) == len({scene.prompt for scene in scenes()}) == len({scene.seed for scene in scenes()}) == 120
    for target, count in (("zebra", 5), ("pixel art", 12)):
        half = attacked_scenes(target)
        assert len(half) == count and all(scene.of(target) for scene in half)
        assert len({(scene.subject, scene.style) for scene in half}) == count
        places = Counter(scene.prompt.endswith("city") for scene in half)
        assert abs(places[True] - places[False]) <= 1
    few = graded_scenes("UCE", "zebra")
    assert few[:5] == attacked_scenes("zebra") and len(few) == 21 and not any(scene.of("zebra") for scene in few[5:])
    assert len(graded_scenes(BEST[0], "zebra")) == 120


def test_jobs_have_names_of_their_own_and_the_best_editors_erase_all():
    every = jobs(GridOptions())
    assert len({job.name for job in every}) == len(every) == len(set(every))
    assert {job.target for job in every if job.editor == BEST[1]} == {*GUIDES, *STYLES}
    assert {job.target for job in every if job.editor == "UCE"} == set(SOME)
    few = jobs(GridOptions(only=(GRID,), editors=("resist 1",), targets=("zebra",)))
    assert [job.name for job in few] == ["grid-resist-1-zebra"]
    with pytest.raises(ValueError, match=r"editors=\['nobody'\]: unknown; there are unedited, recipe x 1.2"):
        jobs(GridOptions(editors=("nobody",)))


def test_canvas_counts_what_is_gone_and_what_is_kept():
    cells = [("zebra", "none", "cow", "none"), ("zebra", "none", "zebra", "none"), ("cow", "pixel art", "cow", "none")]
    table = pd.DataFrame(cells, columns=["subject", "style", "shown", "looks"])
    assert {name: hits.tolist() for name, hits in canvas(table, "zebra").items()} == dict(
        UA=[True, False], IRA=[True], CRA=[False]
    )
    assert {name: hits.mean() for name, hits in canvas(table, "pixel art").items()} == dict(UA=1.0, IRA=1.0, CRA=0.5)


def test_every_cell_has_its_interval_and_means_count_each_picture_once():
    hits = {"zebra": (8, 100), "penguin": (2, 87), "balloon": (0, 100), "house": (10, 100), "lion": (7, 90)}
    rows = [
        row(BEST[0], target, measure, count, n)
        for target, own in hits.items()
        for measure, count, n in zip(("UA", "IRA"), own, (10, 110))
    ]
    table = table_of(pd.DataFrame(rows)).set_index(["target", "measure"])
    assert table.loc["zebra", "UA"].low == pytest.approx(share([True] * 8 + [False] * 2).low)
    assert set(table.index.get_level_values("target")) == {
        *hits,
        "some subjects",
    }  # the lion is in no group that is whole
    some = table.loc["some subjects"]
    assert some.loc["UA"].value == 0.5 and some.loc["UA"].n == 40
    assert some.loc["UA"].low == pytest.approx(share([True] * 20 + [False] * 20).low)
    assert some.loc["IRA"].value == 387 / 440 and some.loc["IRA"].n == 440
    assert some.loc["IRA"].high == pytest.approx(
        share([True] * 106 + [False] * 14).high
    )  # of 120 pictures, drawn again


def test_a_study_that_was_stopped_goes_on_and_is_drawn_from_its_table(tmp_path, monkeypatch):
    options = GridOptions(
        editors=("UCE",), targets=("zebra",), only=(ATTACKED,), num_inference_steps=1, every=40,
        runs=tmp_path / "runs", out=tmp_path,
    )  # fmt: skip
    done = Job(GRID, "UCE", "zebra")
    options.runs.mkdir()
    before = [row("UCE", "zebra", "UA", 5, 5), row("UCE", "zebra", "IRA", 15, 16), row("UCE", "zebra", "CRA", 16, 16)]
    pd.DataFrame(before).to_csv(options.runs / f"{done.name}.csv", index=False)
    erase_grid.main(options)
    table = pd.read_csv(tmp_path / "grid.csv", keep_default_na=False)
    assert set(table.measure) == {"UA", "IRA", "CRA", *erase_grid.ATTACKS.values()}
    assert set(table[table.measure.str.startswith("UA")].n) == {5} and table.high.between(0, 1).all()
    monkeypatch.setattr(erase_grid, "Worker", lambda *_: pytest.fail("a model was loaded"))
    erase_grid.main(options)
    erase_grid.main(replace(options, redraw=True))
    assert {path.name for path in tmp_path.glob("*.png")} == {"grid_targets.png"}  # no group is whole


def test_the_unedited_model_is_measured_once_for_all_targets(monkeypatch):
    worker = object.__new__(erase_grid.Worker)
    drawn = []
    graded = pd.DataFrame([dict(subject=each.subject, style=each.style) for each in scenes()])
    monkeypatch.setattr(
        worker, "graded", lambda some: drawn.append(len(some)) or graded.assign(shown="cow", looks="none")
    )
    counts = [worker.in_grid(Job(GRID, UNEDITED, target))["UA"] for target in ("zebra", "cow", "pixel art")]
    assert drawn == [120] and [int(each.sum()) for each in counts] == [10, 0, 24]
