"""Ablations of finished runs: data sets of one series, settings that differ alone, numbers of the paper beside them."""

from pathlib import Path

import pytest

from lary.types import LaryError
from tests.fake_results import add_classification, add_regression, analysed


def test_stride_takes_data_sets_of_one_series_beside_the_paper(tmp_path: Path) -> None:
    for dataset, error in (("vlabench", 0.1), ("vlabench_15", 0.2), ("vlabench_30", 0.4)):
        add_regression(tmp_path, "dinov3", dataset, error)
    add_regression(tmp_path, "lapa", "vlabench", 0.5)
    table, _ = analysed(tmp_path, "stride", "stride_VLABench")
    assert [(row["model"], float(row["value"]), float(row["published"])) for row in table] == [
        ("dinov3", 5, 0.25), ("dinov3", 15, 0.20), ("dinov3", 30, 0.26)
    ]  # fmt: skip
    assert float(table[0]["low"]) < float(table[0]["score"]) < float(table[0]["high"])
    models = ("lapa", "dinov2", "siglip2", "flux2", "vjepa2")
    for model in models:
        for dataset in ("vlabench", "vlabench_30"):
            add_regression(tmp_path, model, dataset, 0.3)
    analysed(tmp_path, "stride", "stride_VLABench")
    picture = (tmp_path / "logs" / "analysis" / "stride_VLABench.svg").read_text()
    assert all(f">{model}<" in picture for model in models), "every model has a panel"


def test_codebook_holds_all_settings_but_one(tmp_path: Path) -> None:
    for codebook, length, width in ((8, 49, 256), (64, 49, 256), (64, 16, 256), (32, 4, 16)):
        add_classification(tmp_path, f"dinov3-cs{codebook}_sl{length}_dim{width}_lr1e-4", "robot_1st", 2.0)
    add_classification(tmp_path, "dinov3", "robot_1st", 2.0)
    table, _ = analysed(tmp_path, "codebook", "codebook_robot_1st")
    assert [(row["setting"], float(row["value"]), round(float(row["published"]), 4)) for row in table] == [
        ("codebook size", 8, 0.6489), ("codebook size", 64, 0.6404),
        ("sequence length", 16, 0.6333), ("sequence length", 49, 0.6404),
    ]  # fmt: skip


def test_runs_without_an_ablation_are_refused(tmp_path: Path) -> None:
    add_regression(tmp_path, "dinov3", "vlabench", 0.1)
    for kind, message in (("stride", "model has finished runs at two strides"), ("codebook", "of an ablated model")):
        with pytest.raises(LaryError, match=message):
            analysed(tmp_path, kind)
    add_regression(tmp_path, "dinov3-cs8_sl49_dim256_lr1e-4", "vlabench", 0.1)
    with pytest.raises(LaryError, match="no two runs on vlabench differ in one setting alone"):
        analysed(tmp_path, "codebook")
