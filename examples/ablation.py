"""The ablations of the paper, from training to tables: see ablation.yaml, whose plug-in this is.

As a plug-in it trains what isn't trained: 'lary sweep examples/ablation.yaml' then extracts and probes. Afterwards

    python examples/ablation.py LARY_LOG_DIR

prints the three tables (codebook size, code length, dimension of a code), with the reconstruction loss and the codes in
use of held-out pairs, beside the published ones, and writes ablation.png, the path of each: score by loss.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lary
from lary.models.overview import paper_rows

OPTIONS: dict[str, Any] = {
    "backbone": "dinov3", "dataset": ("robot_1st", "agibotbeta"), "distance": ("10-15",), "lr": 1e-4, "steps": 100_000,
    "cache_features": True,
}  # fmt: skip
"""Data and steps of the paper need a cluster; fewer are changed here."""
BASE = {"codebook_size": 64, "code_length": 49, "quant_dim": 256}
GRID = {"codebook_size": (8, 64, 256), "code_length": (16, 49, 64), "quant_dim": (32, 64, 256, 512, 1024)}
NAMES = {"codebook_size": "codebook size", "code_length": "sequence length", "quant_dim": "latent dimension"}
COLUMNS = ("reconstruction_loss", "codebook_utilization_percent", "human_1st_accuracy", "robot_1st_accuracy",
           "agibotbeta_mse")  # fmt: skip


def train() -> None:
    """Train the models of the grid that aren't finished."""
    for field, values in GRID.items():
        for value in values:
            sizes = {**BASE, field: value}
            out = Path("lam", "_".join(f"{key}{number}" for key, number in sizes.items()))
            record = out / "training.json"
            if not record.is_file() or not json.loads(record.read_text())["finished"]:
                lary.train_lam(**OPTIONS, **sizes, out=out)


def tables(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Rows by ablation: settings, loss, codes in use, and the scores there are."""
    found: dict[tuple[int, ...], dict[str, float]] = {}
    for path in sorted(folder.rglob("result.json")):
        result = json.loads(path.read_text())
        trained = result["model"].get("training")
        if trained:
            options, signals = trained["options"], trained["signals"]
            own = found.setdefault(tuple(options[key] for key in BASE), {key: options[key] for key in BASE})
            own["reconstruction_loss"] = signals["loss_noise"]
            own["codebook_utilization_percent"] = 100 * signals["codes_used"] / signals["codes"]
            classes = result["task"] == "classification"
            score = result["selections"][result["headline"]]["metrics"][result["primary"]]["value"]
            own[f"{result['dataset']['name']}_{'accuracy' if classes else 'mse'}"] = score * (100 if classes else 1)
    lines = {}
    for field in GRID:
        same = [row for row in found.values() if all(row[key] == BASE[key] for key in BASE if key != field)]
        lines[field] = sorted(same, key=lambda row: row[field])
    return lines


def main(folder: Path) -> None:
    """Print the tables, and draw the paths."""
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for axes, (field, rows) in zip(grid, tables(folder).items(), strict=True):
        scores = [name for name in rows[0] if name.endswith(("_accuracy", "_mse"))] if rows else []
        names = list(dict.fromkeys((*COLUMNS, *scores)))
        print(f"{NAMES[field]}\n  {'':18} {' '.join(f'{name[:18]:>18}' for name in names)}")
        paper = [row for row in paper_rows("lam_ablation") if row["ablation"] == NAMES[field]]
        column = {"codebook_size": "codebook_size", "code_length": "sequence_length", "quant_dim": "latent_dim"}[field]
        for who, lines, key in (("ours", rows, field), ("paper", paper, column)):
            for row in lines:
                cells = [f"{float(row[name]):18.4g}" if name in row else f"{'-':>18}" for name in names]
                print(f"  {who:6} {row[key]!s:>11} {' '.join(cells)}")
            shown = next((name for name in reversed(names) if lines and name in lines[0]), "")
            losses = [float(row["reconstruction_loss"]) for row in lines]
            axes.plot(losses, [float(row[shown]) for row in lines], "o-", label=f"{who}: {shown}")
            for loss, row in zip(losses, lines, strict=True):
                axes.annotate(str(row[key]), (loss, float(row[shown])))
        axes.set_title(NAMES[field])
        axes.set_xlabel("reconstruction loss")
        axes.legend(fontsize=7)
    figure.savefig("ablation.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
else:
    train()
