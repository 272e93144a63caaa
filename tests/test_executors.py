"""Parts divided among shares and among Ray's workers: one process's rows, or a sentence that says why not."""

import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from test_readme import run_all
from transformers.utils import output_capturing

import workbench as wb
from workbench.experiments import workers as workers_module
from workbench.experiments.base import Experiment
from workbench.experiments.executors import Here, as_executor
from workbench.experiments.packing import capturing_anew, inert, packed_model
from workbench.experiments.parcels import check_hooks
from workbench.experiments.spec import Spec
from workbench.experiments.store import Folder, as_store
from workbench.prompts import Prompt, PromptSet
from workbench.studies import tiny, tiny_transformers

FORK = multiprocessing.get_context("fork")
LABELS = {"zebra": ("a zebra",), "lion": ("a lion",)}
PROMPTS = PromptSet("two", (Prompt("a zebra", "zebra", "zebra"), Prompt("a lion", "lion", "lion")), LABELS)
QUICK = dict(seeds=(0,), num_inference_steps=1, guidance_scale=3.0)
SPEC = wb.TraceSpec(sites=("text_encoder.[01].mlp",), draws=3, **QUICK)
LEASE = 1.0  # seconds


@pytest.fixture(scope="module")
def tiny_model():
    torch.manual_seed(0)
    return wb.load(conftest.sd1())


def brightness(images: np.ndarray) -> np.ndarray:
    return images.mean((1, 2, 3))


def trace(model: wb.Model, folder=None, executor=None, scorer=brightness) -> pd.DataFrame:
    return wb.causal_trace(model, PROMPTS, SPEC, scorer=scorer, folder=folder, executor=executor).to_dataframe()


class Noted(Experiment):
    """Rows that take a moment, a note of every beginning in a log, and trouble at some part."""

    name = "noted"
    log: Path
    trouble: str = ""
    seconds = 0.05
    count = 6

    def parts(self):
        return {f"part{i}": (i,) for i in range(self.count)}

    def check(self, i: int) -> int:
        return 4

    def measure(self, i: int, bar) -> list[dict]:
        with open(self.log, "a") as log:
            log.write(f"{i} {os.getpid()}\n")
        if i == 2 and self.trouble == "fails":
            raise KeyError("part 2 has no such thing")
        if i == 2 and self.trouble == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        first = len([each for each in begun(self.log) if each[0] == i]) == 1
        for _ in range(4):
            time.sleep(2 if self.trouble == "slow" and i == 2 and first else self.seconds)
            bar.update()
        return [dict(world="w", metric="m", prompt=i, seed=0, value=float(i))]


def noted(model: wb.Model, log: Path, **settings) -> Noted:
    experiment = Noted(model, Spec(**QUICK))
    experiment.log = log
    for name, value in settings.items():
        setattr(experiment, name, value)
    return experiment


