"""What a test of the importers registers is forgotten after it."""

from __future__ import annotations

import pytest

from lary.data.spec import DATASETS


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    DATASETS.names()
    monkeypatch.setattr(DATASETS, "_records", dict(DATASETS._records))
