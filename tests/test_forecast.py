"""Plans: what an experiment says beforehand that it will take of the denoiser is what it then takes."""

import pytest
import torch
from conftest import sd1

import workbench as wb
from workbench.studies.tiny_transformers import TRANSFORMERS, sharpen

ZEBRA, LION = "a zebra in the savanna", "a lion on the beach"
PROMPTS = wb.PromptSet(
    "two",
    (
        wb.Prompt(ZEBRA, "zebra", "zebra", "lion", target="a lion in the savanna", target_value="lion"),
        wb.Prompt("a photo of a zebra", "zebra", "zebra", "lion", target="a photo of a lion", target_value="lion"),
    ),
    {"zebra": ("a zebra",), "lion": ("a lion",)},
)
BRIGHT = wb.Metric("brightness", lambda images: images.mean((1, 2, 3)))
QUICK = dict(seeds=(0, 1), num_inference_steps=2)
FEW = dict(seeds=(0,), draws=1, num_inference_steps=2)
LONGER = dict(seeds=(0, 1, 2), num_inference_steps=4)
LATE = wb.window(0.5, 1.0)
CONCEPT = wb.Concept("a zebra", "a lion")
TEXT, CROSS = "text_encoder.{0,1}.mlp", "unet.{mid,up.1.0,up.1.1}.cross"


@pytest.fixture(scope="module")
def model() -> wb.Model:
    torch.manual_seed(0)
    pipeline = sd1()
    pipeline.set_progress_bar_config(disable=True)
    return wb.load(pipeline)


@pytest.fixture(scope="module")
def direction(model):
    return wb.direction(model, ["a zebra"], ["a lion"], [TEXT])


@pytest.fixture
def rows(model):
    """Rows of each call of the denoiser, of both halves."""
    counted: list[int] = []

    def count(module, arguments, keywords):
        sample = keywords.get("sample", arguments[0] if arguments else None)
        counted.append(len(sample))

    handle = model.pipeline.unet.register_forward_pre_hook(count, with_kwargs=True)
    yield counted
    handle.remove()


def erased(model):
    return wb.edit.uce(model, {"a zebra": "a lion"}, tokens="all")


def trace(model, direction):
    spec = wb.TraceSpec(sites=(TEXT, CROSS), steps=(wb.window(0.0, 0.5), LATE), **FEW)
    return wb.causal_trace, (PROMPTS, spec), dict(scorer=BRIGHT, batch_size=4)


def locogen(model, direction):
    return wb.locogen, (PROMPTS, wb.LocoGenSpec(windows=((0, 2), (3, 1)), **QUICK)), dict(scorer=BRIGHT, batch_size=3)


def attention_maps(model, direction):
    return wb.attention_maps, ([ZEBRA, LION],), QUICK | dict(batch_size=3)


def contribution(model, direction):
    return wb.attention_contribution, (PROMPTS, wb.AttentionSpec(**QUICK)), {}


def head_relevance(model, direction):
    return wb.head_relevance, ([ZEBRA, LION, ZEBRA], dict(a=["zebra"], b=["lion"])), QUICK | dict(batch_size=4)


def probe(model, direction):
    return wb.probe, (PROMPTS, [CROSS]), QUICK


def probe_of_text(model, direction):
    return wb.probe, (PROMPTS, [TEXT]), QUICK


def faithfulness(model, direction):
    spec = wb.FaithfulnessSpec(shares=(0.5,), random_orders=1, **FEW)
    return wb.faithfulness, (PROMPTS, [site.name for site in model.sites(TEXT)], spec), dict(scorer=BRIGHT)


def score_cases(model, direction):
    def editor(model, old, new):
        return wb.edit.uce(model, {old: new})

    case = wb.edit.EditCase("a car", "a red car", {"a car at night": "a red car at night"}, {"a house": "a red house"})
    return wb.edit.score_cases, (editor, [case, case]), QUICK | dict(scorer=wb.Scorer(), batch_size=4)


def recover(model, direction):
    spec = wb.RecoverySpec(
        attacks=("closed_form", "completion"),
        control="cow",
        lams=(0.1,),
        distances=(0.2,),
        redraws=2,
        shares=(0.5,),
        **QUICK,
    )
    return wb.recover, (erased(model), PROMPTS, spec), dict(scorer=wb.Scorer(), batch_size=3)