def begun(log: Path) -> list[tuple[int, int]]:
    """Part and process of each beginning."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(part), int(process)) for part, process in map(str.split, lines)]


# shares


def test_shares_at_once_give_one_processes_rows_and_compute_nothing_twice(tiny_model, tmp_path):
    answers = FORK.Queue()

    def share(number: int):
        experiment = noted(tiny_model, tmp_path / "log")
        try:
            answers.put(experiment.table(tmp_path / "f", wb.Share(number, 3)))
        except wb.Unfinished as rest:
            answers.put(rest)

    children = [FORK.Process(target=share, args=(number,)) for number in (1, 2, 3)]
    for child in children:
        child.start()
    given = [answers.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    whole = noted(tiny_model, tmp_path / "whole").table()
    for each in given:
        if isinstance(each, wb.Unfinished):
            assert each.parts == 6 and 2 <= each.kept < 6 and len({each.share} & {"1/3", "2/3", "3/3"}) == 1
        else:
            pd.testing.assert_frame_equal(each, whole)
    processes: dict[int, set[int]] = {}
    for part, process in begun(tmp_path / "log"):
        processes.setdefault(process, set()).add(part)
    assert sorted(map(sorted, processes.values())) == [[0, 3], [1, 4], [2, 5]]
    pd.testing.assert_frame_equal(noted(tiny_model, tmp_path / "log").table(tmp_path / "f"), whole)
    assert len(begun(tmp_path / "log")) == 6


def test_a_share_waits_for_nobody_and_says_what_is_left(tiny_model, tmp_path, monkeypatch):
    whole = trace(tiny_model)
    with pytest.raises(wb.Unfinished) as rest:
        trace(tiny_model, tmp_path, wb.Share(2, 2))
    assert str(rest.value) == (
        f"causal trace: share 2/2 has done its parts; 3 of 6 parts are in {tmp_path}; when all shares have done theirs, the same call "
        "without executor= does what is left, if anything, and returns the whole"
    )
    assert not hasattr(rest.value, "__notes__")
    folder = Folder(tmp_path)
    (name,) = {name.partition("-")[0] for name in folder.names() if name.endswith(".parquet")}
    with folder.lease(f"{name}-prompt0000-draw00"):  # somebody else is at it
        with pytest.raises(wb.Unfinished, match="5 of 6 parts are in"):
            trace(tiny_model, tmp_path, wb.Share(1, 2))
    pd.testing.assert_frame_equal(trace(tiny_model, tmp_path, wb.Share(1, 2)), whole, check_exact=True)
    monkeypatch.setattr(Experiment, "run", lambda *args, **kwargs: pytest.fail("computed again"))
    pd.testing.assert_frame_equal(trace(tiny_model, tmp_path, wb.Share(2, 2)), whole, check_exact=True)
    pd.testing.assert_frame_equal(trace(tiny_model, tmp_path), whole, check_exact=True)


def test_shares_go_from_stage_to_stage(tiny_model, tmp_path):
    """Parts that wait for others are begun once those are there, whoever is called when."""

    class Staged(Noted):
        def stages(self, kept):
            parts = list(self.parts().items())
            for some in (parts[:4], parts[4:]):
                yield dict(some)
                assert all(kept(name) is not None for name, _ in some)

    def do(number: int) -> pd.DataFrame:
        experiment = Staged(tiny_model, Spec(**QUICK))
        experiment.log = tmp_path / "log"
        return experiment.table(tmp_path / "f", wb.Share(number, 2))

    with pytest.raises(wb.Unfinished, match=r"2 of 4 parts of this stage are in .*; others wait for these: when all "):
        do(1)
    with pytest.raises(wb.Unfinished, match="1 of 2 parts of this stage"):
        do(2)
    assert sorted(part for part, _ in begun(tmp_path / "log")) == [0, 1, 2, 3, 5]
    pd.testing.assert_frame_equal(do(1), noted(tiny_model, tmp_path / "other").table())


def test_a_comparison_does_the_share_of_all_its_experiments(tiny_model, tmp_path):
    compare = partial(
        wb.compare_localizers,
        tiny_model,
        PromptSet.of([wb.Prompt("a zebra", "zebra", target="a lion"), wb.Prompt("a lion", "lion", target="a zebra")]),
        wb.TraceSpec(sites=("unet.mid.cross",), draws=1, **QUICK),
        metric="brightness",
        scorer=brightness,
        folder=tmp_path,
    )
    with pytest.raises(wb.Unfinished, match="causal trace: share 1/2 has done its parts; 1 of 2 parts"):
        compare(executor=wb.Share(1, 2))
    shards = [path.parent.name for path in tmp_path.rglob("*.parquet")]
    assert sorted(shards) == ["attention", "locogen", "trace"]
    assert compare(executor=wb.Share(2, 2)).scores.equals(compare().scores)


def test_a_command_does_its_share(tmp_path, capsys, monkeypatch):
    from workbench.cli import main

    asked = "workbench trace --first 2 --sites text_encoder.0.mlp --draws 1 --seeds 0 --num-inference-steps 1 --folder"
    asked = [*asked.split(), str(tmp_path / "f"), "--out", str(tmp_path / "trace")]
    monkeypatch.setattr(sys, "argv", [*asked, "--shard", "2/2"])
    main()
    said = capsys.readouterr().out.strip()
    assert said == (
        f"causal trace: share 2/2 has done its parts; 1 of 2 parts are in {tmp_path / 'f'}; when all shares have done theirs, the same "
        "command without --shard does what is left, if anything, and draws"
    )
    assert not list(tmp_path.glob("trace*"))
    monkeypatch.setattr(sys, "argv", asked)
    main()
    assert (tmp_path / "trace.png").exists() and len(list((tmp_path / "f").glob("*.parquet"))) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "--shard 0/4 --folder f",
            "--shard='0/4': give the number of this share, from 1, and how many there are, such",
        ),
        ("--shard 5/4 --folder f", "--shard='5/4': give the number of this share"),
        ("--shard 2 --folder f", "--shard='2': give the number of this share"),
        ("--shard 1/2", "--shard 1/2 needs --folder, in which all who share the work leave their parts"),
        ("--executor ray", "--executor needs --folder, in which all who"),
        ("--executor ray --shard 1/2 --folder f", "--executor and --shard: give one of both; Ray's workers divide"),
        ("--executor dask --folder f", "executor='dask': give \"ray\", the address of a Ray cluster"),
    ],
)
def test_commands_refuse_what_does_not_fit(given, said, tmp_path, monkeypatch):
    from workbench.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["workbench", "trace", *given.split()])
    with pytest.raises(SystemExit, match=re.escape(said)):
        main()


def test_what_nobody_can_mean_is_refused(tiny_model, tmp_path):
    for wrong, said in (
        ((0, 4), r"number=0: give a whole number, at least 1"),
        ((5, 4), r"Share\(number=5, of=4\): shares are numbered from 1 to of="),
        ((1.5, 4), r"number=1.5"),
    ):
        with pytest.raises(ValueError, match=said):
            wb.Share(*wrong)
    with pytest.raises(ValueError, match=r"executor=Share\(number=1, of=2\) needs a folder=, in which all who share"):
        trace(tiny_model, None, wb.Share(1, 2))
    with pytest.raises(ValueError, match=r"executor=Ray\(address=None, workers=None, threads=1\) needs a folder="):
        trace(tiny_model, None, "ray")
    with pytest.raises(ValueError, match=r"executor='qux': give \"ray\", the address of a Ray cluster .* wb.Share"):
        trace(tiny_model, tmp_path, "qux")
    for wrong, said in (
        (dict(workers=0), "workers=0"),
        (dict(threads=1.5), "threads=1.5"),
        (dict(address=3), "address=3"),
    ):
        with pytest.raises(ValueError, match=said):
            wb.Ray(**wrong)
    assert not list(tmp_path.iterdir())
    assert isinstance(as_executor(None), Here) and as_executor("ray").address is None
    for address in ("auto", "ray://head:10001", "10.0.0.1:6379"):
        assert as_executor(address).address == address


def test_without_ray_installed_it_is_said(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'diffusion-workbench[ray]'")):
        trace(tiny_model, tmp_path, "ray")
    assert not list(tmp_path.iterdir())


# Ray's workers


@pytest.fixture(scope="module")
def ray():
    """Two workers for the whole module, which they cannot import: its functions are sent as they are."""
    import_module("ray.cloudpickle").register_pickle_by_value(sys.modules[__name__])
    with wb.Ray(workers=2) as workers:
        yield workers


def test_workers_give_one_processes_rows(tiny_model, ray, tmp_path):
    """A model that is in memory alone, one with an edit, one of a folder, which is mapped; functions of a person's own."""

    def check(name: str, model: wb.Model) -> pd.DataFrame:
        whole = trace(model, scorer=doubled)
        pd.testing.assert_frame_equal(trace(model, tmp_path / name, ray, doubled), whole, check_exact=True)
        return whole

    times = 2.0
    doubled = wb.Metric("doubled", lambda images: images.mean((1, 2, 3)) * times)
    plain = check("memory", tiny_model)
    with tiny_model.applied(wb.edit.uce(tiny_model, {"a zebra": "a lion"}, lam=1.0)):
        edited = check("edited", tiny_model)
        tiny_model.save_pretrained(tmp_path / "model")
    loaded = wb.load(tmp_path / "model")
    check("loaded", loaded)
    loaded.commit(wb.edit.uce(loaded, {"a lion": "a zebra"}, lam=1.0))  # no longer what the folder holds
    assert not any(table.equals(plain) for table in (edited, check("again", loaded)))


