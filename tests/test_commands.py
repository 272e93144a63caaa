"""The long commands, run short: that they run, and write what they say."""

import pandas as pd
import pytest

from workbench import demo
from workbench.benchmarks import speed
from workbench.localize import agreement, looking, survey


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


def test_the_agreement_of_localizers_is_drawn_with_every_number(tmp_path):
    options = agreement.AgreementOptions(
        attributes=("season", "fact"), prompts=2, seeds=1, num_inference_steps=1, runs=tmp_path / "r", out=tmp_path
    )
    agreement.main(options)
    tables = {
        name: pd.read_csv(tmp_path / f"{name}.csv") for name in ("locogen", "locogen_best", "locogen_search", "localizers", "agreement")
    }
    assert len(tables["locogen"]) == 2 * (16 + 15) and len(tables["localizers"]) == 2 * 4 * 16 and len(tables["agreement"]) == 2 * 10
    assert (tables["locogen_search"].windows < tables["locogen_search"].exhaustive).all()
    assert tables["locogen_best"].direction.tolist() == ["min", "max"]
    assert all((tmp_path / name).exists() for name in ("locogen.png", "localizers.png", "locogen_images.png"))


def test_looking_measures_every_layer_against_its_baselines(tmp_path):
    looking.main(looking.LookingOptions(pictures=6, steps=(12,), out=tmp_path))
    table = pd.read_csv(tmp_path / "attention_iou.csv")
    assert len(table) == 18 and table.iou.between(0, 1).all() and (table.low <= table.high).all()
    assert (table.ceiling.dropna() >= 0.05).all() and (tmp_path / "attention_iou.png").exists()


def test_the_benchmark_times_like_against_like(tmp_path):
    speed.main(speed.SpeedOptions(out=tmp_path / "speed.csv", repeats=1, trace_seeds=1, num_inference_steps=1))
    table = pd.read_csv(tmp_path / "speed.csv")
    assert len(table) == 10 and (table.seconds > 0).all()


def test_the_benchmark_stops_when_the_sides_draw_different_images(tmp_path, monkeypatch):
    by_engine = speed.by_engine
    monkeypatch.setattr(speed, "by_engine", lambda *arguments: 1 - by_engine(*arguments))
    with pytest.raises(RuntimeError, match="text-encoder trace: the loop and the engine draw different images"):
        speed.main(speed.SpeedOptions(out=tmp_path / "speed.csv", repeats=1, trace_seeds=1, num_inference_steps=1))
