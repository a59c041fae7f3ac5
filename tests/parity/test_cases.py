"""The folder of parity cases: it has cases, and every one of them is run."""

import importlib
from pathlib import Path

from tests.parity.conftest import CLAIMED, FOLDER, models_of_cases


def test_every_case_of_the_folder_is_run_by_some_test() -> None:
    assert models_of_cases(), f"{FOLDER} holds no parity cases: correct LARY_PARITY_DIR"
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.parity.{file.stem}")
    unread = {name: model for name, model in models_of_cases().items() if name not in CLAIMED}
    assert not unread, f"no test is there for these cases and their models: {unread}"
