"""Parameters as papermill's -p gives them, for every name and list of every notebook; no notebook is executed."""

import ast
import json
from pathlib import Path

import pytest
from papermill.cli import _resolve_type

from oodlib.study import take_parameters
from oodlib.study.parameters import ELEMENTS, as_declared, check_type, declarations

PATHS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SPOILT = {"int": "ten", "float": "ten", "bool": "maybe", "str": "True", "list[int]": "ten", "list[str]": "None"}


def cells_of(path: Path) -> list[str]:
    """Return the sources of a notebook's parameters cell and of the code cells after it."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in cells[1:]]


def run_with(source: str, **given) -> dict:
    """Return the names of a notebook whose parameters cell ran, then papermill's cell with what was given."""
    namespace = {"In": ["", "%pip is no Python", source, "for unrelated in ():\n    pass"]}
    exec(source, namespace)
    namespace |= given
    take_parameters(namespace)
    return namespace


PARAMETERS = [
    pytest.param(source, line.target.id, ast.unparse(line.annotation), id=f"{path.stem}-{line.target.id}")
    for path in PATHS
    for source in cells_of(path)[:1]
    for line in declarations(source)
]
every_parameter = pytest.mark.parametrize(("source", "name", "kind"), PARAMETERS)


@every_parameter
def test_defaults_stay_as_they_are(source, name, kind):
    namespace = {}
    exec(source, namespace)
    assert run_with(source)[name] == namespace[name]
    check_type(name, namespace[name], kind)


@every_parameter
def test_what_papermill_gives_comes_out_as_declared(source, name, kind):
    texts = {"2024": 2024, "20": 20, "cosine": "cosine", "0.5": 0.5, "1e3": 1000.0, "": "", "folder:a/b": "folder:a/b"}
    for text, given in texts.items():
        assert _resolve_type(text) == given
        number = not isinstance(given, str)
        expected = {
            "str": str(given),
            "list[str]": [str(given)] if text else [],
            "int": given if type(given) is int else None,
            "float": given if number else None,
            "list[int]": [given] if type(given) is int else None if text else [],
            "bool": None,
        }[kind]
        if expected is None:
            with pytest.raises(ValueError, match=f"^{name} must be of type "):
                run_with(source, **{name: given})
        else:
            found = run_with(source, **{name: given})[name]
            assert (found, type(found)) == (expected, type(expected))


@every_parameter
def test_what_makes_no_sense_is_said_in_one_sentence_with_the_name(source, name, kind):
    for given in (_resolve_type(SPOILT[kind]), None, {"a": 1}):
        with pytest.raises(ValueError, match=f"^{name} must be of type ") as refused:
            run_with(source, **{name: given})
        assert repr(given) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_values_by_hand():
    assert as_declared("study", 2024, "str") == "2024"
    assert as_declared("distances", "cosine", "list[str]") == ["cosine"]
    assert as_declared("near_ood", [2024, "letters"], "list[str]") == ["2024", "letters"]
    assert as_declared("n_clusters", 20, "list[int]") == [20]
    assert as_declared("n_clusters", [0, 20], "list[int]") == [0, 20]
    assert as_declared("learning_rate", 1, "float") == 1
    for name, value, kind, said in (
        ("n_clusters", [7, 8.5], "list[int]", r"n_clusters must be of type list\[int\], got 8.5 in it"),
        ("pca", True, "list[int]", r"pca must be of type list\[int\], got True in it"),
        ("run", ["a"], "str", r"run must be of type str, got \['a'\] \(list\)"),
        ("epochs", 10.0, "int", r"epochs must be of type int, got 10.0 \(float\)"),
        ("half", 1, "bool", r"half must be of type bool, got 1 \(int\)"),
    ):
        with pytest.raises(ValueError, match=f"^{said}$"):
            as_declared(name, value, kind)


def test_what_somebody_types_into_the_cell_counts_too():
    found = run_with('near_ood: list[str] = "letters"  # sets\nn_clusters: list[int] = 20\nstudy: str = 2024')
    assert (found["near_ood"], found["n_clusters"], found["study"]) == (["letters"], [20], "2024")
    source = "import os\nepochs: int = 2 * 10\nfolder: object = 3"  # object is no type of a parameter
    found = run_with(source, folder=4)
    assert (found["epochs"], found["folder"]) == (20, 4)


def test_outside_ipython_nothing_is_taken():
    namespace = {"study": 2024}
    take_parameters(namespace)
    assert namespace == {"study": 2024}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_notebook_takes_its_parameters_before_it_uses_one(path):
    source, first, *_ = cells_of(path)
    lines = ast.parse(first).body
    calls = [place for place, line in enumerate(lines) if "take_parameters(globals())" in ast.unparse(line)]
    assert len(calls) == 1
    names = {line.target.id for line in declarations(source)}
    before = {node.id for line in lines[: calls[0]] for node in ast.walk(line) if isinstance(node, ast.Name)}
    assert not names & before
    assert {ast.unparse(line.annotation) for line in declarations(source)} <= ELEMENTS.keys()
