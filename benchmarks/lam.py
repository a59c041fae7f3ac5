"""Tiny latent action models on simulated arms: what training does, and whether their latents beat random weights.

    python benchmarks/lam.py OUT features efficientnet pixels [--seeds 0,1,2] [--recipes corrected]

Everything that decides the comparison stands here: the data (seed 2 of the simulator), the probe (ridge on the relative
motion of the arm), the five seeds, and the options, which were chosen on the episodes of seed 1. It prints, per kind of
target: the monitor's signals at the end of every training, the scores of trained and random weights on the validation
split and on the unseen robot, and p values over the seeds (Welch's t test, and the exact permutation test).
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import lary

DATA = {"seed": 2, "pairs": 1200, "clips": 20, "size": 64}
SEEDS = (0, 1, 2, 3, 4)
PROBE: dict[str, Any] = {
    "dataset": "simarm", "model_type": "ridge", "action_mode": "relative", "probe_preset": "demo", "seed": 0,
    "store": "shards", "device": "cpu", "workers": 1,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "depth": 1, "heads": 2, "dim_head": 16, "code_length": 4, "quant_dim": 16, "codebook_size": 8, "batch_size": 16,
    "lr": 2e-3, "entropy": 0.01, "averaging": False, "monitor_pairs": 256, "validate_every": 100, "device": "cpu",
    "workers": 1,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "features": {"backbone": "hf:{out}/vit", "cache_features": True, "steps": 700},
    "efficientnet": {"backbone": "efficientnet-lite0", "cache_features": True, "steps": 700},
    "pixels": {"backbone": "lapa", "image_size": 16, "patch_size": 2, "dim": 32, "steps": 400, "entropy": 0.0},
}
"""Features of a transformer with random weights (8 x 8 cells of 32 channels), of EfficientNet (112), or pixels."""
PAPER = {"recipe": "paper", "averaging": True, "lr": 1e-3, "entropy": 0.0}
COLUMNS = (
    "perplexity", "codes_used", "closest_codes", "quantisation_error", "latent_spread", "latent_rank", "gap_hard",
    "gap_continuous", "static_ratio", "margin", "loss_noise", "loss_hard", "loss_continuous", "loss_copy",
    "static_pairs", "codebook_gradient",
)  # fmt: skip


def make_backbone(folder: Path) -> None:
    """A small transformer with random weights, whose features end in a layer norm."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8, mlp_ratio=2
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    side = {"height": 64, "width": 64}
    processor = {
        "image_processor_type": "BitImageProcessor", "size": side, "crop_size": side, "do_resize": True,
        "do_center_crop": False, "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3, "resample": 2,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def permutation(trained: np.ndarray, drawn: np.ndarray) -> float:
    """The exact two-sided p value of a difference of means."""
    both, count = np.concatenate([trained, drawn]), len(trained)
    own = abs(trained.mean() - drawn.mean())
    splits = [list(chosen) for chosen in itertools.combinations(range(len(both)), count)]
    found = [abs(both[chosen].mean() - np.delete(both, chosen).mean()) for chosen in splits]
    return float(np.mean(np.array(found) >= own - 1e-12))


def scores(**options: Any) -> tuple[float, float]:
    """Normalised errors on the validation split and on the unseen robot."""
    result = lary.run(**PROBE, **options).probe.result
    chosen = result.selections[result.headline].metrics
    return result.score.value, chosen["unseen_mse"].value


def compare(kind: str, recipes: list[str], seeds: list[int], out: Path, config: Path) -> None:
    """Train some seeds of a kind by some recipes, and print the tables."""
    from scipy.stats import ttest_ind

    own = {key: value.format(out=out) if isinstance(value, str) else value for key, value in KINDS[kind].items()}
    found: dict[str, list[tuple[float, float]]] = {"corrected": [], "random": [], "paper": []}
    print("kind recipe seed", *COLUMNS)
    for recipe, seed in itertools.product(recipes, seeds):
        folder, changes = out / f"{kind}_{recipe}_{seed}", PAPER if recipe == "paper" else {}
        options = {**SIZES, **own, **changes, "dataset": ("simarm",), "seed": seed, "out": folder, "config": config}
        record = lary.train_lam(**options)
        for row in record["curves"]["monitor"]:
            print(kind, recipe, seed, row["step"], *(f"{row.get(name, float('nan')):.4g}" for name in COLUMNS))
        print(kind, recipe, seed, record["verdict"]["text"], flush=True)
        found[recipe].append(scores(model=f"lam:{folder}", name=f"{kind}-{recipe}-{seed}", config=config))
        if recipe == "corrected":
            where = {"model": f"lam:{folder}", "name": f"{kind}-random-{seed}", "config": config}
            found["random"].append(scores(**where, weights="random", model_seed=seed))
    for at, split in enumerate(("validation", "unseen robot")):
        values = {name: np.array([each[at] for each in rows]) for name, rows in found.items() if rows}
        for name, each in values.items():
            print(kind, split, name, f"{each.mean():.4f}", each.round(4).tolist())
        trained, drawn = values["corrected"], values["random"]
        p = float(ttest_ind(trained, drawn, equal_var=False).pvalue)
        print(kind, split, f"difference {trained.mean() - drawn.mean():.4f}", f"Welch p {p:.2g}",
              f"permutation p {permutation(trained, drawn):.2g}", flush=True)  # fmt: skip


def main() -> None:
    """Make what isn't there, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=list(SEEDS))
    parser.add_argument("--recipes", type=lambda text: text.split(","), default=["corrected", "paper"])
    given = parser.parse_args()
    data = given.out / "sim"
    words = [f"--{name}={value}" for name, value in DATA.items()]
    subprocess.run([sys.executable, "-m", "lary.cli", "simulate", str(data), *words], check=True)
    config = data / "lary.yaml"
    tables = [f"--csv={data}/data/simarm_metadata_{split}.csv" for split in ("train", "val", "unseen")]
    relative = ["data", "relative", "--dataset", "simarm", *tables, "--config", str(config)]
    subprocess.run([sys.executable, "-m", "lary.cli", *relative], check=True)
    if not (given.out / "vit").exists():
        make_backbone(given.out / "vit")
    for kind in given.kinds:
        compare(kind, given.recipes, given.seeds, given.out, config)
    print("frame-difference", *scores(model="frame-difference", config=config))


if __name__ == "__main__":
    main()
