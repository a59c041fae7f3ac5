"""UniVLA and villa-X on the networks of the parity cases: steps of clips, gaps in latents, folders that don't fit."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lary.models.preprocess import prepare
from lary.models.spec import MODELS
from lary.types import LaryError, UsageError
from tests.helpers import fails
from tests.parity.conftest import OWN, load_case, load_univla, open_villa, save_villa

UNIVLA, VILLA = load_case("univla_small", OWN), load_case("villa-x_small", OWN)
CLIPS = torch.randn(2, 2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def test_univla_refuses_what_it_cannot_encode(tmp_path: Path) -> None:
    encoder = load_univla(UNIVLA, tmp_path)
    for wrong, named in ((CLIPS[..., :30, :30], "multiples of 14"), (CLIPS[:, :1], "at least 2 frames")):
        fails(LaryError, named, encoder.encode, wrong)


def test_latents_that_are_not_finite_show(tmp_path: Path) -> None:
    univla = load_univla(UNIVLA, tmp_path, **{"to_codebook.bias": torch.full((16,), torch.inf)})
    villa = open_villa(save_villa(VILLA, tmp_path, {"encoder.norm.g": torch.full((48,), torch.nan)}))
    for encoder in (univla, villa):
        assert not encoder.encode(CLIPS).tokens.isfinite().any()


def test_villa_takes_frames_of_another_size_as_the_published_code_does_and_refuses_one_frame(tmp_path: Path) -> None:
    encoder = open_villa(save_villa(VILLA, tmp_path))
    frames = np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8)
    as_it_is = replace(MODELS.get("villa-x").preprocess, resize="none", size=80)
    whole = torch.from_numpy(prepare(frames, as_it_is))[None]
    fitted = torch.from_numpy(prepare(frames, replace(as_it_is, resize="torch_bilinear", size=56)))[None]
    torch.testing.assert_close(encoder.author.fitted(whole), fitted, rtol=0, atol=1e-5)
    assert torch.equal(encoder.encode(whole).tokens, encoder.encode(fitted).tokens)
    fails(LaryError, "at least 2 frames", encoder.encode, whole[:, :1])


def test_villa_is_found_by_folder_by_file_and_in_a_copy_of_the_repository(tmp_path: Path) -> None:
    folder = save_villa(VILLA, tmp_path / "repository" / "lam")
    found = {open_villa(place).identity for place in (folder, folder.parent, folder / "model.safetensors")}
    assert len(found) == 1
    torch.save(VILLA.weights(), folder / "model.bin")
    (folder / "model.safetensors").unlink()
    assert open_villa(folder).identity not in found
    for name, named in (("model.bin", r"no .*model\.safetensors"), ("model_config.json", r"no model_config\.json")):
        (folder / name).unlink()
        fails(UsageError, f"holds {named}", open_villa, folder)


@pytest.mark.parametrize(("changes", "named"), [
    ({"encoder_embed_dim": "24", "n_codes": 0}, "encoder_embed_dim '24', n_codes 0"),
    ({"st_use_qk_norm": 1}, "st_use_qk_norm 1"), ({"encoder_depth": True}, "encoder_depth True"),
    ({"resolution": 30}, "resolution 30 is no multiple of patch_size 14"),
    ({"encoder_n_heads": 5}, "encoder_embed_dim 48 is no multiple of encoder_n_heads 5"),
    ({"map_heads": 5}, "encoder_embed_dim 48 is no multiple of map_heads 5"),
    ({"decoder_n_heads": 5}, "is no multiple of decoder_n_heads 5"),
    ({"encoder_depth": 3}, r"missing: encoder\.layers\.2"), ({"encoder_depth": 1}, r"unexpected: encoder\.layers\.1"),
    ({"n_codes": 8}, r"misshaped: vq\.embedding\.weight \[16, 8\] for \[8, 8\]"),
])  # fmt: skip
def test_villa_refuses_a_configuration_that_does_not_fit(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    fails(LaryError, named, open_villa, save_villa(VILLA, tmp_path, **changes))


def test_villa_refuses_another_architecture_and_names_unknown_fields(tmp_path: Path, caplog: Any) -> None:
    plain = open_villa(save_villa(VILLA, tmp_path)).identity
    with caplog.at_level(logging.WARNING):
        assert open_villa(save_villa(VILLA, tmp_path, proprio_dim=7, grid_size=2, embed_tokens=4)).identity != plain
    assert "ignores: proprio_dim\n" in caplog.text
    (tmp_path / "model_config.json").write_text(json.dumps({"architecture": "ActorModel", "config": VILLA.config}))
    fails(LaryError, "not the configuration of a villa-X latent action model", open_villa, tmp_path)
