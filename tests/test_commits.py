"""Commits: the log, undo, interrupts, threads, several Models of one pipeline, weights changed behind the log's back."""

import copy
import gc
import json
import os
import signal
import threading
import time
import weakref
from functools import partial

import conftest
import numpy as np
import pytest
import torch
from edit_helpers import PAIR, WINDOW, ZEBRA, errors_of, images, lock_free, passes, weights

import workbench as wb
from workbench import World, scale
from workbench.commits import commits_of, uninterrupted
from workbench.edit.low_rank import update_of
from workbench.edit.words import untrained
from workbench.engine.text import encode
from workbench.locks import _LOCKS, lock_of
from workbench.sites import weight_of
from workbench.text import tokenize, tokens_of

KEYS = "unet.mid.cross.k"


@pytest.fixture
def sd1():
    torch.manual_seed(0)
    return wb.load(conftest.sd1())


@pytest.fixture
def edit(sd1):
    return wb.edit.locoedit(sd1, PAIR, sites=WINDOW)


def equal(before, model) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, weights(model)))


def weight(model, site=KEYS) -> torch.nn.Parameter:
    return weight_of(model.pipeline, model.sites[site])


# Undo and the log


@pytest.mark.filterwarnings("ignore:the edit of .* is too small")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_undo_is_bit_exact_after_fifty_mixed_commits_and_undos(sd1, dtype):
    edits = [
        wb.edit.locoedit(sd1, PAIR, sites="unet.*.cross"),
        wb.edit.diff_quickfix(sd1, {"a zebra": "a lion"}),
        wb.edit.embedding_swap(sd1, "zebra", "giraffe"),
        wb.edit.swap(sd1, "a cow", "a camel", sites=WINDOW) * 0.7,
    ]
    sd1.pipeline.to(dtype=dtype)
    stack, draw = [weights(sd1)], np.random.default_rng(0)
    for i in range(50):
        if len(stack) > 1 and draw.random() < 0.3:
            stack.pop()
            sd1.undo()
            assert equal(stack[-1], sd1)
        else:
            sd1.commit(edits[i % 4] * 0.9**i, base=False)
            stack.append(weights(sd1))
    assert len(sd1.edits) == len(stack) - 1 > 10 and not equal(stack[0], sd1)
    assert all(weight.dtype == dtype for weight in weights(sd1))
    while sd1.edits:
        stack.pop()
        sd1.undo()
        assert equal(stack[-1], sd1)


def test_the_log_says_what_where_when_and_on_what(sd1, edit):
    base = sd1.hashes(KEYS)[0]
    sd1.commit(edit)
    (entry,) = sd1.edits
    assert entry.what["editor"] == "locoedit" and entry.where == edit.sites == (KEYS, "unet.mid.cross.v")
    assert entry.base[KEYS] == base == edit.updates[0].base and entry.after[KEYS] == sd1.hashes(KEYS)[0] != base
    assert entry.when.endswith("Z") and "locoedit at 2 sites" in repr(entry) and entry.edit == edit.digest
    with pytest.warns(
        UserWarning, match=r"this very edit is committed already .*now hold it 2 times, and undo takes one"
    ):
        sd1.commit(edit)  # made for the weights before the first commit: known
    sd1.undo()
    assert sd1.edits == (entry,) and sd1.hashes(KEYS) == [entry.after[KEYS], base]


def test_a_warning_that_is_an_error_changes_nothing(sd1, edit):
    sd1.commit(edit)
    before = weights(sd1)
    with pytest.raises(UserWarning, match="this very edit is committed already"):  # as the tests' settings have it
        sd1.commit(edit)
    assert equal(before, sd1) and len(sd1.edits) == 1


def test_an_edit_that_rounding_would_take_warns(sd1, edit):
    """In bfloat16 a hundredth of the edit is mostly lost to the rounding of the weights; in float32 it is kept."""
    small = edit * 0.001
    with sd1.applied(small):
        pass
    sd1.pipeline.to(dtype=torch.bfloat16)
    with pytest.warns(
        UserWarning, match=r"the edit of unet.mid.cross.[kv] is too small for torch.bfloat16: rounding the weight"
    ):
        sd1.commit(small, base=False)
    sd1.undo()
    sd1.commit(edit * 0, base=False)  # nothing is lost of nothing


