"""Executes the notebooks from their percent sources: `make notebooks` writes each NAME.ipynb, with its pictures, beside NAME.py.

Resumable: a notebook whose code is as it was keeps its outputs and takes over what its prose says now.
"""

import argparse
import base64
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
LARGEST = 1_000_000  # bytes of a notebook: more is not shown by every viewer
QUALITY = 88  # of pictures that are kept as JPEG
ABOUT = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"  # bars of loading, which only a running kernel can draw
NOT_SHOWN = ("<Axes", "<matplotlib", " at 0x")  # what an object says of itself where nobody meant to look


def main():
    """Execute the notebooks whose code is new, and write them; what no reader should be given is told at the end, in a ValueError."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help="how notebooks begin, such as 02; all when left out")
    options.add_argument(
        "--again", action="store_true", help="also those whose code is as it was: the library has changed"
    )
    given = options.parse_args()
    names, unfit = tuple(given.names) or ("",), []
    for source in tqdm([path for path in sorted(HERE.glob("[0-9]*.py")) if path.name.startswith(names)]):
        asked, target = jupytext.read(source), source.with_suffix(".ipynb")
        kept = nbformat.read(target, as_version=4) if target.exists() and not given.again else None
        notebook = asked if kept and take_outputs(asked, kept) else tidied(executed(asked))
        name_cells(notebook)
        content = nbformat.writes(notebook) + "\n"
        target.write_text(content)
        unfit += [f"{source.stem}, {each}" for each in faults(notebook)]
        if len(content.encode()) > LARGEST:
            unfit.append(f"{source.stem}: {len(content.encode())} bytes, more than {LARGEST}: show less, or smaller")
    if unfit:
        raise ValueError("\n".join(["written, but not to be shown:", *unfit]))


def take_outputs(notebook: NotebookNode, kept: NotebookNode) -> bool:
    """Give a notebook the outputs of an earlier one with the same code, whatever its prose; False where the code differs."""
    new, old = ([cell for cell in each.cells if cell.cell_type == "code"] for each in (notebook, kept))
    if [cell.source for cell in new] != [cell.source for cell in old]:
        return False
    for cell, earlier in zip(new, old):
        cell.outputs, cell.execution_count = earlier.outputs, earlier.execution_count
    return True


def executed(notebook: NotebookNode) -> NotebookNode:
    """A notebook with its outputs, run in an empty folder beside the committed figures, with pictures inline and without bars."""
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | quiet
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "figures").symlink_to(HERE.parent / "figures")
        (own := Path(folder) / "notebooks").mkdir()
        client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(own)}})
        return client.execute(env=environment)


def tidied(notebook: NotebookNode) -> NotebookNode:
    """The same without what differs between machines and days."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                kind, encoded = smaller(output.data.pop("image/png"))
                output.data[kind] = encoded
    return notebook


def name_cells(notebook: NotebookNode):
    """Say of a notebook and its cells what is the same on every day."""
    notebook.metadata = nbformat.from_dict(ABOUT)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if "tags" in cell.metadata else {})


def smaller(encoded: str) -> tuple[str, str]:
    """A PNG, base64, as its MIME type and content: JPEG where that takes less than half, as photographs do and lines do not."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    written = {}
    for kind, settings in (("png", {"optimize": True}), ("jpeg", {"quality": QUALITY, "optimize": True})):
        written[kind] = io.BytesIO()
        picture.convert("RGB").save(written[kind], kind, **settings)
    lossless, lossy = (each.getvalue() for each in written.values())
    kind, content = ("image/jpeg", lossy) if 2 * len(lossy) < len(lossless) else ("image/png", lossless)
    return kind, base64.b64encode(content).decode()


def faults(notebook: NotebookNode) -> Iterator[str]:
    """What was not meant to be shown: warnings and bars, objects without a form, folders of this machine."""
    unwanted = (*NOT_SHOWN, str(HERE.parent), str(Path.home()), tempfile.gettempdir())
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            given = [str(value) for kind, value in output.get("data", {}).items() if "text" in kind]
            text = "\n".join([output.get("text", ""), *given])
            if output.get("name") == "stderr":
                yield f"cell {number} writes to stderr: {output.text[:500]}"
            elif shown := [each for each in unwanted if each in text]:
                yield f"cell {number} shows {shown[0]!r}: end it with what a reader wants, or assign its result to _"


if __name__ == "__main__":
    main()
