"""The long commands, run short: that they run, and write what they say."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench import cli
from workbench.cli.change import P2P
from workbench.menagerie.world import Scene, render
from workbench.studies import (
    agreement,
    demo,
    edit_speed,
    edit_tasks,
    erase,
    looking,
    p2p_pairs,
    prompt_to_prompt,
    speed,
    survey,
    swap,
    swap_fresh,
    swap_rank,
    windows,
    winter,
    winter_setting,
    winter_study,
)
from workbench.viewer.sources import sources_of
from workbench.viewer.studies import studies_of


def on_page(folder: Path, title: str, measure: str) -> dict[tuple[str, ...], list[float]]:
    """What the page of a folder's results says of a measure: of each cell its value and the ends of its interval."""
    (study,) = [study for study in studies_of(sources_of(folder)) if study.title == title]
    (view,) = [view for view in study.views if view.label == measure]
    return {
        tuple(axis.values[i] for axis, i in zip(view.axes, index)): [
            float(view.cells[end][index]) for end in ("value", "low", "high")
        ]
        for index in zip(*np.nonzero(np.isfinite(view.cells["value"])))
    }


def test_the_demo_draws_its_heatmaps(tmp_path, capsys, monkeypatch):
    few = ("text_encoder.{0,11}.hidden", "text_encoder.{0,11}.{attention,mlp,hidden}", "unet.{mid,up.1}.*.{resnet,ff}")
    panels = {name: (sites, tokens) for sites, (name, (_, tokens)) in zip(few, demo.PANELS.items())}
    monkeypatch.setattr(demo, "PANELS", panels)
    demo.main(demo.DemoOptions(seeds=1, num_inference_steps=1, out=tmp_path / "zebra.png"))
    assert (tmp_path / "zebra.png").stat().st_size > 50_000
    assert capsys.readouterr().out.count(": total effect ") == 3


def test_the_survey_draws_both_figures_and_keeps_every_number(tmp_path, monkeypatch):
    few = {"text": ("text_encoder.{0,5}.{attention,mlp}",), "unet": ("unet.{mid,up.1.*}.cross",)}
    monkeypatch.setattr(survey, "SITES", few)
    options = survey.SurveyOptions(
        attributes=("style", "season"), prompts=1, seeds=1, num_inference_steps=1, runs=tmp_path / "r", out=tmp_path
    )
    survey.main(options)
    table = pd.read_csv(tmp_path / "causal_trace.csv")
    assert set(table.attribute) == {"style", "season"} and len(table) == 2 * (4 + 4)
    assert (table.indirect_effect_low <= table.indirect_effect + 1e-6).all()
    assert all((tmp_path / f"causal_trace_{part}.png").exists() for part in ("text", "unet"))


def test_the_agreement_of_localizers_is_drawn_with_every_number(tmp_path):
    options = agreement.AgreementOptions(
        attributes=("season",), prompts=1, seeds=1, num_inference_steps=1, runs=tmp_path / "r", out=tmp_path
    )
    agreement.main(options)
    tables = {
        name: pd.read_csv(tmp_path / f"{name}.csv")
        for name in ("locogen", "locogen_best", "locogen_search", "localizers", "agreement")
    }
    assert len(tables["locogen"]) == 16 + 15 and len(tables["localizers"]) == 4 * 16 and len(tables["agreement"]) == 10
    assert (tables["locogen_search"].windows < tables["locogen_search"].exhaustive).all()
    assert tables["locogen_best"].direction.tolist() == ["min"]
    assert all((tmp_path / name).exists() for name in ("locogen.png", "localizers.png", "locogen_images.png"))


def test_looking_measures_every_layer_against_its_baselines(tmp_path):
    looking.main(looking.LookingOptions(pictures=6, steps=(12,), out=tmp_path))
    table = pd.read_csv(tmp_path / "attention_iou.csv")
    assert len(table) == 18 and table.iou.between(0, 1).all() and (table.low <= table.high).all()
    assert (table.ceiling.dropna() >= 0.05).all() and (tmp_path / "attention_iou.png").exists()


def quick_speed(tmp_path, *studies):
    few = dict(repeats=1, seeds=1, num_inference_steps=2, prompts=2, best_steps=1, screened=1, raced=1)
    return speed.SpeedOptions(studies, tmp_path / "speed.csv", **few)