def steer_sweep(model, direction):
    spec = wb.SweepSpec(strengths=(0.5, 1.0), **QUICK)
    return wb.steer_sweep, (PROMPTS, direction, CONCEPT, spec), dict(scorer=wb.Scorer())


def adaptive_strength(model, direction):
    return (
        wb.adaptive_strength,
        (PROMPTS, direction, CONCEPT, wb.AdaptiveSpec(rounds=2, **QUICK)),
        dict(scorer=wb.Scorer()),
    )


def compare_localizers(model, direction):
    spec = wb.TraceSpec(sites=(CROSS,), **FEW)
    known = wb.localizers(scorer=BRIGHT, metric="brightness", batch_size=8)
    chosen = {name: known[name] for name in ("causal tracing", "LocoGen", "contribution", "probing", "head relevance")}
    return wb.compare_localizers, (PROMPTS, spec), dict(localizers=chosen)


EXACT = (
    trace,
    locogen,
    attention_maps,
    contribution,
    head_relevance,
    probe,
    probe_of_text,
    faithfulness,
    score_cases,
    recover,
    steer_sweep,
    adaptive_strength,
    compare_localizers,
)


def halves_of(rows: list[int]) -> list[int]:
    """Without the unconditional half: every run here is guided."""
    return [each // 2 for each in rows]


@pytest.mark.parametrize("asked", EXACT, ids=lambda asked: asked.__name__)
def test_what_is_planned_is_what_is_done(model, direction, rows, asked, monkeypatch):
    monkeypatch.setattr("workbench.recovery.recover.Recovering._check_seen", lambda *given: None)  # a random model
    experiment, given, how = asked(model, direction)
    plan = wb.plan(experiment, model, *given, timed=False, **how)
    assert not rows and plan.seconds is None and not plan.at_most and not plan.uncounted
    experiment(model, *given, **how)
    halves = halves_of(rows)
    assert (plan.calls, plan.rows, plan.largest) == (len(halves), sum(halves), max(halves, default=0))
    assert (plan.images > 0) == bool(rows)


def test_an_attribution_is_bounded_until_memory_was_asked_and_then_exact(model, rows):
    spec = wb.AttributionSpec(sites=(TEXT, CROSS), form="step", points=2, draws=1, **QUICK)
    bound = wb.plan(wb.attribute, model, PROMPTS, spec, timed=False)
    assert not rows and bound.at_most and bound.calls == bound.rows
    plan = wb.plan(wb.attribute, model, PROMPTS, spec)
    assert not plan.at_most and plan.seconds > 0 and plan.memory > 0
    rows.clear()
    wb.attribute(model, PROMPTS, spec)
    assert (plan.calls, plan.rows, plan.largest) == (len(rows), sum(halves_of(rows)), max(halves_of(rows)))
    assert bound.rows == plan.rows and bound.calls > plan.calls


@pytest.mark.parametrize("steps", [(wb.window(0.0, 0.5), LATE), (wb.window(0.0, 1.0),)], ids=["late", "whole"])
def test_a_screening_takes_at_most_what_is_planned_and_then_exactly_that(model, rows, tmp_path, steps):
    spec = wb.ScreenSpec(sites=(CROSS,), steps=steps, best=1, verified=2, controls=1, **FEW)
    asked = dict(scorer=BRIGHT, metric="brightness", batch_size=4, folder=tmp_path / "screen")
    plan = wb.plan(wb.screen, model, PROMPTS, spec, timed=False, **asked)
    first, second = plan.of
    assert not rows and plan.at_most and plan.images == first.images + second.images == 2 * 2 + 2 * (2 + 3)
    found = wb.screen(model, PROMPTS, spec, **asked)
    assert found.pictures == plan.images
    assert sum(halves_of(rows)) <= plan.rows and len(rows) <= plan.calls and max(halves_of(rows)) <= plan.largest
    if len(steps) == 1:
        assert sum(halves_of(rows)) == plan.rows
    for part in (tmp_path / "screen" / "verified").glob("*.parquet"):
        part.unlink()
    again = wb.plan(wb.screen, model, PROMPTS, spec, timed=False, **asked)  # now it is known which are proposed
    assert not again.at_most and again.of[0].images == 0 and again.parts_kept == 2
    rows.clear()
    wb.screen(model, PROMPTS, spec, **asked)
    assert (again.calls, again.rows) == (len(rows), sum(halves_of(rows)))


def test_a_raced_screening_takes_at_most_what_is_planned(model, rows, tmp_path):
    """Units are drawn seed by seed, so that fewer of them share batches."""
    spec = wb.ScreenSpec(
        sites=(TEXT, CROSS),
        best=1,
        verified=2,
        controls=1,
        race=True,
        draws=1,
        seeds=(0, 1, 2, 3),
        num_inference_steps=2,
    )
    asked = dict(scorer=BRIGHT, metric="ssim", batch_size=16, folder=tmp_path / "screen")
    plan = wb.plan(wb.screen, model, PROMPTS, spec, timed=False, **asked)
    wb.screen(model, PROMPTS, spec, **asked)
    assert len(rows) <= plan.calls and sum(halves_of(rows)) <= plan.rows and max(halves_of(rows)) <= plan.largest
    for part in (tmp_path / "screen" / "verified").glob("*.parquet"):
        part.unlink()
    again = wb.plan(wb.screen, model, PROMPTS, spec, timed=False, **asked)
    rows.clear()
    wb.screen(model, PROMPTS, spec, **asked)
    assert again.at_most and len(rows) <= again.calls and sum(halves_of(rows)) <= again.rows


def test_the_largest_batch_of_late_windows_is_bounded_too(model, rows):
    spec = wb.ScreenSpec(
        sites=(TEXT, CROSS), steps=(wb.window(0.75, 1.0),), best=1, verified=1, controls=0, draws=1, **LONGER
    )
    asked = dict(scorer=BRIGHT, metric="ssim", batch_size=4)
    plan = wb.plan(wb.screen, model, PROMPTS, spec, timed=False, **asked)
    wb.screen(model, PROMPTS, spec, **asked)
    assert max(halves_of(rows)) <= plan.largest and len(rows) <= plan.calls and sum(halves_of(rows)) <= plan.rows


def test_a_search_takes_at_most_what_is_planned(model, direction, rows, tmp_path):
    asked, folder = (model, PROMPTS, direction, CONCEPT), dict(scorer=wb.Scorer(), folder=tmp_path / "search")
    plan = wb.plan(wb.steer_search, *asked, wb.SearchSpec(trials=3, **QUICK), timed=False, **folder)
    assert not rows and plan.at_most and plan.images == (1 + 3) * 4
    wb.steer_search(*asked, wb.SearchSpec(trials=3, **QUICK), **folder)
    assert 0 < len(rows) <= plan.calls and sum(halves_of(rows)) <= plan.rows
    longer = wb.plan(wb.steer_search, *asked, wb.SearchSpec(trials=4, **QUICK), timed=False, **folder)
    assert (longer.parts, longer.parts_kept, longer.images) == (1, 4, 4)
    assert longer.rows == 2 * plan.rows / 4  # the unsteered pictures once more, to compare with


def test_what_is_in_the_folder_is_taken_off_and_time_is_told(model, rows, tmp_path):
    spec = wb.TraceSpec(sites=(CROSS,), **FEW)
    asked = dict(folder=tmp_path / "trace", scorer=BRIGHT, batch_size=4)
    wb.causal_trace(model, PROMPTS[:1], spec, scorer=BRIGHT, batch_size=4)
    one = sum(halves_of(rows))
    plan = wb.plan(wb.causal_trace, model, PROMPTS, spec, **asked)
    assert plan.rows == 2 * one and plan.seconds > 0 and plan.seconds_on(2) == pytest.approx(plan.seconds / 2)
    wb.causal_trace(model, PROMPTS, spec, **asked)
    disk = sum(path.stat().st_size for path in (tmp_path / "trace").glob("*.parquet"))
    assert 0.5 < plan.disk / disk < 2
    left = wb.plan(wb.causal_trace, model, PROMPTS, spec, **asked)
    assert (left.images, left.parts, left.parts_kept, left.rows) == (0, 0, 2, 0)


def test_localizers_that_share_a_folder_are_planned_once(model, rows, tmp_path):
    spec = wb.TraceSpec(sites=(CROSS,), **FEW)
    known = wb.localizers(scorer=BRIGHT, metric="brightness", folder=tmp_path / "c")
    both = {name: known[name] for name in ("low entropy", "contribution")}
    plan = wb.plan(wb.compare_localizers, model, PROMPTS, spec, localizers=both, timed=False)
    assert [each.images for each in plan.of] == [2, 0] and not list(tmp_path.iterdir())
    assert str(plan).splitlines()[1].startswith("  attention: 2 images in 2 parts, 2 batches of at most 1, 4 calls")
    wb.compare_localizers(model, PROMPTS, spec, localizers=both)
    assert sum(halves_of(rows)) == plan.rows


def test_what_is_not_known_is_refused_or_not_counted(model):
    with pytest.raises(
        ValueError, match=r"plan\(locogen_search\): only what wb\.adaptive_strength, .* whole blocks showed"
    ):
        wb.plan(wb.locogen_search, model, PROMPTS)
    with pytest.raises(
        ValueError, match=r"plan\(generate\): only what .* would do is known beforehand; it is none of them"
    ):
        wb.plan(model.generate, ZEBRA)
    with pytest.raises(
        ValueError, match=r"localizers\['mine'\] is a function of your own.* plan those of wb\.localizers"
    ):
        wb.plan(wb.compare_localizers, model, PROMPTS, wb.TraceSpec(**FEW), localizers={"mine": lambda *asked: None})
    spec = wb.RecoverySpec(attacks=("closed_form", "relearning"), control="cow", relearned=(1,), redraws=1, **QUICK)
    plan = wb.plan(wb.recover, model, erased(model), PROMPTS, spec, scorer=wb.Scorer())
    assert plan.calls is None and plan.seconds is None and "relearning learn by gradient steps" in plan.uncounted
    assert plan.uncounted in str(plan) and plan.images > 0


def test_editors_are_asked_while_their_cases_are_planned(model, rows):
    """An editor may do experiments of its own: they are done, since what it finds is what is scored."""

    def editor(model, old, new):
        found = wb.probe(model, PROMPTS, [CROSS], num_inference_steps=1).margin.mean(["prompt", "seed"])
        return wb.edit.uce(model, {old: new}, sites=found.idxmax().item())

    case = wb.edit.EditCase("a car", "a red car", {"a car at night": "a red car at night"}, {"a house": "a red house"})
    more = dict(seeds=0, num_inference_steps=2, scorer=wb.Scorer())
    plan = wb.plan(wb.edit.score_cases, model, editor, case, timed=False, **more)
    assert plan.images == 2 * 3 and len(rows) == 1


def test_transformers_are_planned_too():
    torch.manual_seed(0)
    model = wb.load(sharpen(TRANSFORMERS["sd3"]()))
    spec = wb.TraceSpec(sites=("transformer.*.joint",), **FEW)
    plan = wb.plan(wb.causal_trace, model, PROMPTS, spec, scorer=BRIGHT, timed=False)
    words = wb.plan(wb.concept_attention, model, ZEBRA, ["zebra", "sky"], timed=False, **QUICK)
    counted: list[int] = []
    model.pipeline.transformer.register_forward_pre_hook(
        lambda module, arguments, keywords: counted.append(len(keywords["hidden_states"])), with_kwargs=True
    )
    wb.causal_trace(model, PROMPTS, spec, scorer=BRIGHT)
    assert (plan.calls, plan.rows) == (len(counted), sum(halves_of(counted)))
    counted.clear()
    wb.concept_attention(model, ZEBRA, ["zebra", "sky"], **QUICK)
    assert (words.calls, words.rows) == (len(counted), sum(halves_of(counted)))


def test_the_command_line_plans(tmp_path, monkeypatch, capsys):
    from workbench import cli

    asked = (
        "workbench locate --compare --plan --prompts season --first 1 --seeds 0 --num-inference-steps 1 --batch-size 4"
    )
    monkeypatch.setattr("sys.argv", [*asked.split(), "--out", str(tmp_path / "compare")])
    cli.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("comparison: 74 images in 6 parts") and said[0].endswith("GB on this machine")
    assert [line.split(":")[0] for line in said[1:]] == ["  causal trace", "  LocoGen", *["  attention"] * 2]
    assert not list(tmp_path.iterdir())
