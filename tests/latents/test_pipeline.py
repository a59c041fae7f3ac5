"""The stages of an extraction: the same bits on a device as on the CPU, whatever shares a batch."""

import itertools
from typing import Any

import numpy as np
import torch

from lary.latents.pipeline import Encoding
from lary.latents.reading import Batch
from lary.latents.store import narrow
from lary.models.preprocess import DeviceNormaliser, normalise
from lary.models.spec import MODELS, Preprocess
from lary.types import Latents, Sample


def test_normalising_on_a_device_gives_the_same_bits() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 9, 7), dtype=np.uint8)
    others = Preprocess(), Preprocess(scale=1, mean=(0.5, 0, 0.1)), Preprocess(std=(2, 1, 3))
    for record in (MODELS.get("univla").preprocess, *others):
        wanted = normalise(planes, record)
        found = DeviceNormaliser(record, "cpu")(torch.from_numpy(planes)).numpy()
        assert (found.dtype, wanted.tobytes()) == (wanted.dtype, found.tobytes())


def test_batches_on_an_accelerator_give_what_single_rows_give() -> None:
    """Rows of different lengths and native sizes, some unreadable, two batches under way at once."""

    class Sums:
        def encode(self, clips: torch.Tensor) -> Latents:
            clips = clips.float()
            return Latents(clips.sum((3, 4)).unsqueeze(2) / 7, clips.sum((2, 3, 4)).long().unsqueeze(2))

    rng = np.random.default_rng(1)

    def batch(first: int) -> Batch:
        rows, sizes = [first, first + 1, first + 3], [(4, 8, 8), (2, 8, 8), (4, 8, 8)]
        if first == 8:
            sizes = [(4, 6, 8), (4, 8, 8), (3, 6, 8)]
        samples = [Sample(str(row), row, ("a",), (), "", "", "") for row in rows]
        clips = rng.integers(0, 256, (4, 4, 3, 8, 8), dtype=np.uint8)
        there = dict(zip(rows, sizes, strict=True))
        if first == 4:
            del there[first + 3]
        return Batch(0, rows, [0, 1, 3], samples, [["a"]] * 3, clips, shapes=there)

    batches = [batch(0), batch(4), batch(8)]
    results: list[Any] = []
    for singly, dtype in itertools.product((True, False), ("float32", "uint8")):
        record: Any = Preprocess(size=8, mean=(0.5, 0.5, 0.5), dtype=dtype)  # type: ignore[arg-type]
        encoding = Encoding(Sums(), record, "cpu", "none", singly=singly)  # type: ignore[arg-type]
        found = {}
        for current, rows in encoding.stream(iter(batches)):
            for index, tokens, codes in rows:
                assert codes is not None
                found[current.rows[index]] = (tokens.tobytes(), tokens.shape, codes.tobytes())
        results.append(found)
    assert results[:2] == results[2:]
    for kind in ("float16", "bfloat16"):  # rounded on the device, and not by the host
        encoding = Encoding(Sums(), record, "cpu", "none", singly=False, dtype=kind)  # type: ignore[arg-type]
        rounded = {batch.rows[i]: own for batch, rows in encoding.stream(iter(batches)) for i, own, _ in rows}
        for row, (data, shape, _) in results[-1].items():
            host = narrow(np.frombuffer(bytearray(data), np.float32).reshape(shape), kind)
            device = narrow(rounded[row], kind)
            assert (host.dtype, device.tobytes()) == (device.dtype, host.tobytes())
    assert sorted(results[0]) == [0, 1, 3, 4, 5, 8, 9, 11]
