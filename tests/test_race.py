"""Races: whoever leaves is certainly beaten, however often one looks, and what is drawn is what a whole run would draw."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats

import workbench as wb
from workbench.cli import main
from workbench.experiments.anytime import beaten, mean_intervals
from workbench.experiments.base import Experiment
from workbench.experiments.drawing import Drawing
from workbench.experiments.racing import Racing
from workbench.experiments.spec import Spec
from workbench.experiments.store import Folder, Memory
from workbench.interventions import World
from workbench.metrics import Measures
from workbench.studies import tiny

UNITS, CANDIDATES, BEST = 40, 6, 2
LOOKS = (4, 8, 12, 16, 20, 24, 28, 32, 36, 40)


def populations(count: int) -> list[np.ndarray]:
    """Scores (unit, candidate) in [0, 1]: probabilities near both ends, whose means are close to one another, two of them equal."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        scores = rng.beta(0.3, 0.5, (UNITS, CANDIDATES))
        scores[:, 3] = rng.permutation(scores[:, 1])  # as good as one of the best, perhaps
        made.append(scores)
    return made


def lost(scores: np.ndarray, leaves, level: float) -> bool:
    """Whether one of the best of a population ever leaves: scores in random order."""
    best = np.argsort(-scores.mean(0), kind="stable")[:BEST]
    worst_of_best = scores.mean(0)[best].min()
    true = np.flatnonzero(scores.mean(0) >= worst_of_best - 1e-12)
    out = set()
    for look in LOOKS:
        out |= set(np.flatnonzero(leaves(scores[:look], level)))
    return len(set(true) - out) < BEST


def by_bets(scores: np.ndarray, level: float) -> np.ndarray:
    return beaten(scores, UNITS, BEST, 1.0, level) >= BEST


def by_intervals(scores: np.ndarray, level: float) -> np.ndarray:
    """What one would do by hand: leave where `BEST` others are better by an ordinary t-test of this look."""
    difference = scores[:, :, None] - scores[:, None, :]
    error = np.maximum(difference.std(0, ddof=1), 1e-12) / np.sqrt(len(scores))
    return (difference.mean(0) / error > stats.t.ppf(level, len(scores) - 1)).sum(0) >= BEST


def test_none_of_the_best_leaves_however_often_one_looks():
    """Errors stay within the level, which looking at ordinary tests again and again does not."""
    level = 0.8  # so that errors could be seen
    wrong = {
        each.__name__: np.mean([lost(scores, each, level) for scores in populations(150)])
        for each in (by_bets, by_intervals)
    }
    assert wrong["by_bets"] <= 1 - level < wrong["by_intervals"]


def test_who_is_clearly_worse_leaves_soon():
    scores = np.random.default_rng(0).beta(2, 2, (200, 8)) * 0.5 + np.r_[[0.5] * 2, [0.0] * 6]
    population = 200
    assert (beaten(scores[:25], population, 2, 1.0, 0.95) >= 2).tolist() == [False] * 2 + [True] * 6
    missing = scores.copy()
    missing[:, 7] = np.nan  # nothing is known of it
    assert beaten(missing[:25], population, 2, 1.0, 0.95)[7] == 0


def test_when_all_is_seen_everything_is_known():
    scores = np.random.default_rng(1).random((12, 5))
    order = np.argsort(-scores.mean(0))
    times = beaten(np.vstack([scores]), 12, 2, 1.0, 0.95)
    low, high = mean_intervals(scores, 12, 0.0, 1.0, 0.95)
    assert np.allclose(low, scores.mean(0)) and np.allclose(high, scores.mean(0))
    assert (times[order[:2]] < 2).all()