def test_the_benchmark_times_like_against_like(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SITES", "text_encoder.{0,5}.{attention,mlp}")
    monkeypatch.setattr(speed, "HEADS", {"heads": ("text_encoder.{0,1,2}.z",)})
    monkeypatch.setattr(speed, "COMPONENTS", ("text_encoder.*.mlp",))
    options = quick_speed(
        tmp_path, *(name for name in speed.STUDIES if name != "workers")
    )  # Ray's have tests of their own
    speed.main(options)
    table = pd.read_csv(tmp_path / "speed.csv").set_index(["study", "side"])
    assert len(table) == 6 + 2 + 4 + 3 + 2 + 7 and (table.seconds > 0).all() and (table.threads == 1).all()
    assert np.allclose(table.share * table.times_faster, 1, rtol=0.02)
    assert (table.largest_difference.dropna() < 1e-3).all() and table.recall.dropna().between(0, 1).all()
    best = table.loc["best three"].images
    assert best["heads: wb.screen"] == best["heads: engine, all"] == 2 * (2 + 12)


def test_the_benchmark_stops_when_the_sides_draw_different_images(tmp_path, monkeypatch):
    by_engine = speed.engine
    monkeypatch.setattr(speed, "engine", lambda *given, **how: 1 - by_engine(*given, **how))
    monkeypatch.setattr(speed, "SITES", "text_encoder.0.mlp")
    with pytest.raises(RuntimeError, match="text-encoder trace: the loop and the engine draw different images"):
        speed.main(quick_speed(tmp_path, "text-encoder trace"))


def test_the_study_of_ranks_measures_every_editor_and_goes_on_where_it_was(tmp_path):
    options = swap_rank.RankOptions(
        pairs=1, every=50, images=2, num_inference_steps=1, runs=tmp_path / "runs", out=tmp_path
    )
    swap_rank.main(options)
    table = pd.read_csv(tmp_path / "swap_rank.csv")
    assert set(table.pair) == {"all pairs", "zebra / giraffe"}
    ranks = table.drop_duplicates("editor").set_index("editor")["rank"]
    for editor, rank in ranks.items():
        assert rank == (int(editor.rsplit(" ", 1)[1]) if "rank " in editor else rank)
    assert ranks["unedited"] == 0 and ranks["swap, full rank"] > 8 and len(ranks) == 10
    held = table[(table.pair == "all pairs") & (table.measure == "swapped")].set_index("editor")
    assert (held.n == 2).all() and ((held.low <= held.value) & (held.value <= held.high)).all()
    assert (table[(table.editor == "unedited") & (table.measure == "collateral")].value == 0).all()
    assert set(table[table.measure == "miss"].editor) == {"reflect, rank 1"}
    before = (tmp_path / "swap_rank.csv").read_bytes()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.parquet")}
    swap_rank.main(options)
    assert finished == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.parquet")}
    assert (tmp_path / "swap_rank.csv").read_bytes() == before and (tmp_path / "swap_rank.png").stat().st_size > 20_000


def test_the_swap_is_measured_on_what_nothing_was_chosen_by(tmp_path):
    options = swap_fresh.FreshOptions(
        editors=("swap, rank 1", "reflect, rank 1"),
        every=50,
        images=4,
        num_inference_steps=1,
        runs=tmp_path / "r",
        out=tmp_path,
    )
    swap_fresh.main(options)
    table = pd.read_csv(tmp_path / "swap_fresh.csv").set_index(["editor", "measure"])
    assert (table.n[:, "swapped"] == 4).all() and (table.n[:, "unseen, changed"] == 4).all()
    assert sum(table.n["unedited", f"unseen, changed: {kind}"] for kind in swap_fresh.UNSEEN) == 4
    assert (table.value["unedited"].drop("unseen, was one of the pair").drop("swapped") == 0).all()
    assert (tmp_path / "swap_fresh.png").stat().st_size > 20_000
    with pytest.raises(ValueError, match="editors=\\['qux'\\]: unknown; there are swap, "):
        swap_fresh.measured(wb.load(), replace(options, editors=("qux",)))


def test_the_study_of_erasing_measures_what_is_left_and_what_else_changes(tmp_path):
    options = erase.EraseOptions(
        subjects=("zebra",), guide="kind", images=2, num_inference_steps=1, runs=tmp_path / "r", out=tmp_path
    )
    erase.main(options)
    table = pd.read_csv(tmp_path / "erase_kind.csv")
    assert set(table.subject) == {"all subjects", "zebra"} and set(table.editor) == {
        "unedited",
        "erase, rank 1",
        "erase, rank 4",
    }
    assert set(table.measure) == {"subject shown", "collateral", "image distance, control"} and (table.n == 2).all()
    guides = table[table.subject == "zebra"].dropna(subset=["guide"])
    assert set(guides.editor) == {"erase, rank 1", "erase, rank 4"} and "a zebra" not in set(guides.guide)
    assert ((table.low <= table.value + 1e-9) & (table.value <= table.high + 1e-9)).all()


def test_the_swap_benchmark_measures_every_set_and_goes_on_where_it_was(tmp_path):
    options = swap.SwapOptions(
        editors=("uce", "embedding_swap"),
        every=20,
        images=2,
        num_inference_steps=1,
        runs=tmp_path / "runs",
        out=tmp_path,
    )
    swap.main(options)
    table = pd.read_csv(tmp_path / "swap.csv")
    assert set(table.editor) == {"unedited", "told the other", "uce", "embedding_swap"} and set(table.set) == set(
        swap.SETS
    )
    assert (table[(table.editor == "unedited") & (table.measure == "changed")].value == 0).all()
    assert (table[(table.editor == "uce") & (table.measure == "image distance")].value > 0).all()
    assert set(table[table.rules == "text encoder"].editor) == {"embedding_swap"}
    assert ((table.low <= table.value + 1e-9) & (table.value <= table.high + 1e-9)).all()
    assert all((tmp_path / name).stat().st_size > 20_000 for name in ("swap.png", "swap_images.png"))
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.parquet")}
    swap.main(options)
    assert len(finished) == 3 * 6 + 1 and finished == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.parquet")
    }
    changed = table[table.measure == "changed"].set_index(["editor", "set"])[["value", "low", "high"]]
    shown = on_page(tmp_path, "runs/benchmark", "changed")
    assert shown == {cell: pytest.approx(list(row), abs=1e-4) for cell, row in zip(changed.index, changed.values)}
    with pytest.raises(ValueError, match=r"editors=\['magic'\]: unknown; there are swap, "):
        swap.main(swap.SwapOptions(editors=("magic",)))


