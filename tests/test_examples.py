"""Every public function, class and method has an example in its docstring that runs, and prints what it says."""

import ast
import doctest
import inspect
from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest

import workbench as wb


def public() -> dict[str, object]:
    """Public functions and classes by their shortest name, and the public methods and properties that a class has of its own."""
    named = {name: getattr(wb, name) for name in wb.__all__}
    for module in [value for value in named.values() if inspect.ismodule(value)]:
        own = getattr(module, "__all__", [name for name, value in vars(module).items() if is_own(module, value)])
        named |= {f"{module.__name__.removeprefix('workbench.')}.{name}": getattr(module, name) for name in own}
    shortest: dict[int, str] = {}
    for name, value in sorted(named.items(), key=lambda each: each[0].count(".")):
        if not inspect.ismodule(value):
            shortest.setdefault(id(value), name)
    found = {name: named[name] for name in shortest.values()}
    for name, value in list(found.items()):
        if inspect.isclass(value):
            found |= {f"{name}.{member}": held for member, held in members(value)}
    return found


def is_own(module, value) -> bool:
    """Whether a function is one of a module's public ones, not imported there."""
    return inspect.isfunction(value) and value.__module__ == module.__name__ and not value.__name__.startswith("_")


def members(kind: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties of a class, without those that it inherits."""
    for name, held in vars(kind).items():
        held = held.__func__ if isinstance(held, (classmethod, staticmethod)) else held
        if not name.startswith("_") and (inspect.isfunction(held) or isinstance(held, property)):
            yield name, held


def example(name: str, value: object, namespace: dict) -> doctest.DocTest:
    """The example in a docstring, in a namespace of its own."""
    return doctest.DocTestParser().get_doctest(inspect.getdoc(value) or "", dict(namespace), name, None, None)


def failures(test: doctest.DocTest) -> str:
    """What an example prints otherwise than it says, or raises; nothing where it is right."""
    said: list[str] = []
    doctest.DocTestRunner().run(test, out=said.append)
    return "".join(said)


def asked(code: str) -> set[str]:
    """The names that some code reads."""
    return {
        node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


class Beginning:
    """What all examples begin with, as `help(workbench)` says: what only gives a name runs when an example first asks for that name."""

    def __init__(self):
        lines = [each.source for each in example("workbench", wb, {}).examples]
        gives = {line: ast.parse(line).body[0] for line in lines}
        self.named = {
            node.targets[0].id: line
            for line, node in gives.items()
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        self.names: dict[str, object] = {}
        for line in lines:
            if line not in self.named.values():
                self.run(line)

    def run(self, line: str):
        self.give(line)
        exec(line, self.names)

    def give(self, code: str):
        """Run what gives the names that some code asks for."""
        for name in asked(code) & set(self.named) - set(self.names):
            if name not in self.names:  # nor given for another of them
                self.run(self.named[name])


@pytest.fixture(scope="session")
def beginning() -> Beginning:
    return Beginning()


@pytest.mark.parametrize("name", PUBLIC := public())
def test_the_example_does_what_it_says(name, beginning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beginning.give("".join(each.source for each in example(name, PUBLIC[name], {}).examples))
    test = example(name, PUBLIC[name], beginning.names)
    assert test.examples or isinstance(PUBLIC[name], property), f"{name} has no example; write one into its docstring"
    assert not (said := failures(test)), said
    assert not beginning.names["model"].edits, "the example leaves an edit in the model of the others"
    plt.close("all")


def test_every_name_of_the_beginning_is_asked_for():
    """So that all of its lines run."""
    lines = [each.source for name, value in {"": wb, **PUBLIC}.items() for each in example(name, value, {}).examples]
    assert set(Beginning().named) <= asked("".join(lines))


def test_examples_that_fail_are_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert "Expected:\n    3\nGot:\n    2" in failures(wrong)
    assert {"load", "Model.run", "World.from_json", "edit.locoedit", "edit.Moments.of", "plot.heatmap"} <= set(PUBLIC)
    assert "edit.Edit" not in PUBLIC and "Edit.preview" in PUBLIC