def test_intervals_hold_at_all_times_together():
    missed, widths = 0, []
    for scores in populations(40):
        true, outside = scores.mean(0), np.zeros(CANDIDATES, bool)
        for look in LOOKS:
            low, high = mean_intervals(scores[:look], UNITS, 0.0, 1.0, 0.8)
            outside |= (true < low - 1e-9) | (true > high + 1e-9)
            widths.append((high - low).mean())
        missed += outside.sum()
    assert missed / (40 * CANDIDATES) <= 0.2
    assert widths[0] > widths[4] > widths[9] == pytest.approx(0, abs=1e-9)


class Known(Experiment):
    """Scores that are known beforehand: `truth` (prompt, seed, candidate), the last 0.1 for the base."""

    name = "known"
    raced = ("shown", "base")
    columns = (*Experiment.columns, "site")

    def __init__(self, model, truth: np.ndarray):
        prompts = wb.PromptSet.of([f"a zebra number {p}" for p in range(len(truth))])
        super().__init__(model, Spec(seeds=tuple(range(truth.shape[1]))), prompts=prompts, measures=Measures((), ()))
        self.truth = truth

    def metric_names(self, prompts=None):
        return ["probability"]

    def drawing(self, p: int) -> Drawing:
        names = [f"candidate {i}" for i in range(self.truth.shape[2])]
        worlds = [World(name, self.prompts[p].prompt) for name in ("base", *names)]
        return Drawing(p, worlds, [{"world": "base"}, *({"world": "shown", "site": name} for name in names)])

    def metric_rows(self, p, place, images, reference):
        number = None if place["world"] == "base" else int(place["site"].split()[1])
        values = [0.1 if number is None else self.truth[p, seed, number] for seed in images.seed.values]
        return self.value_rows(p, place, {"probability": values}, images.seed.values.tolist())


def test_claims_that_cannot_all_be_true_leave_as_many_as_are_looked_for(model, monkeypatch):
    """Each beats the next in a ring: an error that the level allows for, and no race may end without anybody."""
    ring = np.tile(np.eye(3), (1, 1, 1)).repeat(20, 0)
    racing = Racing(Known(model, ring), wb.RaceSpec(best=1))
    monkeypatch.setattr("workbench.experiments.racing.beaten", lambda *given: np.array([1, 2, 1]))
    assert racing.left(np.array([[0.1, 0.9, 0.4]] * 4)) == (2,)


@pytest.fixture
def drawn(monkeypatch):
    """Numbers of pictures of each run, in place of the pictures themselves."""
    counts: list[int] = []

    def run(self, worlds, *, read=(), seeds=None, held=None):
        counts.append(len(worlds) * len(seeds))
        coords = {"world": [world.name for world in worlds], "seed": list(seeds)}
        images = np.zeros((len(worlds), len(seeds), 1, 1, 3))
        return SimpleNamespace(images=xr.DataArray(images, coords, ("world", "seed", "y", "x", "colour")))

    monkeypatch.setattr(Racing, "run", run)
    return counts


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    pipeline = tiny.sharpen(tiny.PIPELINES["sd1"]())
    pipeline.set_progress_bar_config(disable=True)
    loaded = wb.load(pipeline)
    loaded.num_inference_steps, loaded.guidance_scale = 1, 3.0
    return loaded


def test_a_race_names_the_best_in_fewer_pictures_and_goes_on(model, drawn, tmp_path):
    truth = np.random.default_rng(0).beta(2, 2, (30, 4, 12)) * 0.4 + np.r_[0.6, 0.5, 0.55, [0.0] * 9]
    known = Known(model, truth)
    found = Racing(known, wb.RaceSpec(best=3, units=5)).to_the_end(Folder(tmp_path))
    assert set(found.best(3)) == {"candidate 0", "candidate 1", "candidate 2"}
    assert found.pictures == sum(drawn) and found.pictures_of_all == 30 * 4 * 13 and found.times_fewer > 4
    table = found.table.set_index("site")
    true = pd.Series(truth.mean((0, 1)) - 0.1, [f"candidate {i}" for i in range(12)])[table.index]
    assert ((table.low <= true) & (true <= table.high)).all() and (table.high - table.low < 1).all()
    assert table.standing.tolist() == ["best"] * 3 + ["left"] * 9 and (table.units < 60).all()
    assert (table.units.iloc[:3] >= table.units.iloc[3:].max()).all()
    shards = sorted(tmp_path.glob("*.parquet"))
    for path in shards[::3]:
        path.unlink()
    drawn.clear()
    again = Racing(known, wb.RaceSpec(best=3, units=5)).to_the_end(Folder(tmp_path))
    assert again.table.equals(found.table) and again.pictures == found.pictures and sum(drawn) > 0
    with pytest.raises(ValueError, match=r"the race looked for 3; ask for as many at most"):
        found.best(4)