def test_edited_windows_are_correlated_with_localizers(tmp_path):
    layers = [
        f"unet.{place}.cross"
        for place in ("down.0.0", "down.0.1", "down.1.0", "down.1.1", "down.2.0", "down.2.1", "mid")
    ]
    layers += [f"unet.up.{i}.{j}.cross" for i in (1, 2, 3) for j in range(3)]
    pd.DataFrame(dict(layer=layers, localizer="depth", score=range(16))).to_csv(
        tmp_path / "localizers.csv", index=False
    )
    windows.main(
        windows.WindowsOptions(
            width=14,
            random_sets=1,
            images=2,
            num_inference_steps=1,
            localizers=tmp_path / "localizers.csv",
            runs=tmp_path / "r",
            out=tmp_path,
        )
    )
    table = pd.read_csv(tmp_path / "windows.csv")
    assert (
        set(table.editor) >= {"unedited", "all layers", "window 0-13", "window 2-15", "all but 2-15"}
        and (tmp_path / "windows.png").exists()
    )
    found = pd.read_csv(tmp_path / "windows_correlation.csv")
    assert set(found.localizer) >= {"depth"} and found.spearman.abs().max() <= 1
    scores = pd.DataFrame(dict(editor=["window 0-0", "window 1-1", "window 2-2"], value=[0.1, 0.2, 0.9]))
    sets = {f"window {i}-{i}": (f"layer {i}",) for i in range(3)} | {f"all but {i}-{i}": () for i in range(3)}
    scores = pd.concat(
        [scores, pd.DataFrame(dict(editor=[f"all but {i}-{i}" for i in range(3)], value=[0.9, 0.5, 0.2]))]
    )
    said = pd.DataFrame(dict(localizer="x", layer=[f"layer {i}" for i in range(3)], score=[1.0, 2.0, 3.0]))
    assert windows.correlations(scores, sets, said).set_index("edit").spearman.to_dict() == {
        "window": 1.0,
        "all but": 1.0,
    }
    with pytest.raises(ValueError, match=r"localizer 'x' has no score for some layers"):
        windows.correlations(scores, sets, said[:2])


def test_erasing_and_a_fact_are_measured(tmp_path, monkeypatch):
    """A style is measured as a fact is."""
    monkeypatch.setattr(edit_tasks, "TASKS", {name: edit_tasks.TASKS[name] for name in ("erase", "fact")})
    edit_tasks.main(
        edit_tasks.TasksOptions(every=20, images=2, num_inference_steps=1, runs=tmp_path / "r", out=tmp_path)
    )
    table = pd.read_csv(tmp_path / "edit_tasks.csv")
    assert set(table.task) == {"erase", "fact"} and len(table[table.measure == "shows the new"]) == 6


