"""The notebook beside the analyses runs from its first cell to its last, on a small model and store."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parent.parent / "analysis" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs(model_folder: Path, make_corpora: Any, run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    corpora = make_corpora({"c": 12, "python": 12})
    (tmp_path / "model").symlink_to(model_folder)
    code, _, err = run("profile", model_folder, tmp_path / "store", "--corpora", corpora, "--row-tokens", 64)
    assert code == 0, err
    monkeypatch.setenv("NEUROTALLY_DEMO", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(TOUR, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without its outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert all(outputs), "a cell shows nothing"
    assert not [output for shown in outputs for output in shown if output.output_type == "error"]
    assert "text/html" in outputs[1][0]["data"]
    assert "image/png" in outputs[3][0]["data"]
    assert "without:" in outputs[-1][0]["text"]
