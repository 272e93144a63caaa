"""What nobody can mean is refused, in every argument of every public function: by name, in a sentence, before any denoising.

Environment variable: FUZZ, "all" for every input; else every `STRIDE`th of them, other ones of each group.
"""

import os

import diffusers
import pytest
from fuzz import JUNK, Group, judged
from fuzz_groups import Kit, groups

import workbench as wb
from workbench import scorer as scorers
from workbench.cli import main

STRIDE = 1 if os.environ.get("FUZZ") == "all" else 3


class Begun(Exception):
    """Something that takes long was begun, which is too late to refuse an argument."""


def begin(*args, **keywords):
    raise Begun


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Kit:
    return Kit(wb.load(), wb.Scorer(), tmp_path_factory.mktemp("kit"))


@pytest.fixture
def nothing_begins(kit, monkeypatch, tmp_path):
    """Whatever would denoise or load a model raises."""
    for loaded in (diffusers.DiffusionPipeline, diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLPipeline):
        for name in ("from_pretrained", "from_single_file"):
            monkeypatch.setattr(loaded, name, begin, raising=False)
    monkeypatch.setattr(scorers.open_clip, "create_model_and_transforms", begin)
    monkeypatch.chdir(tmp_path)
    hook = kit.model.pipeline.unet.register_forward_pre_hook(begin)
    yield
    hook.remove()


def test_no_argument_takes_what_nobody_can_mean(kit, nothing_begins):
    wrong, seen = [], 0
    for number, group in enumerate(groups(kit)):
        inputs = list(group.inputs())
        assert inputs, group.name
        for argument, junk in inputs[number % STRIDE :: STRIDE]:
            seen += 1
            if (outcome := group.outcome(argument, junk)) is not None:
                wrong.append(f"{group.name}({argument}={junk}): {outcome}")
    assert seen > 20_000 // STRIDE and not wrong, f"{len(wrong)} of {seen}:\n" + "\n".join(wrong[:40])


def test_every_public_function_is_in_a_group(kit):
    """A new name must be fuzzed, or stand here with the reason."""
    returned = {
        "Abstains",
        "Executor",  # the base of Share and Ray
        "Unfinished",
        "Screen",
        "AttentionMaps",
        "Comparison",
        "ConceptMaps",
        "Inversion",
        "ModelCheck",
        "PromptToPrompt",
        "Run",
        "Search",
        "Alignment",
    }
    names = {group.name.split("(")[0].split("[")[0].split(".")[0].split(" ")[0] for group in groups(kit)}
    for name in set(wb.__all__) - returned - {"edit", "plot", "Edit", "Window", "Sites"}:
        assert name in names, name
    for module in (wb.edit, wb.plot):
        own = {name for name, each in vars(module).items() if callable(each) and not name.startswith("_")}
        fuzzed = {
            group.name.split(".")[1].split(" ")[0]
            for group in groups(kit)
            if group.name.startswith(f"{module.__name__.split('.')[1]}.")
        }
        public = own & set(getattr(module, "__all__", PLOTS))
        assert public - {"Solution"} <= fuzzed, public - fuzzed


PLOTS = ("heatmap", "profile", "image_grid", "overlay", "ranks", "agreement", "frontier", "activation_difference")
PLOTS += ("recovery", "recovery_curve")


def test_the_fuzz_finds_what_it_looks_for():
    def taker(x):
        if x is None:
            raise ValueError("x=None: give a number")
        return x + 1

    group = Group("taker", taker, {"x": 1}, {"x": frozenset({"0"})})
    found = {junk: group.outcome("x", junk) for _, junk in group.inputs()}
    assert "0" not in found and set(found) == set(JUNK) - {"0"}
    assert found["True"].startswith("accepted") and found["'qux'"].startswith("bare TypeError")
    assert found["None"].startswith("bare ValueError"), "raised outside the package"
    try:
        wb.window(2, 1)
    except ValueError as error:
        assert judged(error, ("window",)) is None and judged(error, ("zebra",)).startswith("unnamed ValueError")


COMMAND_LINES = [
    line.split(" ", 2)
    for line in """
trace --prompts qux
trace --prompts .
trace --first 0
trace --first -1
trace --first half
trace --metric clip
trace --scorer qux
trace --folder /dev/null/folder
trace --batch-size 0
trace --out /dev/null/out
trace --out .
trace --seeds 0.5
trace --num-inference-steps 0
trace --num-inference-steps 1.5
trace --guidance-scale nan
trace --guidance-scale 1e30
trace --sites qux
trace --tokens qux
trace --steps 0
trace --steps 0.5-0.2
trace --steps half
trace --rows left
trace --window 0
trace --corruption blur
trace --noise-multiple -1
trace --noise-multiple nan
trace --draws 0
trace --device tpu
trace --model qux
locate --direction up
locate --widths 0
locate --windows 0
locate --inputs q
locate --heads 99
steer --pairs qux
steer --sites qux
steer --pool qux
steer --strengths nan
steer --seeds 0
p2p --kind swap
p2p --cross 2
p2p --self-resolution 0
p2p --reweight zebra
p2p --image qux.png
p2p --seeds -1
edit --editor rome
edit --sites qux
edit --lam -1
edit --tokens giraffe
edit --preserve qux
edit --seeds 0
recover --edit qux
recover --attacks qux
recover --distances -1
recover --template zebra
recover --prompts qux
recover --out /dev/null/out
check --dtype int8
check --height 3
check --num-inference-steps 0
check --batch-size 1
check --seed one
check --out /dev/null/table.csv
sites qux
sites --model qux
benchmark qux
""".split("\n")
    if line
]


@pytest.mark.parametrize("arguments", COMMAND_LINES, ids=" ".join)
def test_the_command_line_answers_in_a_sentence(kit, nothing_begins, monkeypatch, capsys, arguments):
    load, scorer = wb.load, wb.Scorer
    plain = dict(device="cpu", dtype="float32")
    monkeypatch.setattr(
        wb, "load", lambda source=None, **more: load(source, **more) if source or plain | more != plain else kit.model
    )
    monkeypatch.setattr(wb, "Scorer", lambda source=None, **more: scorer(source, **more) if source else kit.scorer)
    more = ["--target", "a giraffe in the savanna"] if arguments[0] == "p2p" and "--target" not in arguments else []
    monkeypatch.setattr("sys.argv", ["workbench", *arguments, *more])
    with pytest.raises(SystemExit) as left:
        main()
    said = str(left.value.code) if isinstance(left.value.code, str) else "".join(capsys.readouterr())
    assert left.value.code not in (0, None) and "Traceback" not in said and len(said) > 20
