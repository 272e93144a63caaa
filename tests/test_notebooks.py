"""Notebooks hold what their percent sources say, with pictures; and every source runs from top to bottom, from an installed wheel.

Executed here are fewer prompts, seeds and steps than the notebooks show: whether they run, not what they find. `make notebooks`
executes them as they are.
"""

import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.py"))
IDS = [path.stem for path in NOTEBOOKS]
LARGEST = 1_000_000
REMAKE = "execute it with `make notebooks`; what was changed in the .ipynb itself: jupytext --update --to py:percent NAME.ipynb"
QUICK = {
    "01": {"SEEDS": [0], "STEPS": 3},
    "02": {"PROMPTS": 1, "SEEDS": (0,), "STEPS": 1},
    "03": {"PROMPTS": 1, "SEEDS": (0,), "STEPS": 2, "SHOWN": ("season",)},
    "04": {"SEEDS": [0], "STEPS": 1, "EVERY": 40},
    "05": {"SEEDS": (0,), "STEPS": 4, "FEW": 1, "PROMPTS": 2, "PAIRS": 2},
    "06": {"SEEDS": (0,), "STEPS": 3, "INNER": 1},
    "07": {"SEEDS": [0], "STEPS": 1, "EVERY": 20},
    "08": {"PROMPTS": 4, "STEPS": 2, "PAIRS": 2},
    "09": {"EVERY": 20, "IMAGES": 2, "STEPS": 1, "BEGINS": ("a photo of a",)},
    "10": {"PROMPTS": 1, "STEPS": 1},
    "11": {"PROMPTS": 1, "STEPS": 2, "REDRAWS": 1, "DISTANCES": (0.2,)},
    "12": {"PROMPTS": 1, "STEPS": 1, "TABLES": str(Path(__file__).parents[1] / "figures" / "architectures")},
}


@pytest.fixture(scope="module")
def kernel(wheel_python, tmp_path_factory):
    """One for all notebooks, forgetting between them: importing takes longer than most of them do."""
    folder = tmp_path_factory.mktemp("jupyter")
    about = {"argv": [str(wheel_python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    (folder / "kernels" / "wheel").mkdir(parents=True)
    (folder / "kernels" / "wheel" / "kernel.json").write_text(json.dumps(about | {"display_name": "wheel"}))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JUPYTER_PATH", str(folder))
        environment.delenv("MPLBACKEND", raising=False)  # the kernel draws inline, as for its reader
        environment.delenv("PYTHONPATH", raising=False)
        manager, client = start_new_kernel(kernel_name="wheel", cwd=str(folder))
        client.stop_channels()
        yield manager
        manager.shutdown_kernel(now=True)


def smaller(path: Path) -> nbformat.NotebookNode:
    """A notebook with the test's parameters behind its own, as papermill injects them."""
    notebook, parameters = jupytext.read(path), QUICK[path.stem[:2]]
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    assert all(re.search(rf"\b{name}\b.* = ", notebook.cells[place].source) for name in parameters)
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    return notebook


@pytest.mark.filterwarnings("ignore")  # of the client's own libraries; the notebook's kernel has its own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_the_notebook_runs_from_an_installed_wheel(path, kernel):
    notebook = smaller(path)
    client = NotebookClient(notebook, km=kernel, timeout=600)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()
    assert pictures(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_the_notebook_is_in_step_with_its_source(path):
    source, made = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert [(cell.cell_type, cell.source) for cell in made.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ], REMAKE
    assert source.cells[0].cell_type == "markdown" and max(cell.source.count("\n") for cell in source.cells) < 25


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_the_notebook_shows_its_pictures_and_nothing_of_the_machine(path):
    content = path.with_suffix(".ipynb").read_text()
    assert len(content.encode()) <= LARGEST
    made = nbformat.reads(content, as_version=4)
    nbformat.validate(made)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert pictures(made) and [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert set(made.metadata) == {"kernelspec", "language_info"} and made.metadata.language_info == {"name": "python"}
    assert all(set(cell.metadata) <= {"tags"} for cell in made.cells)
    said = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for c in code for output in c.outputs]
    assert not re.search(r"<Axes|<matplotlib| at 0x|/(home|root|tmp|work)/|site-packages", "\n".join(said))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_the_notebooks_links_lead_to_files(path):
    texts = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown"]
    links = [link.split("#")[0] for text in texts for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert not [link for link in links if "://" not in link and not (path.parent / link).exists()]


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == list(QUICK) == sorted(QUICK)


def pictures(notebook: nbformat.NotebookNode) -> list:
    """Outputs that are pictures."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in outputs if {"image/png", "image/jpeg"} & set(output.get("data", {}))]