def test_where_candidates_are_alike_all_is_drawn(model, drawn):
    """And the means are exact."""
    truth = np.random.default_rng(0).random((4, 2, 3))
    found = Racing(Known(model, truth), wb.RaceSpec(best=1)).to_the_end(Memory())
    assert found.pictures == found.pictures_of_all == sum(drawn) == 4 * 2 * 4
    assert np.allclose(found.table.effect, np.sort(truth.mean((0, 1)) - 0.1)[::-1])
    assert found.table.standing[0] == "best" and (found.table.units == 8).all()
    least = Racing(Known(model, truth), wb.RaceSpec(best=1, direction="min")).to_the_end(Memory())
    assert least.table.effect.tolist() == found.table.effect.tolist()[::-1]


def test_a_number_that_is_none_is_refused(model, drawn):
    truth = np.random.default_rng(0).random((2, 2, 3))
    truth[0, 0, 1] = np.nan
    with pytest.raises(
        ValueError, match=r"probability of some picture of prompt0000-seed0 is no number .* safety_checker=False"
    ):
        Racing(Known(model, truth), wb.RaceSpec(best=1)).to_the_end(Memory())


TWO = wb.PromptSet.of([wb.Prompt("a zebra", "zebra", target="a lion"), wb.Prompt("a cat", "cat", target="a dog")])
BRIGHT = wb.Metric("brightness", lambda images: images.mean((1, 2, 3)))


def of_trace(model):
    spec = wb.TraceSpec(sites=("text_encoder.{0,1}.mlp", "unet.mid.cross"), seeds=(0, 1), draws=2)
    return wb.causal_trace, (model, TWO, spec), dict(scorer=BRIGHT), "restored", 1


def of_locogen(model):
    spec = wb.LocoGenSpec(windows=((0, 1), (1, 2), (3, 1)), seeds=(0, 1))
    return wb.locogen, (model, TWO, spec), dict(scorer=BRIGHT), "patched", -1


def of_sweep(model):
    direction = wb.direction(model, ["a zebra in winter"], ["a zebra in summer"]).at("text_encoder.[01].mlp")
    spec = wb.SweepSpec(strengths=(0.5, 2.0), seeds=(0, 1))
    return wb.steer_sweep, (model, TWO, direction, wb.Concept("winter"), spec), dict(scorer=wb.Scorer()), "steered", 1


@pytest.mark.parametrize("of", (of_trace, of_locogen, of_sweep))
def test_what_is_drawn_is_what_the_experiment_draws(model, of):
    """Every score, and the effects of all that none had beaten."""
    experiment, asked, more, kind, sign = of(model)
    race = wb.RaceSpec(best=1, metric="pixel_distance", direction=None)
    found, whole = wb.race(experiment, *asked, race=race, **more), experiment(*asked, **more)
    whole = getattr(whole, "data", whole)
    assert set(found.data) == set(whole)
    for name in whole:
        assert float(abs(found.data[name] - whole[name]).max()) < 1e-5 and found.data[name].sizes == whole[name].sizes
    base = {"restored": "corrupted", "patched": "clean", "steered": "unsteered"}[kind]
    by = whole.sel(metric="pixel_distance")
    effects = sign * (by[kind] - by[base])
    means = effects.mean([axis for axis in ("prompt", "seed", "draw") if axis in effects.dims]).to_dataframe("effect")
    axes = [axis for axis in found.table if axis in means.index.names]
    exact = means.reset_index().set_index(axes).effect.dropna()
    assert np.allclose(found.table.set_index(axes).effect, exact[list(found.table.set_index(axes).index)], atol=1e-5)
    with pytest.raises(ValueError, match=r"these are the scores of a race, .* run without race="):
        wb.effects(found.data, "pixel_distance") if kind == "restored" else wb.LocoGen(
            found.data
        ).effects() if kind == "patched" else (wb.Sweep(found.data).effects("pixel_distance"))


