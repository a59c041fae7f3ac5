"""Attention of a trained head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lary.probes.attention import attend, attention_weights, load_head
from lary.probes.nets import QueryAttention
from lary.types import LaryError
from tests.probes.made import classifier_inputs, classify


def test_weights_are_those_of_the_pooling() -> None:
    torch.manual_seed(0)
    block = QueryAttention(8, 2)
    queries, tokens = torch.randn(3, 1, 8), torch.randn(3, 5, 8)
    weights = attention_weights(block, queries, tokens)
    values = block.kv(tokens).chunk(2, dim=-1)[1].reshape(3, 5, 2, 4).transpose(1, 2)
    torch.testing.assert_close((weights @ values).transpose(1, 2).flatten(2), block(queries, tokens))


def test_the_reported_head_is_read_back(tmp_path: Path) -> None:
    inputs = classifier_inputs()
    outcome = classify(inputs, folder=tmp_path)
    found = attend(load_head(tmp_path, 4), inputs.validation, [1, 4])
    np.testing.assert_allclose(found.logits, outcome.selections["held_out"].logits[[1, 4]], atol=1e-5)
    assert found.weights.shape == (2, 12)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, atol=1e-5)
    with pytest.raises(LaryError, match=r"holds no head that can be used .*: run the probe again"):
        load_head(tmp_path, 5)
    (tmp_path / "latest.pt").write_bytes(b"PK torn")
    with pytest.raises(LaryError, match="holds no head that can be used"):
        load_head(tmp_path, 4)
    with pytest.raises(LaryError, match="does not exist: run the probe again with --overwrite"):
        load_head(tmp_path / "none", 4)