def test_workers_search(ray, tmp_path):
    """By the embedded model and grader, which they load by themselves."""
    model = wb.load()
    concept = wb.Concept("winter", "summer", {"winter": ("winter",), "summer": ("summer",)}, "winter")
    direction = wb.direction(model, ["a zebra in winter"], ["a zebra in summer"], "text_encoder.0.mlp")
    search = partial(wb.steer_search, model, PROMPTS, direction, concept, wb.SearchSpec(trials=2, **QUICK))
    pd.testing.assert_frame_equal(search(folder=tmp_path, executor=ray).table, search().table, check_exact=True)


@pytest.mark.parametrize("make", [tiny.sdxl, tiny_transformers.sd3], ids=["sdxl", "sd3"])
def test_a_model_that_has_run_is_sent_without_the_hooks_of_transformers(make):
    """They keep hidden states, and are installed when a text encoder first runs; a process that unpacks a model has none of that yet."""
    torch.manual_seed(0)
    pipeline = make()
    pipeline.set_progress_bar_config(disable=True)
    model = wb.load(pipeline)
    sent = packed_model(model)  # before it has run
    images = model.run("a zebra", num_inference_steps=1, progress=False).images
    check_hooks(model)
    capturing = output_capturing._CAN_RECORD_REGISTRY
    for bytes_of_model in (sent, packed_model(model)):
        known = dict(capturing)
        capturing.clear()  # as in a process that has made no model yet
        try:
            received = pickle.loads(bytes_of_model)
            capturing_anew(received)
            again = wb.Model(received, *(model.num_inference_steps, model.guidance_scale, model.max_sequence_length))
            assert again.run("a zebra", num_inference_steps=1, progress=False).images.equals(images)
        finally:
            capturing.update(known)
    assert not any(hook is inert for part in model.pipeline.components.values() for hook in hooks_of(part))
    model.pipeline.text_encoder.register_forward_hook(lambda module, arguments, output: None)
    with pytest.raises(ValueError, match=r"text_encoder\. has hooks, of which nobody could tell"):
        check_hooks(model)


