"""A sweep that trains its models first, and the tables and figures of its ablation."""

import json
from pathlib import Path

import pytest

import lary
from lary.lam import is_trained, training_name
from lary.lam.configs import TrainLamConfig
from lary.runs import sweep as sweeps
from tests.helpers import contents, printed, rows_of
from tests.tree import make_calvin

SWEEP = """
train:
  options: {{backbone: lapa, dataset: calvin, distance: 3-4, image_size: 16, patch_size: 2, dim: 16, depth: 1, heads: 2,
    dim_head: 8, quant_dim: 8, batch_size: 4, monitor_pairs: 6, steps: 2, device: cpu, workers: 1,
    lr: 1e-3, out: {out}}}
  grid: {{codebook_size: [4, 8], code_length: {lengths}}}
options: {{probe_preset: demo, workers: 1, model_type: ridge, device: cpu}}
grid: {{dataset: [calvin]}}
"""
LAM_ABLATION = Path(lary.__file__).parent / "results" / "reference" / "lam_ablation.csv"
NAMES = ["lapa-cs4_sl4_dim8_lr1e-3", "lapa-cs8_sl4_dim8_lr1e-3"]


@pytest.mark.usefixtures("no_figures")
def test_a_sweep_trains_probes_and_makes_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_calvin(tmp_path, {"train": 8, "val": 6})
    file, lam = tmp_path / "ablation.yaml", tmp_path / "lam"

    def sweep(*words: str, lengths: str = "[4]", code: int = 0, has: tuple[str, ...] = ()) -> str:
        file.write_text(SWEEP.format(out=lam, lengths=lengths))
        return printed("sweep", file, *words, root=tmp_path, code=code, has=has)

    told = sweep("--dry-run", has=("2 trainings, which come first", *NAMES))
    assert ("to do" in told, lam.exists()) == (True, False)
    costs = [line.split() for line in told.splitlines()[-5:]]  # of trainings, runs with models like these, and all
    assert [(row[0], float(row[-3]) > 0) for row in costs[:2] + costs[4:]] == [(name, True) for name in [*NAMES, "sum"]]
    assert float(costs[4][-3]) == pytest.approx(sum(float(row[-3]) for row in costs[:4]), abs=0.3)
    sweep("--dry-run", lengths="[4, 4]", code=2, has=(f"training 2: {lam / NAMES[0]} is that of another",))
    sweep(has=("--distance 3-4 is not used by calvin:train, whose pairs", "2 runs: 2 done now", f"lam-{NAMES[0]}"))
    before = contents(lam)
    records = {name: json.loads((lam / name / "training.json").read_text()) for name in NAMES}
    assert all(each["finished"] and each["sizes"]["codebook_size"] in (4, 8) for each in records.values())
    reason = "its training failed: Model 'lapa': a code of length 16 can't be decoded"
    told = sweep(lengths="[4, 16]", code=1, has=("4 runs: 0 done now, 2 before, 2 failed", reason))
    assert told.count("finished") == 2
    monkeypatch.setattr(sweeps, "train_lam", lambda *_: pytest.fail("it is trained"))
    sweep(has=("2 runs: 0 done now, 2 before",))
    assert {name: data for name, data in contents(lam).items() if "lock" not in name} == before
    monkeypatch.undo()

    out = tmp_path / "out"
    printed("analyze", "ablation", "--out", out, root=tmp_path, has=("no two trainings differ in sequence length",))
    rows = rows_of(out / "ablation_codebook-size.csv")
    ours = "lam-lapa-cs*, sl4, dim8, lr1e-3 (ridge probe)"
    assert [row["source"] for row in rows] == [ours, ours, "paper", "paper", "paper"]
    results = {
        each["model"]["name"]: each for each in map(json.loads, contents(tmp_path / "logs", "result.json").values())
    }
    for row, name in zip(rows, NAMES, strict=False):
        signals, result = records[name]["curves"]["monitor"][-1], results[f"lam-{name}"]
        assert float(row["codebook_size"]) == signals["codes"]
        assert float(row["reconstruction_loss"]) == signals["loss_noise"]
        assert float(row["codebook_utilization_percent"]) == 100 * signals["used_share"]
        score = result["selections"][result["headline"]]["metrics"][result["primary"]]["value"]
        assert float(row["calvin_mse_demo_ridge"]) == score
    paper = [row for row in rows_of(LAM_ABLATION) if row["ablation"] == "codebook size"]
    for row, published in zip(rows[2:], paper, strict=True):
        assert all(float(row[name]) == float(value) for name, value in published.items() if name in row)
    assert f"| {ours} | 4 |" in (out / "ablation_codebook-size.md").read_text()
    assert r"\toprule" in (out / "ablation_codebook-size.tex").read_text()
    lines = rows_of(out / "ablation_calvin_demo_ridge.csv")
    assert [(row["setting"], row["value"]) for row in lines] == [("codebook size", "4"), ("codebook size", "8")]
    assert (out / "ablation_calvin_demo_ridge.png").stat().st_size > 1000

    for number, file in enumerate(tmp_path.rglob("result.json")):  # odd ones cost themselves alone
        result = json.loads(file.read_text())
        result["model"]["training"]["signals" if number else "sizes"] = {"loss_noise": "text"}
        file.write_text(json.dumps(result))
    has = ("there is no finished run of a trained model",)
    printed("analyze", "ablation", "--out", out, root=tmp_path, code=1, has=has)
    for odd in ("[]", "{}"):
        (lam / NAMES[0] / "training.json").write_text(odd)
        assert not is_trained(TrainLamConfig(backbone="lapa", dataset=("calvin",), out=lam / NAMES[0]))


def test_trainings_are_named_as_ablations(tmp_path: Path) -> None:
    def name(*varied: str, **options: object) -> str:
        return training_name(TrainLamConfig(dataset=("calvin",), out=tmp_path, **options), varied)  # type: ignore[arg-type]

    assert name(backbone="dinov3", codebook_size=64, code_length=49, quant_dim=256) == "dinov3-cs64_sl49_dim256_lr1e-4"
    assert name(backbone="dinov3-cs16_sl49_dim8_lr3e-4") == "dinov3-cs16_sl49_dim8_lr3e-4"
    assert name("seed", "lr", backbone="lapa", seed=2, lr=1.5e-3) == "lapa-cs8_sl4_dim32_lr1.5e-3_seed2"
    assert name(backbone="random-vit") == "random-vit-cs8_dim32_lr1e-4"
    assert not is_trained(TrainLamConfig(backbone="lapa", dataset=("calvin",), out=tmp_path))
