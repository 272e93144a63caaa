"""Results as a page and as a widget: in a real browser, what is clicked is what was measured."""

import base64
import io
import json
import re
import shutil
import sys

import browser
import numpy as np
import pytest
import torch
from conftest import sd1
from outside import fresh
from PIL import Image
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

import workbench as wb
from workbench import cli
from workbench.experiments.results import dataset
from workbench.experiments.shards import opened
from workbench.experiments.store import Folder
from workbench.pictures import data_url
from workbench.viewer.page import SCRIPT, gallery, page
from workbench.viewer.sources import sources_of
from workbench.viewer.studies import LARGEST, of_run, studies_of

EVIL = "</script><script>window.evil = 1</script>"
MARKUP = "a zebra </script><b>"  # a prompt that is not too long
FEW = dict(num_inference_steps=2, seeds=(0, 1))


@pytest.fixture(scope="module")
def model():
    return wb.load(fresh(sd1))


@pytest.fixture(scope="module")
def run(model):
    worlds = {"plain": "a zebra in the savanna", EVIL: "a giraffe in the savanna", "other": "a lion on the beach"}
    return model.run(worlds, seeds=(3, 5), num_inference_steps=3, record=["latents"], progress=False)


@pytest.fixture(scope="module")
def direction(model):
    return wb.direction(model, ["in winter", "snow"], ["in summer", "sun"], "text_encoder.{0,1}.mlp", pool="positions")


@pytest.fixture(scope="module")
def folder(model, direction, scorer, tmp_path_factory):
    """A trace of two prompts, one of them with markup, a sweep, a LocoGen, and a search."""
    folder = tmp_path_factory.mktemp("results")
    prompts = wb.PromptSet(
        "two",
        (
            wb.Prompt(MARKUP, subject="zebra", target=MARKUP.replace("zebra", "lion")),
            wb.Prompt("a giraffe in the savanna", subject="giraffe", target="a lion in the savanna"),
        ),
        {},
    )
    spec = wb.TraceSpec(sites=("text_encoder.{0,1}.{attention,mlp}",), tokens=("subject_last", "eos"), draws=1, **FEW)
    wb.causal_trace(model, prompts, spec, scorer=scorer, folder=folder / "trace")
    concept, swept = wb.Concept("winter"), wb.SweepSpec(strengths=(0.5, 1.0, 4.0), **FEW)
    wb.steer_sweep(model, prompts, direction, concept, swept, scorer=scorer, folder=folder / "sweep")
    wb.locogen(
        model,
        prompts,
        wb.LocoGenSpec(windows=((0, 1), (1, 1), (0, 2)), **FEW),
        scorer=scorer,
        folder=folder / "deep" / "locogen",
    )
    wb.steer_search(
        model, prompts[:1], direction, concept, wb.SearchSpec(trials=2, **FEW), scorer=scorer, folder=folder / "search"
    )
    return folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


class Page:
    """What a reader does with a page, and sees."""

    def __init__(self, chromium, path):
        self.chromium = chromium
        chromium.get(path.as_uri())
        assert not chromium.get_log("browser")

    def all(self, selector):
        return self.chromium.find_elements(By.CSS_SELECTOR, f".wb-viewer {selector}")

    def text(self, selector):
        return "\n".join(element.text for element in self.all(selector))

    def choose(self, name, text):
        Select(self.all(f"select[data-name={name}]")[0]).select_by_visible_text(text)

    def cell(self, row, column):
        return self.all(".wb-map tbody tr")[row].find_elements(By.TAG_NAME, "td")[column]

    def pictures(self):
        return [picture.get_attribute("src") for picture in self.all(".wb-pictures img")]

    def selected(self):
        (cell,) = self.all('td[aria-selected="true"]')
        return cell.get_attribute("aria-label")

    def press(self, *keys):
        ActionChains(self.chromium).send_keys(*keys).perform()