def test_what_the_block_commits_goes_with_it(sd1, edit):
    before = weights(sd1)
    with pytest.raises(ZeroDivisionError), sd1.applied(edit):
        sd1.commit(wb.edit.diff_quickfix(sd1, PAIR))
        sd1.undo()
        sd1.commit(wb.edit.embedding_swap(sd1, "zebra", "lion"))
        _ = 1 / 0
    assert equal(before, sd1) and not sd1.edits
    with sd1.applied(edit), pytest.raises(ValueError, match="is an `applied` block's, which takes it back at its end"):
        sd1.undo()
    assert equal(before, sd1)


def test_blocks_that_end_out_of_order_restore_all_and_say_so(sd1, edit):
    before = weights(sd1)
    outer, inner = sd1.applied(edit), sd1.applied(wb.edit.diff_quickfix(sd1, PAIR))
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert equal(before, sd1) and not sd1.edits
    with pytest.raises(RuntimeError, match="was taken back before its end, by a block around it that ended first"):
        inner.__exit__(None, None, None)
    assert equal(before, sd1)


def test_sites_that_share_a_weight_are_refused(sd1):
    sd1.pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight = weight(sd1)
    row = torch.ones(1, 16)
    both = wb.Edit([update_of(sd1, f"unet.mid.cross.{kind}", row.T, row) for kind in "kv"])
    with pytest.raises(
        ValueError, match=r"unet.mid.cross.k, unet.mid.cross.v share a weight, which would be changed twice"
    ):
        sd1.commit(both)


# One stack for a pipeline


def test_two_models_of_a_pipeline_share_its_stack(sd1, edit):
    """Undone in any order, from either: the latest commit goes first."""
    other, before = wb.load(sd1.pipeline), weights(sd1)
    second = wb.edit.diff_quickfix(other, {"a zebra": "a lion"}, sites="text_encoder.1.out")
    sd1.commit(edit)
    other.commit(second)
    assert sd1.edits == other.edits and len(sd1.edits) == 2
    with sd1.lock:
        assert not lock_free(other)
    sd1.undo()
    assert [entry.where for entry in other.edits] == [edit.sites]
    other.undo()
    assert equal(before, sd1) and not sd1.edits
    with pytest.raises(ValueError, match=r"nothing to undo: model\.edits is empty"):
        other.undo()


def test_the_stack_goes_with_its_pipeline():
    pipeline = conftest.sd1()
    stack, locks = weakref.ref(commits_of(pipeline)), weakref.WeakSet()
    with lock_of(pipeline):
        assert commits_of(pipeline) is stack()
        locks.update(_LOCKS[part] for part in (pipeline, pipeline.unet, pipeline.tokenizer))
    assert len(locks) == 3
    del pipeline
    gc.collect()
    assert stack() is None and not locks


def test_a_copy_has_its_own_stack(sd1, edit):
    sd1.commit(edit)
    images(sd1, World("a", ZEBRA))  # wraps the pipeline
    other, edited = copy.deepcopy(sd1), weights(sd1)
    assert other.edits == sd1.edits and equal(edited, other) and other.pipeline is not sd1.pipeline
    assert np.array_equal(images(other, World("a", ZEBRA)), images(sd1, World("a", ZEBRA)))
    other.undo()
    assert equal(edited, sd1) and len(sd1.edits) == 1 and not other.edits
    before = weights(other)
    sd1.undo()
    assert equal(before, sd1)


# Weights changed behind the log's back


@pytest.mark.parametrize("how", ["by hand", "dtype", "module", "in part"])
def test_undo_refuses_weights_that_are_not_what_the_commit_left(sd1, edit, how):
    plain = weights(sd1)
    sd1.commit(edit)
    if how == "by hand":
        weight(sd1).data[3, 5] += 1e-3
    elif how == "dtype":
        sd1.pipeline.unet.to(torch.float16)
    elif how == "module":
        attention = sd1.pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
        attention.to_k = torch.nn.Linear(16, 16, bias=False)
    else:
        weight(sd1).data.copy_(plain_of(sd1, edit))
    before = weights(sd1)
    with pytest.raises(
        ValueError, match=r"undo: the weights of unet.mid.cross.k.* are not what the latest commit .*nothing was undone"
    ):
        sd1.undo()
    assert equal(before, sd1) and len(sd1.edits) == 1
    sd1.undo(check=False)
    assert not sd1.edits
    sd1.pipeline.unet.to(torch.float32)
    assert torch.equal(weight(sd1), plain_of(sd1, edit)) or how == "dtype"
    assert how == "dtype" or equal(plain, sd1)