def test_the_edit_is_timed(tmp_path):
    edit_speed.main(edit_speed.EditSpeedOptions(out=tmp_path / "s.csv", repeats=1, corpus=2100))
    table = pd.read_csv(tmp_path / "s.csv")
    assert len(table) == 6 and (table.total_ms > 0).all() and table.solve_share.between(0, 1).all()


def test_the_winter_benchmark_reports_every_method(tmp_path, monkeypatch):
    few = {"text encoder": "text_encoder.{0,3,4}.mlp", "UNet": "unet.{mid,up.1.0}.cross"}
    monkeypatch.setattr(winter, "Winter", partial(winter.Winter, sites=few))
    monkeypatch.setattr(winter_study.Winter, "ladder", (0.125, 2.0))
    monkeypatch.setattr(winter_study, "FRONTIER", (0.5, 2.0))
    pairs = winter_setting.prompt_pairs
    monkeypatch.setattr(winter_setting, "prompt_pairs", lambda name: tuple(side[:8] for side in pairs(name)))
    options = winter.WinterOptions(
        runs=tmp_path / "r",
        out=tmp_path,
        seeds=(17,),
        num_inference_steps=1,
        prompts=1,
        strengths=(0.02,),
        trials=3,
        batch_size=32,
    )
    winter.main(options)
    table = pd.read_csv(tmp_path / "steering.csv")
    assert len(table) == 5 * (1 + 14 + 4) and set(table.metric) == set(winter.METRICS)
    assert len(pd.read_csv(tmp_path / "steering_equal_fidelity.csv")) == 2 * len(winter.SHARES) * 6
    submission = pd.read_csv(tmp_path / "r" / "submission" / "submission.csv")
    assert list(submission.ID) == [1] and all(
        (tmp_path / "r" / "submission" / name).exists() for name in submission.image
    )
    others = pd.read_csv(tmp_path / "steering_concepts.csv")
    assert set(others.measured) == {"winter", "night", "watercolor", "both at once"}
    pictures = ("steering", "steering_layers", "steering_directions", "steering_images")
    assert all((tmp_path / f"{name}.png").stat().st_size > 20_000 for name in pictures)


def test_the_steer_command_writes_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv",
        [
            "workbench",
            "steer",
            "--seeds",
            "1",
            "--strengths",
            "1",
            "--prompts",
            "a lion",
            "--out",
            str(tmp_path / "winter"),
        ],
    )
    cli.main()
    assert "direction at 12 sites, from 100 positive and 100 negative prompts" in capsys.readouterr().out
    assert (
        wb.Direction.load(tmp_path / "winter.safetensors").provenance["pool"] == "positions"
        and (tmp_path / "winter.png").exists()
    )
    table = pd.read_csv(tmp_path / "winter.csv").set_index(["measure", "strength"])["value"]
    assert (
        table["concept_similarity", "1"] > table["concept_similarity", "unsteered"] + 0.1
        and table["pixel_distance", "unsteered"] == 0
    )
    assert table["concept_probability", "1"] > 0.9 and table["concept", "unsteered"] == 0
    monkeypatch.setattr("sys.argv", ["workbench", "steer", "--pairs", "spring"])
    with pytest.raises(SystemExit, match="the sets are night, watercolor, winter"):
        cli.main()


def test_the_edit_command_writes_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["workbench", "edit", "--editor", "uce", "--seeds", "1", "--out", str(tmp_path / "edit")]
    )
    cli.main()
    assert "uce: 32 weights" in capsys.readouterr().out
    assert wb.Edit.load(tmp_path / "edit.safetensors", wb.load()).provenance["editor"] == "uce"
    assert (tmp_path / "edit.png").exists() and (tmp_path / "edit_lora.safetensors").exists()
    monkeypatch.setattr("sys.argv", ["workbench", "edit", "--sites", "unet.nowhere", "--out", str(tmp_path / "other")])
    with pytest.raises(SystemExit, match=r"no site matches 'unet\.nowhere'"):
        cli.main()


def test_the_recover_command_writes_what_it_says(tmp_path, monkeypatch, capsys):
    edit = tmp_path / "erase.v2"
    wb.edit.uce(wb.load(), {"a zebra": "a cow"}, tokens="all").save(edit)
    asked = "--first 1 --attacks nearest_states --distances 0.2 inf --seeds 0 --redraws 1 --num-inference-steps 6"
    words = ["workbench", "recover", "--edit", str(edit), "--out", str(tmp_path / "found"), *asked.split()]
    monkeypatch.setattr("sys.argv", words)
    cli.main()
    assert "Recovery of 'zebra' (control 'giraffe')" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "found.csv")
    assert table.setting.tolist() == ["distance 0.2", "distance unbounded", "any of these"]
    assert {"unedited", "before", "after", "control", "random", "redrawn"} < set(table)
    assert (tmp_path / "found.png").exists() and (tmp_path / "found_nearest_states.png").exists()