def test_what_cannot_race_is_refused_before_anything_is_drawn(model, monkeypatch):
    monkeypatch.setattr("workbench.engine.run", None)
    experiment, asked, more, *_ = of_trace(model)
    for race, error, said in (
        (
            wb.RaceSpec(metric="brightness"),
            ValueError,
            r"metric='brightness' has no bounds that are known, .* race by one of probability",
        ),
        (
            wb.RaceSpec(metric="probability"),
            KeyError,
            r"metric='probability' is not measured of 'a zebra.*', and a race needs all prompts; there are pixel_distance, ssim, bright",
        ),
        (
            wb.RaceSpec(best=4, metric="ssim"),
            ValueError,
            r"best=4: there are 3 candidates, which leaves nobody to be beaten; look for fewer, or name more sites",
        ),
        (wb.RaceSpec(best=3, metric="ssim"), ValueError, r"best=3: there are 3 candidates, which leaves nobody"),
    ):
        with pytest.raises(error, match=said):
            wb.race(experiment, *asked, race=race, **more)
    with pytest.raises(ValueError, match=r"race\(screen\): .* give wb.causal_trace, wb.locogen, wb.steer_sweep"):
        wb.race(wb.screen, model, TWO)
    with pytest.raises(ValueError, match=r"best=0"):
        wb.RaceSpec(best=0)
    apart = wb.TraceSpec(
        sites=("text_encoder.{0,1}.mlp",), tokens=("subject_last", "after_subject"), draws=1, seeds=(0,)
    )
    ends = [wb.Prompt("a zebra in the savanna", "zebra"), wb.Prompt("a big zebra", "zebra")]
    with pytest.raises(
        ValueError,
        match=r"2 of 4 candidates are not in prompt0001-draw00, 'a big zebra', such as \{'site': 'text_encoder.0.mlp', "
        r"'token': 'after_subject', .*race tokens that all prompts have",
    ):
        wb.race(wb.causal_trace, model, ends, apart, race=wb.RaceSpec(best=1, metric="ssim"), scorer=more["scorer"])
    valued = wb.PromptSet(
        "one",
        (ends[0], replace(ends[0], prompt="a zebra", value="zebra")),
        {"zebra": ("a zebra",), "lion": ("a lion",)},
    )
    once = replace(apart, tokens=("subject_last",))
    with pytest.raises(
        KeyError, match=r"metric='probability' is not measured of 'a zebra in the savanna', and a race needs"
    ):
        wb.race(wb.causal_trace, model, valued, once, race=wb.RaceSpec(best=1), scorer=wb.Scorer())
    pairs = [wb.Prompt("a zebra", "zebra", target="a lion")]
    rising = wb.RaceSpec(best=1, metric="pixel_distance", direction="max")
    with pytest.raises(
        KeyError, match=r"direction='max', which is decided by 'target_pixel_distance', is not measured of 'a zebra'"
    ):
        wb.race(wb.locogen, model, pairs, wb.LocoGenSpec(seeds=(0,)), race=rising, scorer=more["scorer"])

    def causal_trace(*given, **how):
        pytest.fail("it was called")

    with pytest.raises(ValueError, match=r"race\(causal_trace\): what races"):
        wb.race(causal_trace, model, TWO)