def plain_of(sd1, edit):
    torch.manual_seed(0)
    return weight(wb.load(conftest.sd1()))


def test_a_block_whose_weights_were_changed_by_hand_says_so_and_lets_go(sd1, edit):
    with pytest.raises(ValueError, match="are not what the latest commit"), sd1.applied(edit):
        weight(sd1).data.mul_(2)
    assert len(sd1.edits) == 1
    sd1.undo(check=False)
    assert not sd1.edits and lock_free(sd1)


# Interrupts


def failing(error, at, monkeypatch, times=1):
    """Weights' copies fail from the one numbered `at` on, so many times."""
    copies = []

    def copy_(self, *arguments):
        copies.append(self)
        if at <= len(copies) < at + times:
            raise error
        return self.data.copy_(*arguments)

    monkeypatch.setattr(torch.nn.Parameter, "copy_", copy_, raising=False)
    return copies


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_whatever_is_raised_while_weights_change_they_are_as_before(sd1, monkeypatch, error, at, times):
    """Also when it is raised again, and again, while they are put back: in a commit, and in an undo."""
    edit = wb.edit.locoedit(sd1, PAIR, sites="unet.up.3.{0,1}.cross")
    before = weights(sd1)
    with monkeypatch.context() as patched, pytest.raises(type(error)):
        failing(error, at, patched, times)
        sd1.commit(edit)
    assert equal(before, sd1) and not sd1.edits
    sd1.commit(edit)
    after = weights(sd1)
    with monkeypatch.context() as patched, pytest.raises(type(error)):
        failing(error, at, patched, times)
        sd1.undo()
    assert equal(after, sd1) and len(sd1.edits) == 1
    sd1.undo()
    assert equal(before, sd1)


def test_a_weight_that_cannot_be_put_back_is_named(sd1, edit, monkeypatch):
    failing(KeyboardInterrupt(), 1, monkeypatch, 100)
    with pytest.raises(
        RuntimeError, match=r"unet.mid.cross.k: its weight could not be put back .*; load the model again"
    ):
        sd1.commit(edit)


def test_a_block_ends_in_spite_of_interrupts(sd1, edit, monkeypatch):
    """The block itself is interrupted, and twice again the undo at its end."""
    before = weights(sd1)
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patched, sd1.applied(edit):
        failing(KeyboardInterrupt(), 2, patched, 4)
        raise KeyboardInterrupt
    assert equal(before, sd1) and not sd1.edits and lock_free(sd1)


def test_ctrl_c_waits_for_the_end_of_a_change(sd1):
    steps = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        for _ in range(3):  # three times Ctrl-C
            signal.raise_signal(signal.SIGINT)
            steps.append("on")
    assert steps == ["on"] * 3 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ZeroDivisionError), uninterrupted():
        _ = 1 / 0
    found = []

    def elsewhere():
        with uninterrupted():  # never interrupted, nothing to hold back
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupts_at_random_moments_leave_whole_states(sd1):
    """Ctrl-C, often twice in a row, while the main thread commits and undoes: the weights are those that the log says."""
    edits = [wb.edit.locoedit(sd1, PAIR, sites="unet.*.cross"), wb.edit.diff_quickfix(sd1, {"a zebra": "a lion"})]
    states = {(): weights(sd1)}
    for names in ((0,), (0, 1)):
        sd1.commit(edits[names[-1]])
        states[names] = weights(sd1)
    for _ in range(2):
        sd1.undo()
    done, interrupts, draw = threading.Event(), 0, np.random.default_rng(0)

    def interrupt():
        while not done.is_set():
            time.sleep(draw.uniform(0, 0.01))
            for _ in range(draw.integers(1, 3)):
                if not done.is_set():
                    os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=interrupt)
    started = time.monotonic()
    while interrupts < 40 and time.monotonic() - started < 60:
        try:
            if not other.is_alive() and not interrupts:
                other.start()
            while True:
                if len(sd1.edits) < 2:
                    sd1.commit(edits[len(sd1.edits)])
                else:
                    with sd1.applied(edits[0] * 0.5, base=False):
                        sd1.edits  # noqa: B018 (something to be interrupted in)
                    sd1.undo()
                    sd1.undo()
        except KeyboardInterrupt:
            interrupts += 1
    while other.is_alive():
        try:
            done.set()
            other.join(1)
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts >= 20
    names = tuple(range(len(sd1.edits)))
    assert [entry.edit for entry in sd1.edits] == [edits[i].digest for i in names] and equal(states[names], sd1)


