"""CSV files: the fast reader gives what the strict one gives, and refuses what that refuses."""

from pathlib import Path

import pytest

from lary.data.tables import read_csv, read_frame
from lary.types import UsageError

GOOD = (
    "a,b,c\n1,2,3\n",
    "a,b,c\r\n1,,3\r\n\r\n4,5,6",
    "\ufeffa, b ,c\n1,2,NA\nnull,NaN,nan\n",
    'a,b,c\n"1,2","say ""x""","two\nlines"\n',
    "a,b,c\n 1, 2,3 \n01,1e5,True\n",
    "a,b,c\n1,2,\n3,4,5\n",
    "a\nx\n\ny\n",
    "a,b,c\nä,漢,🤖\n",
)
BAD = (
    "a,b,c\n1,2,3\n4,5\n",
    "a,b,c\n4,5\n",
    "a,b,c\n1,2,3,4\n",
    "a,b,c\n1,2,3,\n1,2,3\n",
    "a,b,c\n1,2,3\n1,2,3,4\n",
    "a,b,c\n",
    "",
)


@pytest.mark.parametrize("text", GOOD)
def test_fast_reader_gives_the_same_cells(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    for limit in (None, 1):
        header, rows = read_csv(path, limit)
        frame = read_frame(path, limit)
        assert list(frame.columns) == header
        assert frame.to_numpy().tolist() == rows
        assert all(type(cell) is str for cell in frame.to_numpy().ravel())


@pytest.mark.parametrize("text", BAD)
def test_both_readers_refuse_the_same(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    messages = []
    for read in (read_csv, read_frame):
        with pytest.raises(UsageError, match=r"table\.csv") as caught:
            read(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