def hooks_of(part) -> list:
    modules = part.modules() if isinstance(part, torch.nn.Module) else ()
    return [hook for module in modules for hook in module._forward_hooks.values()]


def test_within_a_block_ray_is_the_blocks_own(tmp_path):
    with wb.Ray(workers=1) as ray:
        assert as_executor("ray") is ray
        ray._check(Folder(tmp_path))
        with pytest.raises(
            ValueError, match=r"a block `with Ray\(.*workers=1, .*\) as ray:` is open, .* give executor=ray"
        ):
            wb.Ray(workers=2)._check(Folder(tmp_path))
    assert as_executor("ray") is not ray
    with pytest.raises(ValueError, match=r"needs a folder=.* name one that all of them see, which memory://x is not"):
        wb.Share(1, 2)._check(as_store("memory://x"))


def test_the_page_on_clusters_does_what_it_says(ray, tmp_path, monkeypatch):
    """In few steps, its jobs done at once."""

    class AtOnce:
        def __init__(self, folder: str):
            self.update_parameters = lambda **parameters: None

        def map_array(self, function, *columns):
            return [SimpleNamespace(result=partial(str, function(*row))) for row in zip(*columns, strict=True)]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wb.Model, "num_inference_steps", property(lambda self: 1, lambda self, steps: None), False)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=AtOnce))
    monkeypatch.setattr(wb, "Ray", lambda workers: nullcontext(ray), False)
    ran = run_all("docs/cluster.md")
    assert ran["found"].equals(ran["trace"]) and ran["again"].clean.sizes["prompt"] == 2