def decoded(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")) / 255


def three(value):
    """As the page says numbers: three of the four digits that it holds."""
    return f"{float(f'{float(value):.4g}'):.3g}"


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def test_clicking_a_cell_of_a_run_shows_its_worlds_pictures(run, chromium, tmp_path):
    seen = Page(chromium, wb.gallery(run, tmp_path / "run.html"))
    distances = np.abs(run.images - run.images[0]).mean(["y", "x", "colour"])
    for row, world in enumerate(("plain", EVIL, "other")):
        for column, seed in enumerate((3, 5)):
            seen.cell(row, column).click()
            expected = [data_url(run.pil(name, seed)[0], LARGEST) for name in dict.fromkeys(("plain", world))]
            assert seen.pictures() == expected
            assert seen.text("figcaption").split("\n")[-1] == f"{world}, seed {seed}"
            assert seen.text(".wb-detail h3") == f"world {world}, seed {seed}"
            assert f"prompt: {run.worlds[row].prompt}" in seen.text(".wb-detail li")
            assert seen.text(".wb-value b") == three(distances[row, column])


def test_sliders_and_keys_move_through_a_run(run, chromium, tmp_path):
    seen = Page(chromium, wb.gallery(run, tmp_path / "run.html"))
    seen.cell(0, 0).click()
    slider = seen.all("input[data-name=world]")[0]
    slider.send_keys(Keys.ARROW_RIGHT)
    assert seen.selected().startswith(f"world {EVIL}, seed 3: ") and seen.text("output").startswith(EVIL)
    assert seen.pictures()[1] == data_url(run.pil(EVIL, 3)[0], LARGEST)
    seen.cell(1, 0).click()
    seen.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)  # no further than the last
    assert seen.selected().startswith("world other, seed 5: ")
    assert chromium.switch_to.active_element == seen.cell(2, 1)
    assert seen.pictures()[1] == data_url(run.pil("other", 5)[0], LARGEST)
    seen.press(Keys.HOME, Keys.PAGE_UP)
    assert (
        seen.selected() == "world plain, seed 3: 0"
        and seen.all("input[data-name=seed]")[0].get_attribute("value") == "0"
    )


def test_no_text_of_results_is_markup_and_nothing_is_loaded(run, folder, chromium, tmp_path):
    path = wb.gallery({EVIL: run, "trace": folder / "trace"}, tmp_path / "evil.html")
    written = path.read_text()
    assert "://" not in written and "<script>window" not in written
    assert re.findall(r"<(?:link|iframe|object|embed|base|img)\b", written) == []
    seen = Page(chromium, path)
    assert [option.text for option in Select(seen.all("select[data-name=study]")[0]).options] == [EVIL, "trace"]
    assert EVIL in seen.text(".wb-map") and chromium.title == f"{EVIL}, trace"
    seen.choose("study", "trace")
    assert MARKUP in seen.text(".wb-prompts")
    assert chromium.execute_script("return [window.evil, performance.getEntriesByType('resource').length]") == [None, 0]


def test_every_number_of_a_trace_is_that_of_its_effects(folder, chromium, tmp_path):
    trace = wb.open_results(folder / "trace")
    seen = Page(chromium, wb.gallery(trace, tmp_path / "trace.html"))
    for metric in ("similarity", "pixel_distance"):
        effects = wb.effects(trace, metric)
        seen.choose("view", f"indirect effect on {metric.replace('_', ' ')}")
        assert effects.attrs["unit"] in seen.text(".wb-legend") and seen.all(".wb-legend .wb-bar")
        for kind in ("attention", "mlp"):
            seen.choose("kind", kind)
            for row, layer in enumerate(("0", "1")):
                for column, token in enumerate(("subject_last", "eos")):
                    at = effects.sel(site=f"text_encoder.{layer}.{kind}", token=token).squeeze()
                    value, low, high = (three(at[f"indirect_effect{end}"]) for end in ("", "_low", "_high"))
                    seen.cell(row, column).click()
                    said = seen.text(".wb-value b")
                    assert numbers(said) == [float(value), 95, float(low), float(high)]
                    assert f"token {token}: {said}" in seen.selected() and "from 2 prompts" in seen.text(".wb-detail")
                    total = [three(effects[f"total_effect{end}"]) for end in ("", "_low", "_high")]
                    line = next(
                        text for text in seen.text(".wb-detail p").split("\n") if text.startswith("total effect")
                    )
                    assert numbers(line)[:4] == [float(total[0]), 95, float(total[1]), float(total[2])]
                    single = trace.restored.sel(site=f"text_encoder.{layer}.{kind}", token=token, metric=metric)
                    means = single.mean(["draw", "seed"]).values.ravel()
                    rows = [each.find_elements(By.TAG_NAME, "td") for each in seen.all(".wb-prompts tbody tr")]
                    assert [float(cells[2].text) for cells in rows] == [float(three(mean)) for mean in means]


