"""What the commands about studies say beyond what they do."""

from types import SimpleNamespace

import pytest

from medmtl import cli, results


@pytest.mark.parametrize(
    ("result", "aggregated", "told"),
    [({}, True, True), ({"units": {}}, True, False), ({}, False, False)],
    ids=["attention", "another rule", "no aggregation"],
)
def test_an_ensemble_says_that_it_has_no_numbers_per_patient(tmp_path, monkeypatch, capsys, result, aggregated, told):
    """Attention is learned by each run; its runs have numbers per patient, the ensemble has none."""
    (tmp_path / "a" / "evaluation").mkdir(parents=True)
    if aggregated:
        (tmp_path / "a" / "evaluation" / "aggregated.csv").touch()
    found = SimpleNamespace(result=result, report=tmp_path / "report.html")
    monkeypatch.setattr(results, "evaluate_ensemble", lambda runs, out, say: found)
    assert cli.run(["ensemble", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 0
    assert ("no numbers per patient: attention" in capsys.readouterr().out) == told


@pytest.mark.parametrize(("command", "word"), [("predict", "--max-ram"), ("train", "loader.batch_size")])
def test_a_job_without_memory_says_what_of_its_own_to_lower(command, word, monkeypatch, capsys):
    def application(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("medmtl.cli.app.app", application)
    assert cli.run([command]) == 5
    assert word in capsys.readouterr().err
