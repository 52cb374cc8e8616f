"""The notebook runs from its first cell to its last, in a kernel of its own."""

import copy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorials" / "attention.ipynb"
SECONDS = 120


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}})
    return client.execute()


@pytest.mark.systems
def test_the_notebook_runs(tmp_path: Path) -> None:
    ran = run(nbformat.read(NOTEBOOK, as_version=4), tmp_path)
    pictures = [
        o for c in ran.cells for o in c.get("outputs", ()) if "image/png" in o.get("data", ())
    ]
    assert len(pictures) == 1


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.systems
def test_a_failing_cell_is_seen(tmp_path: Path) -> None:
    notebook = copy.deepcopy(nbformat.read(NOTEBOOK, as_version=4))
    notebook.cells = [nbformat.v4.new_code_cell("assert False")]
    with pytest.raises(CellExecutionError):
        run(notebook, tmp_path)