def test_pictures_behind_a_trace_are_those_that_were_measured(model, folder, chromium, tmp_path):
    trace = wb.open_results(folder / "trace")
    seen = Page(chromium, wb.gallery(trace, tmp_path / "trace.html", model=model, pictures=2))
    scores = trace.restored.sel(metric="pixel_distance", seed=0).squeeze()
    shown = {}
    for p, prompt in enumerate(trace.text.values):
        seen.all(".wb-prompts button")[p].click()
        assert seen.all(".wb-chosen")[0].text.startswith(prompt)
        for row, layer in enumerate(("0", "1")):
            for column, token in enumerate(("subject_last", "eos")):
                seen.cell(row, column).click()
                kind = seen.all("select[data-name=kind]")[0].get_attribute("value")
                clean, _, restored = map(decoded, seen.pictures())
                site = f"text_encoder.{layer}.{('attention', 'mlp')[int(kind)]}"
                measured = float(scores.sel(prompt=p, site=site, token=token))
                assert np.abs(restored - clean).mean() == pytest.approx(measured, abs=2e-3)
                shown[p, row, column] = seen.pictures()[2]
    assert len(set(shown.values())) > len(shown) // 2
    drawn = model.run(trace.text.values[0], seeds=(0,), num_inference_steps=2, progress=False)
    seen.all(".wb-prompts button")[0].click()
    assert seen.pictures()[0] == data_url(drawn.pil()[0], LARGEST)


def test_a_sweep_slides_through_its_strengths(model, direction, folder, chromium, tmp_path):
    made = wb.gallery(folder / "sweep", tmp_path / "sweep.html", model=model, direction=direction)
    seen, effects = Page(chromium, made), wb.open_results(folder / "sweep")
    seen.cell(0, 0).click()
    slider, pictures = seen.all("input[data-name=strength]")[0], []
    for strength in (0.5, 1.0, 4.0):
        assert seen.text("output") == f"{strength:g}" and f"strength {strength:g}" in seen.selected()
        pictures.append(seen.pictures())
        assert seen.text("figcaption").split("\n") == ["unsteered", "steered"]
        slider.send_keys(Keys.ARROW_RIGHT)
    unsteered, steered = zip(*pictures)
    assert len(set(unsteered)) == 1 and len(set(steered)) == 3
    scores = effects.steered.sel(
        metric="pixel_distance", seed=0, prompt=0, site=seen.text(".wb-map tbody th").split()[0]
    )
    distances = [np.abs(decoded(each) - decoded(unsteered[0])).mean() for each in steered]
    assert distances == pytest.approx(scores.sel(strength=[0.5, 1, 4]).values, abs=2e-3)


def test_a_folder_shows_every_kind_of_results_and_says_what_it_cannot(folder, chromium, tmp_path):
    held = tmp_path / "all"
    shutil.copytree(folder, held)
    shard = next((held / "trace").glob("*prompt0001*.parquet"))
    shard.unlink()
    (held / "begun").mkdir()
    shutil.copy(held / "search" / "spec.json", held / "begun")
    seen = Page(chromium, wb.gallery(held, tmp_path / "all.html"))
    titles = [option.text for option in Select(seen.all("select[data-name=study]")[0]).options]
    assert titles == ["begun", "deep/locogen", "search", "sweep", "trace"]
    assert "No part is finished in" in seen.text(".wb-top") and not seen.all(".wb-map")[0].is_displayed()
    for title in titles[1:]:
        seen.choose("study", title)
        assert seen.all("td[role=gridcell]") and seen.all(".wb-legend .wb-bar") and seen.text(".wb-value")
    assert "Unfinished: 1 of 2 parts are missing (prompt0001-draw00)" in seen.text(".wb-top")
    seen.choose("study", "search")
    assert "Only those of causal traces, LocoGen and sweeps are drawn again." in seen.text(".wb-said")
    trials = dataset(opened(Folder(folder / "search"))).steered.sel(metric="concept_similarity")
    assert "strengths: " in seen.text(".wb-detail li") and len(seen.all("td[role=gridcell]")) == trials.sizes["trial"]


