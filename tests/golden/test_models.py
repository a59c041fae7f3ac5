"""Tokens and codes of every model, with tiny weights, of image pairs and clips, under both protocols."""

import shutil
from pathlib import Path

import pytest

from tests.golden.golden import Golden, Place, summaries, write_plugin
from tests.helpers import rows_of
from tests.parity.conftest import OWN, load_case, save_villa
from tests.tiny import KINDS, save_tiny
from tests.tree import make_calvin, make_robot

FROM_CASES = ("lapa", "dinov2", "dinov3", "siglip2", "magvit2", "dinov3-ablation", "univla")
NETWORKS = ("vjepa2", "wan2-2", "flux2")
BASELINES = ("pixels", "frame-difference", "optical-flow", "random-vit")
GOLDEN = Golden("models")
LATENTS = ("quantized", "noisy")
MODELS = (
    *KINDS, *NETWORKS, *FROM_CASES, "villa-x", "hf:dinov2-registers", "hf:siglip2-origin", "siglip2-origin@naflex",
    *BASELINES,
    *(f"lapa@{latent}" for latent in LATENTS), *(f"{name}@random" for name in ("lapa", "dinov2", "magvit2", "univla")),
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs, one clip of nine frames, and the weights of all models."""
    from tests.tiny_networks import save_tiny_network

    root = make_robot(make_calvin(tmp_path_factory.mktemp("golden"), {"val": 1}, pairs=2), {"val": 1})
    weights = root / "weights"
    weights.mkdir()
    write_plugin(weights, FROM_CASES)
    save_villa(load_case("villa-x_small", OWN), weights / "villa-x")
    for name, kind in {**KINDS, "dinov2-registers": "dinov2-registers", "naflex": "siglip2-naflex"}.items():
        save_tiny(weights / name, kind)
    for name in NETWORKS:
        save_tiny_network(weights / name, name)
    return root


def options_of(model: str, weights: Path) -> list[object]:
    """Options by which a model of the list is run."""
    name, _, extra = model.partition("@")
    if name in FROM_CASES:
        words: list[object] = ["--plugin", weights / "tiny_models.py", "--model", f"tiny-{name}"]
        if extra == "random":
            return [*words, "--weights", "random", "--seed", 3]
        return [*words, "--weights", weights / f"{name}.pt", *(["--latent", extra] if extra else [])]
    if name.startswith("hf:"):
        return ["--model", f"hf:{weights / name[3:]}"]
    return ["--model", name, *([] if name in BASELINES else ["--weights", weights / (extra or name)])]


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
@pytest.mark.parametrize("dataset", ["calvin", "robot_1st"])
@pytest.mark.parametrize("model", MODELS)
def test_tokens(model: str, dataset: str, protocol: str, root: Path) -> None:
    latents = root / "latent_actions"
    shutil.rmtree(latents, ignore_errors=True)  # another test's, perhaps with other weights
    for table in (root / "data").glob("val_la_*.csv"):
        table.unlink()
    command = f"extract --dataset {dataset} --split val --protocol {protocol} --workers 1 --device cpu"
    Place(root)(command, *options_of(model, root / "weights"))
    (table,) = (root / "data").glob("val_la_*.csv")
    found = [summaries(latents / row["la_path"]) for row in rows_of(table)]
    # Processors round differently, by which bits of the tokenizer's codes may flip.
    rel = 0.15 if model.startswith("magvit2") else 5e-4
    content = {"table": table.name if "hf:" not in model else "", "rows": found}
    GOLDEN.check(f"{model}, {dataset}, {protocol}", content, rel)