# Threads


def drawn(model) -> np.ndarray:
    return model.run(
        World("a", ZEBRA), seeds=1, num_inference_steps=1, guidance_scale=1.0, progress=False
    ).images.values


def generated(model) -> np.ndarray:
    return np.asarray(model.generate(ZEBRA, seeds=1, num_inference_steps=1, guidance_scale=1.0)[0])


def test_threads_of_one_pipeline_never_mix(sd1):
    """Sixty runs, generations, commits and blocks at random, from three threads and two Models: each result is that of some whole
    number of commits, and in a block all are those of the block. WORKBENCH_OPERATIONS=300 makes more of them."""
    models = [sd1, wb.load(sd1.pipeline), sd1]
    edit = wb.edit.locoedit(sd1, PAIR, sites="unet.*.cross")
    blocks = [wb.edit.diff_quickfix(sd1, {"a zebra": "a lion"}), wb.edit.embedding_swap(sd1, "zebra", "lion")]
    pictures = {}  # by edit committed or not, and by block: what must be seen
    for committed in (False, True):
        if committed:
            sd1.commit(edit)
        for block in (None, 0, 1):
            if block is None:
                pictures[committed, block] = drawn(sd1), generated(sd1)
            else:
                with sd1.applied(blocks[block]):
                    pictures[committed, block] = drawn(sd1), generated(sd1)
    sd1.undo()
    count = int(os.environ.get("WORKBENCH_OPERATIONS", "60"))
    done = []

    def states(found, kind, block):
        return [now for now in (False, True) if np.array_equal(pictures[now, block][kind], found)]

    def work(number):
        draw = np.random.default_rng(number)
        for _ in range(count // 3):
            model, act = models[number], draw.integers(5)
            if act == 0:
                assert states(drawn(model), 0, None)
            elif act == 1:
                assert states(generated(model), 1, None)
            elif act == 2 and number == 0:  # one thread commits and undoes, since the latest is what undo takes
                with model.lock:
                    model.undo() if model.edits else model.commit(edit)
            else:
                block = int(draw.integers(2))
                with model.applied(blocks[block]):
                    first = states(drawn(model), 0, block)
                    time.sleep(0.001)  # an occasion for the others
                    assert first and states(generated(model), 1, block) == first == [len(model.edits) == 2]
            done.append(act)

    assert not errors_of(*(partial(work, number) for number in range(3)))
    assert len(done) == count // 3 * 3 and len(sd1.edits) <= 1


def test_who_waits_for_a_block_waits_for_all_of_it(sd1, edit):
    order, entered = [], threading.Event()

    def wait():
        entered.wait()
        with wb.load(sd1.pipeline).applied(edit * 2):
            order.append("other")

    thread = threading.Thread(target=wait)
    thread.start()
    with sd1.applied(edit):
        entered.set()
        for _ in range(3):
            drawn(sd1)
            time.sleep(0.05)
            order.append("mine")
    thread.join()
    assert order == ["mine"] * 3 + ["other"] and not sd1.edits


def test_pipelines_that_share_components_wait_for_each_other():
    first, apart = wb.load(conftest.sd1()), wb.load(conftest.sd1())
    again, cousin = wb.load(first.pipeline), wb.load(copy.copy(first.pipeline))
    of_tokenizer = conftest.sd1()
    of_tokenizer.tokenizer = first.pipeline.tokenizer
    with first.lock, first.lock:  # reentrant
        assert lock_free(apart)
        assert not any(lock_free(other) for other in (again, cousin, wb.load(of_tokenizer)))
    assert all(lock_free(other) for other in (first, again, cousin))


def test_text_is_read_by_one_thread_at_a_time(sd1):
    """A tokenizer keeps how it was last asked to pad and cut: whoever reads by it waits for another thread's run."""
    pipeline = sd1.pipeline
    readers = [
        lambda: tokenize(pipeline.tokenizer, ZEBRA),
        lambda: tokens_of(pipeline, ZEBRA),
        lambda: list(untrained(pipeline, "zebra")),
        lambda: encode(pipeline, ZEBRA),
    ]
    assert all(passes(read) for read in readers)
    with sd1.lock:
        assert not any(passes(read) for read in readers)


def test_threads_of_pipelines_that_share_components_never_mix(sd1):
    """One reads attention maps of a long prompt, one pads a short one, one changes layers: each draws what it draws alone."""
    models = [wb.load(sd1.pipeline.__class__(**sd1.pipeline.components)) for _ in range(3)]
    how, probs = dict(num_inference_steps=2, progress=False), sd1.sites("unet.mid*.cross.probs")[0].name
    works = [
        lambda model: model.run(ZEBRA, record=probs, **how).values[probs].values,
        lambda model: model.generate("a lion", num_inference_steps=2),
        lambda model: model.run(World("a", ZEBRA, scale("unet.*.cross", 0.5)), **how).images.values,
    ]
    alone = [np.asarray(work(model)) for work, model in zip(works, models)]
    count = int(os.environ.get("WORKBENCH_OPERATIONS", "60")) // 3

    def repeat(number):
        for _ in range(count):
            assert np.array_equal(np.asarray(works[number](models[number])), alone[number])

    assert not errors_of(*(partial(repeat, number) for number in range(3)))


# A saved model


def test_the_edited_model_is_saved_whole_with_its_log(sd1, edit, tmp_path):
    whole = wb.edit.swap(sd1, "a zebra", "a giraffe")
    with sd1.applied(whole):
        sd1.save_pretrained(tmp_path / "edited")
        ours, log = images(sd1, World("a", ZEBRA)), sd1.edits
    again = wb.load(tmp_path / "edited")
    assert np.allclose(images(again, World("a", ZEBRA)), ours, atol=1e-5) and again.guidance_scale == sd1.guidance_scale
    assert again.edits == log and again.edits[0].what["editor"] == "swap"
    with pytest.raises(ValueError, match="the folder holds files; name an empty or a new one"):
        sd1.save_pretrained(tmp_path / "edited")
    before = weights(again)
    with pytest.raises(
        ValueError,
        match=r"the weights before the latest commit \(.*swap at 32 sites.*\) are not kept: it was made before",
    ):
        again.undo()
    again.commit(edit)  # made for the weights before the first commit, which the log knows
    again.undo()
    assert equal(before, again) and again.edits == log
    again.save_pretrained(tmp_path / "twice")
    assert wb.load(tmp_path / "twice").edits == log
    with pytest.warns(UserWarning, match="this very edit is committed already"):
        again.commit(whole)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda log: "[" + json.dumps(log), "is not JSON as it should be"),
        (lambda log: "[" * 1000 + "]" * 1000, "JSON of more than 64 levels"),
        (lambda log: json.dumps({"edits": log}), "expected a list"),
        (lambda log: json.dumps([log[0] | {"more": 1}]), "a commit has an unknown 'more'"),
        (
            lambda log: json.dumps([{key: value for key, value in log[0].items() if key != "after"}]),
            "a commit lacks 'after'",
        ),
        (lambda log: json.dumps([log[0] | {"base": {}}]), r"Commit\(base=\) lacks 'unet.mid.cross.k'"),
        (
            lambda log: json.dumps([log[0] | {"where": ["unet.*.k"]}]),
            r"Commit\(where=\)='unet.\*.k': give a site's name",
        ),
        (lambda log: json.dumps([log[0] | {"where": 3}]), r"Commit\(where=\)=3: expected a list"),
        (lambda log: json.dumps([log[0] | {"edit": "0"}]), r"Commit\(edit=\)='0': give a SHA-256"),
        (lambda log: json.dumps([log[0] | {"what": "swap"}]), r"Commit\(what=\)='swap': give a mapping"),
    ],
)
def test_a_log_that_was_altered_is_refused(sd1, edit, tmp_path, change, text):
    with sd1.applied(edit):
        sd1.save_pretrained(tmp_path / "edited")
    path = tmp_path / "edited" / "edits.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match="was altered: SHA256SUMS expects"):
        wb.load(tmp_path / "edited")
    with pytest.raises(
        ValueError, match=rf"edits.json: .*{text}.*; remove the file to load the weights without their log"
    ):
        wb.load(tmp_path / "edited", verify=False)
    path.unlink()
    assert wb.load(tmp_path / "edited", verify=False).edits == ()
