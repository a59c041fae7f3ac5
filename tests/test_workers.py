"""Worker processes: a question that hangs or crashes its process costs itself, and nothing outlives its starter."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lary.types import LaryError
from lary.workers import Hung, NoAnswer, Pool

SETUP = f"{__name__}:moody"


def moody(folder: str = "") -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What answers with twice the number, unless it is told to hang, to crash, or to crash once."""

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        print("noise of a library")
        number = question["number"]
        if number == "hangs":
            time.sleep(600)
        if number == "crashes" or (number == "crashes once" and not (Path(folder) / "crashed").exists()):
            (Path(folder) / "crashed").touch()
            os.abort()
        return {"twice": 2 * number, "process": os.getpid()}

    return answer


def test_every_question_has_its_answer_though_others_hang_or_crash(tmp_path: Path) -> None:
    numbers = [*range(20), "hangs", "crashes", *range(20, 40)]
    with Pool(SETUP, 2, arguments=(str(tmp_path),)) as pool:
        found = dict(pool.map(({"number": number} for number in numbers), 2))
        assert [type(found[at]) for at in (20, 21)] == [Hung, NoAnswer]
        assert ("no answer within 2 s" in str(found[20]), "crashed (signal 6)" in str(found[21])) == (True, True)
        assert [found[at]["twice"] for at in (*range(20), *range(22, 42))] == [2 * number for number in range(40)]
        (tmp_path / "crashed").unlink()
        ((_, once),) = pool.map([{"number": "crashes once"}], 5)
        assert not isinstance(once, NoAnswer), "a process that is killed from outside costs no answer"


def test_a_loop_that_is_left_leaves_no_busy_process() -> None:
    with Pool(SETUP, 1) as pool:
        answers = pool.map([{"number": 1}, {"number": "hangs"}, {"number": 2}], 600)
        next(answers)
        started = time.monotonic()
        answers.close()
        assert time.monotonic() - started < 5
        assert [answer["twice"] for _, answer in pool.map([{"number": 3}], 5)] == [6]


def test_a_worker_that_does_not_start_is_an_error() -> None:
    with Pool("lary.nowhere:setup", 1) as pool, pytest.raises(LaryError, match="does not start"):
        list(pool.map([{"number": 1}], 5))


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = f"from lary.workers import Pool\npool = Pool({SETUP!r}, 1)\nprint(list(pool.map([{{'number': 1}}], 60)))\n"
    code += "import os, time\npool.submit([{'number': 'hangs'}], 600)\ntime.sleep(1)\nos._exit(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    worker = int(done.stdout.split("'process': ")[1].split("}")[0])
    ends = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < ends, "the worker is still there"
        time.sleep(0.1)
