"""What tests of models share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from lary.models.spec import MODELS


@pytest.fixture
def forget_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it: other tests run over every record."""
    MODELS.names()
    monkeypatch.setattr(MODELS, "_records", dict(MODELS._records))
    yield
    for name in [name for name in sys.modules if name.startswith("lary_plugin_")]:
        del sys.modules[name]
