"""The extraction pipeline against the bare forward pass and against a plain loop.

    python -m benchmarks.pipeline overhead    # CPU seconds per sample outside the forward pass
    python -m benchmarks.pipeline ratio       # pipeline over bare forward, ViT-S/14 at 224 with random weights

``overhead`` extracts with a model that hands out ready latents, so that everything measured lies outside the forward
pass; it counts the CPU seconds of the process and of its readers, as the difference between a long and a short run.
The plain loop reads with OpenCV (all frames of a clip), prepares the frames with the same arithmetic, and writes one
compressed ``.npz`` per sample, in one thread. ``ratio`` compares wall times of the same samples; on a machine that
does something else at the same time it means nothing.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from lary.configs import ExtractConfig
from lary.data.samples import write_csv
from lary.data.spec import DATASETS
from lary.latents import reading
from lary.latents.extract import extract
from lary.latents.pipeline import Job, make_encoder, model_of
from lary.models.preprocess import prepare
from lary.models.spec import MODELS, ModelContext, ModelSpec, register_model
from lary.settings import Settings, load_settings
from lary.types import Latents

FRAMES = 9
SHAPES = {"pair": ((16, 1024), (2, 256, 1024)), "clip": ((8, 16, 1024), (9, 256, 1024))}
GOAL = {(16, 1024): 3, (2, 256, 1024): 20, (8, 16, 1024): 3, (9, 256, 1024): 20}
"""How many times less CPU than the plain loop is asked for."""


# --- data -------------------------------------------------------------------------------------------------------------


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: soft shapes; a PNG of 200 x 200 has about 45 kB, as rendered scenes have."""
    soft = cv2.resize(
        rng.integers(0, 255, (12, 12, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )  # fmt: skip
    return soft & 0xFC


def make_pairs(root: Path, count: int) -> None:
    """`count` pairs of 200 x 200 PNG files in CALVIN's layout."""
    folder = root / "data" / "regression" / "calvin" / "val_stride5" / "images" / "ep"
    folder.mkdir(parents=True)
    rows = []
    for index in range(count):
        rng = np.random.default_rng(index)
        names = [f"images/ep/{index}_{side}.png" for side in "ab"]
        for name in names:
            cv2.imwrite(str(folder.parent.parent / name), picture(rng, 200, 200))
        rows.append([*names, f"actions/ep/{index}.npy"])
    write_csv(root / "data" / "calvin_metadata_val.csv", ["src_img", "tgt_img", "action"], rows)


def make_clips(root: Path, count: int, height: int, width: int, frames: int) -> None:
    """`count` H.264 clips in Robot_1st's layout, `FRAMES` of each sampled; four different ones."""
    folder = root / "data" / "classification" / "AgiBotWorld-Beta"
    folder.mkdir(parents=True)
    for kind in range(4):
        rng = np.random.default_rng(kind)
        scene = picture(rng, height + 2 * frames, width + 2 * frames)
        with av.open(str(folder / f"{kind}.mp4"), "w") as container:
            stream: Any = container.add_stream("libx264", rate=Fraction(30))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for index in range(frames):
                view = np.ascontiguousarray(scene[index : index + height, 2 * index : 2 * index + width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
            container.mux(stream.encode(None))
    chosen = ",".join(str(round(index)) for index in np.linspace(0, frames - 1, FRAMES))
    rows = [[f"AgiBotWorld-Beta/{index % 4}.mp4", "pick", chosen] for index in range(count)]
    write_csv(root / "data" / "robot_1st_metadata_val.csv", ["video_path", "action", "sample_indices"], rows)


def settings_of(root: Path, **more: str) -> Settings:
    return load_settings({"LARY_ROOT": str(root), "DATA_DIR": str(root / "data"), **more}, environment={})


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


# --- CPU seconds outside the forward pass -----------------------------------------------------------------------------


def ready_latents(shape: tuple[int, ...]) -> str:
    """Register a model that hands out latents of a shape; returns its name."""
    name = "ready-" + "x".join(map(str, shape))

    @register_model(ModelSpec(name=name, paradigm="baseline", dim=shape[-1], preprocess=MODELS.get("lapa").preprocess))
    class Ready:
        def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
            self.tokens = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))

        def encode(self, clips: torch.Tensor) -> Latents:
            return Latents(self.tokens.expand(len(clips), *shape))

    return name


def plain_loop(root: Path, out: Path, dataset: str, model: str, count: int) -> None:
    """What a script does: read, prepare, encode, one compressed file per sample."""
    import csv

    preprocess = MODELS.get(model).preprocess
    encoder = make_encoder(job_of(root, dataset, model), MODELS.get(model), "cpu")
    spec = DATASETS.get(dataset)
    folder = root / "data" / spec.split("val").root
    with (root / "data" / f"{dataset}_metadata_val.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    for number, row in enumerate(rows):
        if spec.media == "pair":
            frames = [cv2.imread(str(folder / row[name])) for name in ("src_img", "tgt_img")]
        else:
            video, everything = cv2.VideoCapture(str(folder / row["video_path"])), []
            while (got := video.read())[0]:
                everything.append(got[1])
            frames = [everything[int(index)] for index in row["sample_indices"].split(",")]
        clip = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames])
        latents = encoder.encode(torch.from_numpy(prepare(clip, preprocess))[None])
        np.savez_compressed(out / f"{number}.npz", tokens=latents.tokens[0].numpy(), indices=np.array([]))


def job_of(root: Path, dataset: str, model: str) -> Job:
    config = ExtractConfig(model=model, dataset=dataset, split="val")
    return Job(config, root / "data", root, None, settings_of(root).values(), ())


def per_sample(run: Callable[[int], None], short: int, long: int) -> float:
    """CPU milliseconds per sample: what a long run costs more than a short one."""
    spent = []
    for count in (short, long):
        before = cpu_seconds()
        run(count)
        spent.append(cpu_seconds() - before)
    return 1000 * (spent[1] - spent[0]) / (long - short)


def overhead(kinds: Sequence[str], count: int) -> None:
    """Print CPU milliseconds per sample, and how many times less than the plain loop that is."""
    cv2.setNumThreads(1)
    datasets = {"pair": "calvin", "clip": "robot_1st"}
    print(f"{'latents':>18} {'plain loop':>12} " + " ".join(f"{kind:>22}" for kind in kinds) + "   goal   [CPU ms]")
    for media, dataset in datasets.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            if media == "pair":
                make_pairs(root, count)
            else:
                make_clips(root, count, 200, 200, 45)
            for shape in SHAPES[media]:
                model = ready_latents(shape)
                long = count if len(shape) == 2 or media == "pair" else count // 2
                short = long // 8

                def loop(rows: int, dataset: str = dataset, model: str = model, root: Path = root) -> None:
                    with tempfile.TemporaryDirectory() as out:
                        plain_loop(root, Path(out), dataset, model, rows)

                naive = per_sample(loop, short // 2, long // 4)
                cells = []
                for kind in kinds:

                    def pipeline(
                        rows: int, kind: str = kind, dataset: str = dataset, model: str = model, root: Path = root
                    ) -> None:
                        with tempfile.TemporaryDirectory() as out:
                            extract(
                                ExtractConfig(
                                    model=model, dataset=dataset, split="val", limit=rows, store=kind, workers=2
                                ),  # type: ignore[arg-type]
                                settings_of(root, LARY_LA_DIR=out),
                            )
                            reading.close_pools()

                    own = per_sample(pipeline, short, long)
                    cells.append(f"{own:8.2f} ({naive / own:5.1f} times)")
                print(f"{media + ' ' + 'x'.join(map(str, shape)):>18} {naive:12.2f} "
                      + " ".join(f"{cell:>22}" for cell in cells) + f"   {GOAL[shape]:4}", flush=True)  # fmt: skip


# --- pipeline over bare forward ---------------------------------------------------------------------------------------


def save_small(folder: Path) -> Path:
    """A ViT-S/14 of DINOv2 with random weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def ratio(pairs: int, clips: int) -> None:
    """Print seconds of the bare forward pass and of the pipeline, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        weights = save_small(Path(folder) / "weights")
        for title, dataset, count in (("pairs of 200x200 PNG", "calvin", pairs), ("clips of 480p", "robot_1st", clips)):
            root = Path(folder) / dataset
            of_pairs = DATASETS.get(dataset).media == "pair"
            if of_pairs:
                make_pairs(root, count)
            else:
                make_clips(root, count, 480, 854, 90)
            config = ExtractConfig(model="dinov2-origin", dataset=dataset, split="val", weights=str(weights))
            job = Job(config, root / "data", root, str(weights), settings_of(root).values(), ())
            encoder = make_encoder(job, model_of(config), "cpu")
            frames = 2 if of_pairs else FRAMES
            inputs = torch.randn(1, frames, 3, 224, 224)
            with torch.inference_mode():
                encoder.encode(inputs)
                bare = min(timed(lambda encoder=encoder, inputs=inputs, count=count:
                                 [encoder.encode(inputs) for _ in range(count)]) for _ in range(2))  # fmt: skip
            del encoder
            # A long run less a short one: loading the model and starting the readers are no matter of rows.
            spent = []
            for rows in (max(1, count // 4), count):
                with tempfile.TemporaryDirectory() as out:
                    limited = ExtractConfig(**{**vars(config), "limit": rows})
                    spent.append(extract(limited, settings_of(root, LARY_LA_DIR=out)).seconds)
            whole = (spent[1] - spent[0]) * count / (count - max(1, count // 4))
            print(f"{title:>22}: forward {1000 * bare / count:7.1f} ms, pipeline {1000 * whole / count:7.1f} ms per "
                  f"sample, ratio {whole / bare:.3f}", flush=True)  # fmt: skip


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "ratio"))
    parser.add_argument("--samples", type=int, default=0, help="of each kind")
    parser.add_argument("--stores", default="npz,shards")
    options = parser.parse_args()
    if options.what == "overhead":
        overhead(options.stores.split(","), options.samples or 256)
    else:
        ratio(options.samples or 64, (options.samples or 64) // 4)


if __name__ == "__main__":
    sys.exit(main())
