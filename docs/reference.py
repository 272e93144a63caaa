"""The API reference of the public names, from their docstrings: `make docs` writes build/docs/workbench.html."""

import argparse
import collections.abc
import sys
import warnings
from pathlib import Path

import pdoc

import workbench

ROOT = Path(__file__).parents[1]


def main():
    """Write the pages; whatever pdoc warns of is an error."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=ROOT / "build" / "docs")
    out = options.parse_args().out
    for name in workbench.__all__:  # pdoc looks at what is there, and names may be imported when asked for
        vars(workbench)[name] = getattr(workbench, name)
    name_types()
    pdoc.render.configure(docformat="markdown", show_source=False, footer_text="Diffusion workbench")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"pdoc(\.|$)")
        pdoc.pdoc("workbench", output_directory=out)
    print(f"wrote {out / 'workbench.html'}")


def name_types():
    """Let every module of the package know all types: annotations may be texts, of types that it does not import."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "workbench"]
    types = {name: getattr(collections.abc, name) for name in collections.abc.__all__}
    for module in modules:
        types |= {
            name: each for name, each in vars(module).items() if getattr(each, "__module__", "") == module.__name__
        }
    for module in modules:
        vars(module).update({name: each for name, each in types.items() if name not in vars(module)})


if __name__ == "__main__":
    main()