def test_prompt_to_prompt_is_measured_study_by_study(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_to_prompt, "PAIRS", (1,))
    every, few = (
        p2p_pairs.arms,
        ("P2P", "cross 0.4", "word 0.2", "self 0.4, all sizes", "P2P, blend 0.5, threshold 0.7"),
    )
    for module in (p2p_pairs, prompt_to_prompt):
        monkeypatch.setattr(module, "arms", lambda words: {name: every(words)[name] for name in few})
    options = prompt_to_prompt.P2POptions(
        studies=("swap", "refine", "reweight", "real"),
        images=2,
        real=1,
        inner_steps=1,
        num_inference_steps=3,
        runs=tmp_path / "r",
        out=tmp_path,
    )
    prompt_to_prompt.main(options)
    table = pd.read_csv(tmp_path / "prompt_to_prompt.csv")
    assert set(table.study) >= {
        "swap",
        "refine",
        "reweight",
        "real: VAE alone",
        "real: DDIM, guidance 1",
        "real: null-text, guidance 3",
    }
    swap_rows = table[table.study == "swap"].set_index(["arm", "measure"])
    assert swap_rows.value["source", "background"] == 0 and swap_rows.value["source", "position kept"] == 1
    assert set(table[table.study == "swap"].arm) == {"source", "new prompt", *p2p_pairs.arms(("a", "b"))}
    apart = swap_rows.value["P2P", "background, minus new prompt"]
    assert apart == pytest.approx(
        swap_rows.value["P2P", "background"] - swap_rows.value["new prompt", "background"], abs=2e-4
    )
    one = table[(table.study == "reweight") & (table.arm == "c 1") & (table.measure == "distance")]
    assert one.value.item() < 1e-4
    assert ((table.low <= table.value + 1e-4) & (table.value <= table.high + 1e-4)).all()
    assert all((tmp_path / f"prompt_to_prompt{end}.png").stat().st_size > 20_000 for end in ("", "_images"))
    for measure, label in (("distance", "distance"), ("target", "shows the target")):
        rows = table[(table.study == "swap") & (table.measure == measure)]
        shown = on_page(tmp_path / "r", "swap", label)
        assert shown == {
            (row.arm,): pytest.approx([row.value, row.low, row.high], abs=1e-4) for row in rows.itertuples()
        }
    assert on_page(tmp_path / "r", "real", "distance").keys() >= {
        ("VAE alone", "source"),
        ("null-text, guidance 3", "P2P"),
    }
    overhead = replace(options, studies=("overhead",), repeats=1)
    prompt_to_prompt.measure(wb.load(), tmp_path / "prompt_to_prompt.csv", overhead)
    again = pd.read_csv(tmp_path / "prompt_to_prompt.csv")
    assert (again[again.study == "overhead"].value > 0).all()
    pd.testing.assert_frame_equal(again[again.study != "overhead"], table, check_dtype=False)
    with pytest.raises(ValueError, match=r"studies=\['magic'\]: unknown; there are swap, "):
        prompt_to_prompt.main(replace(options, studies=("magic",)))


def test_the_p2p_command_draws_generated_and_real_edits(tmp_path, monkeypatch, capsys):
    render(Scene("zebra", seed=3))[0].save(tmp_path / "zebra.png")
    command = P2P(
        target=("a giraffe in the savanna",),
        word_steps=("giraffe=0.5",),
        blend=("zebra", "giraffe"),
        blend_resolution=0.5,
        seeds=1,
        out=tmp_path / "edit",
    )
    monkeypatch.setattr(command, "load", lambda: wb.Model(wb.load().pipeline, num_inference_steps=2))
    command.run()
    assert "zebra -> giraffe" in capsys.readouterr().out and (tmp_path / "edit.png").exists()
    command.image, command.out = tmp_path / "zebra.png", tmp_path / "real"
    command.run()
    assert (tmp_path / "real.png").stat().st_size > 5_000
    monkeypatch.setattr("sys.argv", ["workbench", "p2p", "--kind", "reweight", "--reweight", "savanna"])
    with pytest.raises(SystemExit, match="--reweight savanna: give word=number, as winter=2"):
        cli.main()