def test_a_screening_races_its_proposals(menagerie):
    """Controls are patched everywhere; who left stands behind the others and is none of the best."""
    quick = dict(seeds=(0,), num_inference_steps=2, draws=1, noise_multiple=6.0)
    spec = wb.ScreenSpec(
        sites=("text_encoder.{0,1,2}.{attention,mlp}",), best=1, verified=3, controls=2, race=True, **quick
    )
    prompts = wb.prompt_set("object")[:2]
    found = wb.screen(menagerie, prompts, spec)
    verified = found.table[found.table.role != ""]
    assert (
        verified.standing.value_counts().to_dict() == {"best": 1, "open": 2, "beside": 2}
        and (verified.units == 2).all()
    )
    plain = wb.screen(menagerie, prompts, replace(spec, race=False))
    assert found.best(1) == plain.best(1) and found.pictures == plain.pictures and found.guaranteed == plain.guaranteed
    effects = [each.table.set_index("site").indirect_effect for each in (found, plain)]
    assert np.allclose(effects[0], effects[1][effects[0].index], atol=1e-4, equal_nan=True)
    assert 0 <= found.recall.value <= 1 and found.recall.value == pytest.approx(plain.recall.value, abs=0.02)


def test_a_screening_by_distance_looks_for_the_largest_as_it_does_without_a_race(model):
    spec = wb.ScreenSpec(
        sites=("text_encoder.{0,1,2}.{attention,mlp}",),
        best=1,
        verified=3,
        controls=0,
        race=True,
        seeds=(0, 1),
        draws=1,
    )
    prompts = wb.PromptSet.of([wb.Prompt("a zebra in the savanna", "zebra"), wb.Prompt("a big zebra", "zebra")])
    asked = dict(scorer=wb.Metric("bright", lambda images: images.mean((1, 2, 3))), metric="pixel_distance")
    raced, plain = (wb.screen(model, prompts, replace(spec, race=race), **asked) for race in (True, False))
    assert raced.best(1) == plain.best(1) == tuple(raced.table[raced.table.standing == "best"].site)
    assert (raced.table[raced.table.role == "proposed"].units == 4).all()  # the best in all units, though few were left


def test_commands_refuse_a_metric_that_prompts_lack_before_anything_is_drawn(tmp_path, monkeypatch):
    """Not after all parts, when nothing is left to draw but the figure."""
    (tmp_path / "mine.csv").write_text("prompt,subject,target\na zebra,zebra,a lion\n")
    monkeypatch.setattr("workbench.engine.run", None)
    for command in ("trace", "locate"):
        asked = [command, "--prompts", str(tmp_path / "mine.csv"), "--seeds", "0", "--out", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", ["workbench", *asked])
        with pytest.raises(SystemExit, match=r"--metric='probability' is not measured .*it needs prompts with a value"):
            main()
    monkeypatch.setattr("sys.argv", ["workbench", *asked, "--direction", "max"])
    with pytest.raises(
        SystemExit, match=r"--metric='target_probability' is not measured .*it needs prompts with a target_value"
    ):
        main()


def test_the_command_names_the_best(capsys, tmp_path, monkeypatch):
    asked = ["locate", "--race", "1", "--first", "1", "--num-inference-steps", "1", "--seeds", "0"]
    asked += ["--windows", "0", "1", "3", "1", "--out", str(tmp_path / "race")]
    monkeypatch.setattr("sys.argv", ["workbench", *asked])
    main()
    table = pd.read_csv(tmp_path / "race.csv")
    assert table.standing[0] == "best" and len(table) == 2 and "pictures drawn; wrote" in capsys.readouterr().out
    for more, said in (
        ("--compare", r"--race with --compare: it does several"),
        ("--plan", r"--plan with --race: how many"),
    ):
        monkeypatch.setattr("sys.argv", ["workbench", *asked, more])
        with pytest.raises(SystemExit, match=said):
            main()
