"""What README and guide print works as printed, README's first snippet from an installed wheel too, and no link leads nowhere."""

import re
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from diffusers import StableDiffusionPipeline

import workbench as wb
from workbench import families
from workbench.models import MENAGERIE

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("figures/**/README.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def snippets(page: str) -> list[str]:
    """The ```python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def run_all(page: str) -> dict:
    """Run a page's blocks in one namespace; an error names the block that it came from."""
    namespace: dict = {}
    for number, code in enumerate(snippets(page)):
        exec(compile(code, f"{page}, block {number}", "exec"), namespace)
    plt.close("all")
    return namespace


def test_the_readme_is_short_and_its_snippets_do_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len(snippets("README.md")) == 4
    ran = run_all("README.md")
    assert (tmp_path / "zebra.png").exists() and len(ran["pictures"]) == 4
    components = [site for site in wb.strongest(ran["effects"]).site if not site.endswith(".hidden")]
    assert set(components[:2]) == {"text_encoder.0.mlp", "text_encoder.0.attention"}
    claim = 'Of these 16 pictures of "a photo of a zebra" 16 show a giraffe'
    assert claim in " ".join((ROOT / "README.md").read_text().split())
    assert ran["shown"].count("giraffe") == 16 and "16 of 16" in capsys.readouterr().out
    season = wb.prompt_set("season").labels
    winter = wb.Scorer().class_probabilities(ran["run"].pil("winter"), season).argmax(-1)
    assert [list(season)[i] for i in winter] == ["winter"] * 4
    plain = StableDiffusionPipeline.from_pretrained(MENAGERIE)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights("giraffe.safetensors")
    drawn = plain(["a photo of a zebra"] * 4, num_inference_steps=12, guidance_scale=3.0, output_type="pil").images
    labels = ran["labels"]
    assert [list(labels)[i] for i in wb.Scorer().class_probabilities(drawn, labels).argmax(-1)].count("giraffe") >= 3


def test_the_guides_examples_run(tmp_path, monkeypatch):
    """In few steps: whether they run, not what they find."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wb.Model, "num_inference_steps", property(lambda self: 2, lambda self, steps: None), False)
    ran = run_all("docs/guide.md")
    assert ran["run"].images.sizes["world"] == 2 and {path.name for path in tmp_path.iterdir()} >= {"lora.safetensors"}


def test_what_contributing_adds_works(tiny, tmp_path, monkeypatch):
    assert (
        all(len(code.splitlines()) < 40 for code in snippets("CONTRIBUTING.md"))
        and len(snippets("CONTRIBUTING.md")) == 4
    )
    added = run_all("CONTRIBUTING.md")
    model = wb.load(tiny)
    worlds = {"plain": "a zebra", "clamped": wb.World("clamped", "a zebra", added["clamp"]("unet.mid*.cross", 1e6))}
    images = model.run(worlds, num_inference_steps=2, progress=False).images
    assert np.array_equal(images[0], images[1])
    with pytest.raises(
        ValueError, match=r"Clamp at unet\.mid.*probs in world 'a': attention probabilities are between 0"
    ):
        model.run(wb.World("a", "a zebra", added["clamp"]("unet.mid*.cross.probs", 1.0)), num_inference_steps=2)
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, added["LCM"]))
    assert families.check_class("LatentConsistencyModelPipeline") is added["LCM"]


def test_the_study_of_contributing_writes_its_table(tmp_path):
    added = run_all("CONTRIBUTING.md")
    added["main"](
        added["KnockOutOptions"](prompts=1, seeds=1, num_inference_steps=1, runs=tmp_path / "runs", out=tmp_path)
    )
    table = pd.read_csv(tmp_path / "knock_out.csv")
    assert len(table) == 16 and list(table) == ["site", "lost", "low", "high"] and table.notna().all(axis=None)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page):
    links = [link.split("#")[0] for link in LINK.findall(page.read_text()) if "://" not in link]
    assert not [link for link in links if link and not (page.parent / link).exists()]


def test_the_first_snippet_runs_from_a_wheel_far_from_the_clone(wheel_python, tmp_path):
    script = tmp_path / "first.py"
    script.write_text(snippets("README.md")[0] + "print(wb.__file__, len(pictures))\n")
    alone = {"PATH": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([wheel_python, script], cwd=tmp_path, env=alone, capture_output=True, text=True)
    (site,) = wheel_python.parents[1].glob("lib/python*/site-packages")
    assert run.stdout.split() == [str(site / "workbench" / "__init__.py"), "4"], run.stderr
    assert (tmp_path / "zebra.png").exists() and (wheel_python.parent / "workbench").exists()
