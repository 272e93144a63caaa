"""Every notebook runs from top to bottom, as its reader would run it."""

import jupytext
import pytest
from nbclient import NotebookClient

from workbench.models import DATA

NOTEBOOKS = sorted((DATA.parent / "notebooks").glob("*.py"))


@pytest.mark.filterwarnings("ignore")  # of the client's own libraries; the notebook's kernel has its own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws inline, as for its reader
    notebook = jupytext.read(path)
    assert notebook.cells[0].cell_type == "markdown" and max(cell.source.count("\n") for cell in notebook.cells) < 20
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    figures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert figures


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_first_look",
        "02_causal_tracing",
        "03_locogen",
        "04_edit_and_commit",
        "05_steering",
        "06_prompt_to_prompt",
    ]
