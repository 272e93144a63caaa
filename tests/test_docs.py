"""What the documents quote of the code is there: messages of errors, schedulers, families; and the API reference builds."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.engine.calls import FLOW_SCHEDULERS, REFUSED, SCHEDULERS
from workbench.families import FAMILIES

ROOT = Path(__file__).parents[1]
OWN = 12  # letters that a message must have besides what is filled in, lest it match anything
COMPATIBILITY = (ROOT / "docs" / "compatibility.md").read_text()
QUOTED = re.findall(r"^```text\n(.*?)^```", (ROOT / "docs" / "errors.md").read_text(), re.DOTALL | re.MULTILINE)


def pattern(text: ast.JoinedStr | ast.Constant) -> str:
    """A text of the code as a regular expression, with what is filled in left open."""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".*" for part in parts)


@pytest.fixture(scope="module")
def messages() -> list[re.Pattern]:
    """Every text of the package that is long enough to be one."""
    found = set()
    for path in (ROOT / "workbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                found.add(pattern(node))
    return [re.compile(each, re.DOTALL) for each in found if len(re.findall(r"[a-zA-Z]", each)) >= OWN]


@pytest.mark.parametrize("quoted", QUOTED, ids=lambda text: text[:40])
def test_a_message_in_the_page_of_errors_is_one_of_the_code(quoted, messages):
    assert any(message.fullmatch(quoted.rstrip("\n")) for message in messages)


def test_compatibility_names_all_schedulers_and_pipelines():
    table = re.findall(r"^\| `(\w+Scheduler)` \| (.*?) \|", COMPATIBILITY, re.MULTILINE)
    known = SCHEDULERS | FLOW_SCHEDULERS
    assert [name for name, _ in table] == list(known)
    for name, calls in table:
        expected = {"one_call": "1", "two_calls": "2,", "pndm": "with Runge-Kutta"}[known[name].__name__]
        assert calls.startswith(expected) and (calls == "1") == (expected == "1")
    assert all(f"`{name}`" in COMPATIBILITY for name in (*REFUSED, *(p for f in FAMILIES for p in f.pipelines)))


def test_the_api_reference_builds_without_warnings(tmp_path):
    build = [sys.executable, ROOT / "docs" / "reference.py", "--out", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True)
    page = (tmp_path / "workbench.html").read_text()
    assert all(f'id="{name}"' in page for name in ("load", "causal_trace", "Model", "Model.run", "World"))
    assert (tmp_path / "workbench" / "edit.html").exists() and (tmp_path / "workbench" / "plot.html").exists()
