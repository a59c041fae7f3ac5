"""``lary extract --overwrite`` of other pictures while a probe reads: the result of the old latents, or a refusal.

    python -m benchmarks.faults.overwritten [TRIES] [SEED]

The probe reads from files, which on a small data set it would not do. Exit code 1 if a result is another one.
"""

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageOps

from benchmarks.faults import scene

MAIN = "import sys, lary.probes.sources as s; s.MEMORY_SHARE = 0; from lary.cli import main; sys.exit(main())"
PROBE = "regress --model pixels --dataset calvin --probe-preset demo --epochs 40"


def attempt(home: Path, store: str, share: float) -> tuple[bool, dict[str, bytes]]:
    """Whether a probe has finished, and its files; after a share of about its time the latents are replaced."""
    shutil.rmtree(home, ignore_errors=True)
    data, log = home / "media", home / "log"
    scene.make_pairs(data, {"train": 64, "val": 16}, damaged=False)
    root = scene.make_root(data, home / "root")

    def extract(split: str, *options: str) -> None:
        words = f"extract --model pixels --dataset calvin --workers 1 --store {store} --split {split}".split()
        scene.finish(scene.command(data, root, *words, *options), log)

    extract("train")
    extract("val")
    words, begun = scene.command(data, root, *PROBE.split()), time.monotonic()
    probe = scene.start([*words[:3], "-c", MAIN, *words[5:]], log)
    if share < 1:
        time.sleep(share * SECONDS[store])
        for file in (data / "regression/calvin/train_stride5").rglob("*.png"):
            ImageOps.invert(Image.open(file).convert("RGB")).save(file)
        extract("train", "--overwrite")
    done = probe.wait(600) == 0
    SECONDS.setdefault(store, time.monotonic() - begun)
    text = log.read_text()
    print(f"{store:6} {share:.2f} {'done' if done else 'refused'} {text.splitlines()[-1][-120:]}", flush=True)
    return done or "Traceback" in text, scene.contents(root / "logs")


SECONDS: dict[str, float] = {}
if __name__ == "__main__":
    tries, seed = map(int, [*sys.argv[1:], "12", "0"][:2])
    draw, wrong = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        wanted = {store: attempt(Path(folder) / "home", store, 1)[1] for store in ("shards", "npz")}
        for number in range(tries):
            store = ("shards", "npz")[number % 2]
            done, found = attempt(Path(folder) / "home", store, draw.random())
            if done and (differing := scene.differences(found, wanted[store])):
                wrong += 1
                print(f"WRONG: {', '.join(differing)}", flush=True)
    print(f"{tries} tries, {wrong} wrong")
    sys.exit(wrong > 0)