def test_what_a_worker_raises_is_raised_here(tiny_model, ray, tmp_path):
    with pytest.raises(KeyError, match="part 2 has no such thing") as failed:
        noted(tiny_model, tmp_path / "log", trouble="fails").table(tmp_path / "f", ray)
    notes = failed.value.__notes__
    assert notes[0] == "part part2 failed in a worker" and "the same call goes on" in notes[1]
    assert not list((tmp_path / "f").glob("*.lease"))
    whole = noted(tiny_model, tmp_path / "log").table(tmp_path / "f", ray)
    assert whole.value.tolist() == [0, 1, 2, 3, 4, 5]


def test_who_interrupts_has_the_parts_let_go(tiny_model, ray, tmp_path, monkeypatch):
    experiment = noted(tiny_model, tmp_path / "log", seconds=0.5)

    def interrupt():
        while len(begun(tmp_path / "log")) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt) as stopped:
        experiment.table(tmp_path / "f", ray)
    assert "the same call goes on" in stopped.value.__notes__[0]
    assert not list((tmp_path / "f").glob("*.lease"))


def test_what_does_not_reach_workers_whole_is_refused(tiny_model, ray, tmp_path, monkeypatch):
    lock = threading.Lock()

    def locked(images):
        with lock:
            return brightness(images)

    with pytest.raises(
        ValueError, match=r"the experiment of causal trace cannot be sent to workers \(.*lock.*\); functions"
    ):
        trace(tiny_model, tmp_path / "locked", ray, locked)
    hook = tiny_model.pipeline.unet.mid_block.register_forward_hook(lambda *given: None)
    with pytest.raises(
        ValueError, match=r"unet.mid_block has hooks, of which nobody could tell .* remove them, or leave"
    ):
        trace(tiny_model, tmp_path / "hooked", ray)
    hook.remove()
    tiny_model.pipeline.held = lock
    monkeypatch.setattr(wb.Model, "record", property(lambda self: {"weights": {"unet": "other"}}))
    with pytest.raises(
        ValueError, match=r"the model is only in this process, .* model.save_pretrained\(folder\), and give"
    ):
        trace(tiny_model, tmp_path / "unsent", ray)
    del tiny_model.pipeline.held
    with pytest.raises(
        ValueError, match=r"does not reach workers as it is here:(?s:.)*weights.unet: here \"other\", in a"
    ):
        trace(tiny_model, tmp_path / "other", ray)
    monkeypatch.undo()

    class Elsewhere(Folder):
        def __reduce__(self):
            return Folder, (tmp_path / "nothing here",)

    with pytest.raises(ValueError, match=r"does not see what is in it; name one that all machines share") as unseen:
        trace(tiny_model, Elsewhere(tmp_path / "seen"), ray)
    assert unseen.value.__notes__[0] == "the start failed in a worker"


def test_a_killed_workers_part_is_done_again(tiny_model, ray, tmp_path):
    experiment, log = noted(tiny_model, tmp_path / "log", trouble="slow"), tmp_path / "log"

    def kill():
        while 2 not in dict(begun(log)):
            time.sleep(0.02)
        os.kill(dict(begun(log))[2], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    whole = experiment.table(Folder(tmp_path / "f", lease_seconds=LEASE), ray)
    killer.join()
    assert whole.value.tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(part for part, _ in begun(log)) == [0, 1, 2, 2, 3, 4, 5]


def test_a_part_that_kills_its_workers_stops_the_experiment(tiny_model, ray, tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "TRIES", 1)
    experiment = noted(tiny_model, tmp_path / "log", trouble="dies")
    with pytest.raises(RuntimeError, match=r"noted: 1 workers died at part part2; where memory was short, give fewer"):
        experiment.table(Folder(tmp_path / "f", lease_seconds=LEASE), ray)
