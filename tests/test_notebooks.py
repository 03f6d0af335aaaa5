"""The notebooks: how they are committed, what papermill reads of them, and that they run wherever they are opened."""

import ast
import re
import shutil
import subprocess
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from papermill import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from oodlib.study.studies import NOTEBOOKS, REPORT

CHECKOUT = Path(__file__).parents[1]
PATHS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
RUN = "digits-airbench_16_32_64-ce-s0"

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def parameters_cell(path: Path):
    (cell,) = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    return cell


@every_notebook
def test_notebook_is_committed_cleared_and_short_and_defines_nothing_but_what_solves_an_exercise(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.keys() <= {"kernelspec", "language_info"}
    assert notebook.metadata.language_info.keys() <= {"name"}  # no version of the machine that wrote it
    assert all(cell.metadata.keys() <= {"tags"} for cell in notebook.cells)
    assert len(notebook.cells) <= 30
    for cell in code_cells(path):
        assert (cell.outputs, cell.execution_count) == ([], None)
        if cell != parameters_cell(path):
            assert len(cell.source.splitlines()) <= 12, cell.source
        if "solution" not in cell.metadata.get("tags", []):
            assert not re.search(r"^\s*(async def|def|class) |\blambda\b", cell.source, re.M), cell.source
        assert "ipywidgets" not in cell.source
        assert str(CHECKOUT) not in cell.source


@pytest.mark.parametrize("name", NOTEBOOKS.values())
def test_no_cell_gives_another_value_to_a_parameter(name):
    """The step that writes comes last: a toy must not change what it is called with."""
    path = CHECKOUT / "notebooks" / f"{name}.ipynb"
    names = inspect_notebook(str(path)).keys()
    for cell in code_cells(path):
        if cell != parameters_cell(path):
            code = re.sub(r"^(\s*)%.*", r"\1pass", cell.source, flags=re.M)  # IPython's own lines
            found = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
            assert not {node.id for node in found if type(node.ctx) is ast.Store} & names, cell.source


def test_set_up_cell_is_the_same_everywhere_and_names_the_repository_of_the_badges():
    (cell,) = {code_cells(path)[0].source for path in PATHS}
    assert len(re.findall(r"git\+https://", cell)) == 1
    assert re.search(r'^SOURCE = os\.environ\.get\("OODLIB_SOURCE", "git\+https://github\.com/[\w/-]+"\)$', cell, re.M)
    assert "-e " not in cell
    text = "".join(cell.source for path in PATHS for cell in nbformat.read(path, as_version=4).cells)
    assert len(set(re.findall(r"github(?:\.com)?/([\w-]+/[\w-]+)", text))) == 1


@every_notebook
def test_papermill_reads_every_parameter_with_its_type_and_comment(path):
    assert code_cells(path)[1] == parameters_cell(path)  # right after the set-up
    lines = [line for line in parameters_cell(path).source.splitlines() if line and not line.startswith("# ")]
    form = r"(\w+): (int|float|str|bool|list\[int\]|list\[str\]) = (.+?)  # (.+)"
    written = [re.fullmatch(form, line) for line in lines]
    assert all(written), lines
    found = inspect_notebook(str(path))
    assert list(found) == [match[1] for match in written]
    for match in written:
        about = found[match[1]]
        assert (about["inferred_type_name"], about["default"], about["help"]) == match.groups()[1:]
    of_a_study = {"study"} if path.stem in {*NOTEBOOKS.values(), REPORT} else set()
    assert {"data_root"} | of_a_study <= found.keys()


def test_parameters_of_the_same_name_have_the_same_default():
    defaults = {}
    for path in PATHS:
        for name, about in inspect_notebook(str(path)).items():
            assert defaults.setdefault(name, about["default"]) == about["default"], (path.stem, name)


def execute(path: Path, where: Path, parameters: dict, kernel: str = "python3", **options) -> str:
    """Execute a notebook as JupyterLab does, its kernel started in the folder `where`; return all that it printed."""
    notebook = parameterize_notebook(load_notebook_node(str(path)), parameters)
    client = NotebookClient(notebook, kernel_name=kernel, resources={"metadata": {"path": str(where)}}, **options)
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_notebooks_run_from_their_own_folder_and_find_the_projects_outputs(studied_copy):
    studied_copy.bare_notebooks()
    notebooks = studied_copy.root / "notebooks"
    of_run = {"study": "small", "run": RUN}
    parameters = {
        "01_train": {"study": "small", "epochs": 1, "batch_size": 128},
        "02_embed": of_run | {"max_images": 150, "sanity_ood": "noise:8"},  # as papermill's -p gives them
        "03_clusters": of_run,
        "04_evaluate": of_run,
    }
    before = studied_copy.files()
    with ThreadPoolExecutor(2) as pool:
        started = {n: pool.submit(execute, notebooks / f"{n}.ipynb", notebooks, parameters[n]) for n in parameters}
    printed = {name: future.result() for name, future in started.items()}
    assert f"{RUN} is trained already" in printed["01_train"]
    assert "accuracy on the ID test images: {'classifier':" in printed["04_evaluate"]
    after = studied_copy.files()
    assert {name: sha for name, (_, sha) in after.items()} == {name: sha for name, (_, sha) in before.items()}
    assert not (notebooks / "outputs").exists()


@pytest.fixture
def kernel_without_oodlib(tmp_path, monkeypatch):
    """The name of a kernel in a fresh environment that has every dependency of oodlib, but not oodlib.

    The dependencies are those of the environment of the tests: a .pth file adds its folder, and .pth files in a folder
    that was added so are not read, which leaves an editable oodlib out.
    """
    monkeypatch.delenv("PYTHONPATH", raising=False)
    pytest.importorskip("ensurepip", reason="the fresh environment needs pip")
    pytest.importorskip("setuptools", minversion="77", reason="builds oodlib without a network")
    python = tmp_path / "venv" / "bin" / "python"
    venv.create(tmp_path / "venv", with_pip=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"], check=True)  # too old a one
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    places = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("\n".join(places) + "\n")
    absent = subprocess.run([python, "-c", "import papermill, oodlib"], cwd=tmp_path, capture_output=True, text=True)
    assert "No module named 'oodlib'" in absent.stderr
    install = ["-m", "ipykernel", "install", "--prefix", str(tmp_path), "--name", "without-oodlib"]
    subprocess.run([python, *install], check=True, capture_output=True)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    return "without-oodlib"


def test_where_oodlib_is_not_installed_the_first_cell_installs_it(tmp_path, kernel_without_oodlib, monkeypatch):
    source = tmp_path / "source"  # a copy, because building leaves files in its folder
    shutil.copytree(CHECKOUT / "oodlib", source / "oodlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(CHECKOUT / name, source / name)
    monkeypatch.setenv("OODLIB_SOURCE", str(source))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # which is how pip spells that isolation is off
    alone = tmp_path / "alone"  # on Colab there is the notebook and nothing else
    alone.mkdir()
    shutil.copy(CHECKOUT / "notebooks" / "01_train.ipynb", alone)
    printed = execute(alone / "01_train.ipynb", alone, {"epochs": 1, "batch_size": 256}, kernel_without_oodlib)
    folder = alone / "outputs" / "digits" / "runs" / RUN
    assert {path.name for path in folder.iterdir()} == {"config.json", "history.csv", "encoder.safetensors"}
    assert "history.csv" in printed
    assert len((folder / "history.csv").read_text().splitlines()) == 2
    assert list((tmp_path / "venv").glob("lib/python*/site-packages/oodlib/study/steps.py"))


def test_an_executed_notebook_tells_no_path_of_the_machine_it_ran_on(studied):
    executed = studied.root / "outputs" / "small" / "report" / "05_report.ipynb"
    about = nbformat.read(executed, as_version=4).metadata.papermill
    assert about.input_path == "notebooks/05_report.ipynb"
    assert about.output_path == "outputs/small/report/05_report.ipynb"
    for path in (executed, *(CHECKOUT / "outputs" / "reported").glob("*/*/*.ipynb")):
        assert not re.search(r'"[^"\s]*(?<![\w.:/])/(?:home|root|tmp|work)/', path.read_text()), path