def test_the_page_fits_a_narrow_and_a_wide_window(folder, chromium, tmp_path):
    path = wb.gallery(folder, tmp_path / "all.html")
    size = chromium.get_window_size()
    try:
        for width in (840, 1400):
            chromium.set_window_size(width, 900)
            seen = Page(chromium, path)
            for study in ("sweep", "trace", "deep/locogen"):
                seen.choose("study", study)
                assert chromium.execute_script("return document.documentElement.scrollWidth <= innerWidth")
                sizes = (
                    "[...document.querySelectorAll('.wb-viewer *')].map(e => parseFloat(getComputedStyle(e).fontSize))"
                )
                assert chromium.execute_script(f"return Math.min(...{sizes})") >= 13
    finally:
        chromium.set_window_size(size["width"], size["height"])


@pytest.mark.parametrize(
    "results, error, said",
    [
        ("empty", FileNotFoundError, "no spec.json with finished parts there"),
        ("absent", FileNotFoundError, "it does not exist or holds no files"),
        ("a file", ValueError, "is a file; give the folder= of an experiment"),
        ("", ValueError, "results='' is empty"),
        ({}, ValueError, "results is empty; give a run, what wb.causal_trace"),
        (3, ValueError, "results=3, a int: give a run"),
        ({"a": None}, ValueError, r"results\['a'\]=None"),
    ],
)
def test_what_is_no_result_is_refused(results, error, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("x")
    with pytest.raises(error, match=said):
        wb.gallery(results, "page.html")
    assert not (tmp_path / "page.html").exists()


def test_results_that_do_not_fit_are_refused(model, run, folder, direction, tmp_path):
    path, trace = tmp_path / "page.html", wb.open_results(folder / "trace")
    with pytest.raises(ValueError, match=r"no experiment's; .* not yet averaged by wb.effects"):
        wb.gallery(wb.effects(trace, "similarity").drop_attrs(), path)
    with pytest.raises(ValueError, match="give direction= to draw their pictures"):
        wb.gallery(folder / "sweep", path, model=model)
    with pytest.raises(ValueError, match=r"measured on another model, or on this one in another state:\n  variants"):
        wb.gallery(folder / "sweep", path, model=model, direction=-direction)
    with pytest.raises(ValueError, match="pictures of causal traces, LocoGen and sweeps are drawn again"):
        wb.gallery(folder / "search", path, model=model)
    torch.manual_seed(1)
    other = wb.load(sd1())
    with pytest.raises(ValueError, match=r"measured on another model, or .*\n  model.weights"):
        wb.gallery(trace, path, model=other)
    with pytest.raises(ValueError, match="the run's last latents decode to a picture"):
        wb.gallery(run, path, model=other)
    with pytest.raises(ValueError, match="pictures=-1"):
        wb.gallery(run, path, pictures=-1)
    unlike = trace.assign(restored=trace.restored + 0.5)
    with pytest.raises(
        RuntimeError, match=r"lies 0.* from its reference, the one that was measured lay 0.*: it is another"
    ):
        wb.gallery(unlike, path, model=model)
    assert not path.exists()


def test_the_command_writes_the_page(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["workbench", "gallery", str(folder), "--out", str(tmp_path / "new" / "page")])
    cli.main()
    written = tmp_path / "new" / "page.html"
    assert f"wrote {written} (" in capsys.readouterr().out
    held = json.loads(re.search(r'id="studies">(.*?)</script>', written.read_text(), re.DOTALL)[1])
    assert [study["title"] for study in held] == ["deep/locogen", "search", "sweep", "trace"]
    monkeypatch.setattr(sys, "argv", ["workbench", "gallery", str(written)])
    with pytest.raises(SystemExit, match="is a file; give the folder= of an experiment"):
        cli.main()


def test_the_widget_draws_what_is_asked_for(model, run, folder):
    widget = wb.explore({"run": run, "trace": folder / "trace", "search": folder / "search"}, model)
    assert [study["live"] for study in widget.studies] == [True, True, False]
    widget.asked = {"study": 0, "view": 1, "at": {"world": 1, "seed": 1, "step": 2}}
    assert widget.answer["key"] == "seed=1 step=2 world=1" and not widget.answer["error"]
    last = decoded(widget.answer["pictures"][1][1])
    assert last == pytest.approx(run.images.values[1, 1], abs=1 / 255)
    at = {"layer": 0, "kind": 1, "token": 0, "steps": 0, "prompt": 1, "seed": 1, "draw": 0}
    widget.asked = {"study": 1, "view": 0, "at": at}
    clean, _, restored = (decoded(url) for _, url in widget.answer["pictures"])
    score = wb.open_results(folder / "trace").restored.sel(
        metric="pixel_distance", prompt=1, seed=1, site="text_encoder.0.mlp", token="subject_last"
    )
    assert np.abs(restored - clean).mean() == pytest.approx(score.item(), abs=2e-3)
    assert wb.explore(run).answer == {} and "wb.explore(results, model) draws them" in str(wb.explore(folder).studies)


def test_the_view_of_the_notebook_asks_its_kernel_and_shows_the_answer(run, chromium, tmp_path):
    """The widget's own script, with a model as anywidget gives it."""
    study = of_run("run", run)
    study.live = True
    path = tmp_path / "widget.html"
    path.write_text(f"<div id=view></div><script>window.studies = {json.dumps([study.plain()]).replace('<', chr(92) + 'u003c')}</script>"
        f"<script type=module>{SCRIPT.replace('export default { render };', '')}"
        """
        const held = { studies: window.studies, asked: null, answer: null };
        const listeners = {};
        window.model = {
          get: (name) => held[name],
          set: (name, value) => { held[name] = value; },
          save_changes: () => { window.saved = held.asked; },
          on: (name, call) => { listeners[name] = call; },
          off: () => {},
          answer: (value) => { held.answer = value; listeners["change:answer"](); },
        };
        render({ model: window.model, el: document.getElementById("view") });
        </script>""")  # fmt: skip
    seen = Page(chromium, path)
    WebDriverWait(chromium, 10).until(lambda _: seen.all("td[role=gridcell]"))
    seen.choose("view", "latents: distance to 'plain'")
    seen.choose("across", "denoising step")
    seen.cell(2, 0).click()
    assert chromium.execute_script("return window.saved") == {
        "study": 0,
        "view": 1,
        "at": {"world": 2, "seed": 0, "step": 0},
    }
    assert seen.text(".wb-said") == "drawing ..."
    url = data_url(run.pil("other", 5)[0])
    answer = {"study": 0, "key": "seed=0 step=0 world=2", "pictures": [["drawn now", url]], "error": ""}
    chromium.execute_script("window.model.answer(arguments[0])", answer)
    assert seen.pictures() == [url] and seen.text("figcaption") == "drawn now"
    seen.cell(1, 1).click()
    answer = {"study": 0, "key": "seed=0 step=1 world=1", "pictures": None, "error": "out of <b>memory</b>"}
    chromium.execute_script("window.model.answer(arguments[0])", answer)
    assert seen.text(".wb-said") == "No pictures: out of <b>memory</b>"


def test_without_the_extra_explore_says_how_to_install_it(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "workbench.viewer.widget", raising=False)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match=r'pip install "diffusion-workbench\[notebook\]"; wb.gallery\(results'):
        wb.explore(run)


def test_without_a_browser_the_tests_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    with (
        pytest.raises(pytest.skip.Exception, match="apt-get install chromium chromium-driver"),
        browser.chromium(tmp_path),
    ):
        pass


def test_a_page_is_the_same_twice(folder):
    assert page(studies_of(sources_of(folder))) == page(studies_of(sources_of(folder)))
    assert gallery is wb.gallery
