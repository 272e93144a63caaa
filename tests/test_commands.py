"""The long commands, run short: that they run, and write what they say."""

import pandas as pd
import pytest

from workbench import demo
from workbench.benchmarks import speed
from workbench.localize import survey


def test_the_demo_draws_its_heatmaps(tmp_path, capsys):
    demo.main(demo.DemoOptions(seeds=1, num_inference_steps=1, out=tmp_path / "zebra.png"))
    assert (tmp_path / "zebra.png").stat().st_size > 50_000
    assert capsys.readouterr().out.count("total effect") == 3


def test_the_survey_draws_both_figures_and_keeps_every_number(tmp_path):
    options = survey.SurveyOptions(
        attributes=("style", "season"), prompts=2, seeds=1, num_inference_steps=1, runs=tmp_path / "r", out=tmp_path
    )
    survey.main(options)
    table = pd.read_csv(tmp_path / "causal_trace.csv")
    assert set(table.attribute) == {"style", "season"} and len(table) == 2 * (36 + 54)
    assert (table.indirect_effect_low <= table.indirect_effect + 1e-6).all()
    assert all((tmp_path / f"causal_trace_{part}.png").exists() for part in ("text", "unet"))


def test_the_benchmark_times_like_against_like(tmp_path):
    speed.main(speed.SpeedOptions(out=tmp_path / "speed.csv", repeats=1, trace_seeds=1, num_inference_steps=1))
    table = pd.read_csv(tmp_path / "speed.csv")
    assert len(table) == 8 and (table.seconds > 0).all()


def test_the_benchmark_stops_when_the_sides_draw_different_images(tmp_path, monkeypatch):
    by_engine = speed.by_engine
    monkeypatch.setattr(speed, "by_engine", lambda *arguments: 1 - by_engine(*arguments))
    with pytest.raises(RuntimeError, match="the loop and the engine draw different images"):
        speed.main(speed.SpeedOptions(out=tmp_path / "speed.csv", repeats=1, trace_seeds=1, num_inference_steps=1))
