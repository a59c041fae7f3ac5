"""The extraction pipeline against the bare forward pass and against a plain loop.

    python -m benchmarks.pipeline overhead    # CPU seconds per sample outside the forward pass
    python -m benchmarks.pipeline ratio [--device cuda]   # pipeline over bare forward, ViT-S/14 with random weights

``overhead`` extracts with a model that hands out ready latents, so that everything measured lies outside the forward
pass; it counts the CPU seconds of the process and of its readers, as the difference between a long and a short run.
The plain loop reads with OpenCV in two workers of torch's loader (all frames of a clip), prepares the frames with the
same arithmetic, and writes one compressed ``.npz`` per sample. ``media`` is what OpenCV takes to decode and resize the
same files and nothing else: part of both. ``ratio`` compares wall times of the same samples; on a machine that
does something else at the same time it means nothing.
"""

from __future__ import annotations

import argparse
import csv
import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from lary.configs import ExtractConfig
from lary.data.spec import DATASETS
from lary.data.tables import write_csv
from lary.latents import reading
from lary.latents.pipeline import Job, make_encoder
from lary.models.preprocess import prepare
from lary.models.spec import MODELS, ModelContext, ModelSpec, Preprocess, register_model
from lary.runs.extract import extract
from lary.runtime import pick_devices
from lary.settings import Settings, load_settings
from lary.types import Latents

FRAMES, BATCH = 9, 16
SHAPES = {"pair": ((16, 1024), (2, 256, 1024)), "clip": ((8, 16, 1024), (9, 256, 1024))}
GOAL = {(16, 1024): 3, (2, 256, 1024): 20, (8, 16, 1024): 3, (9, 256, 1024): 20}
"""How many times less CPU than the plain loop is asked for."""
LARGE = 1 << 19
"""Values of a sample from which on fewer samples tell enough."""


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


class PlainFrames(torch.utils.data.Dataset[torch.Tensor]):
    """What a script reads: all frames of a clip by OpenCV, prepared by the record's arithmetic, float32."""

    def __init__(self, root: Path, dataset: str, preprocess: Preprocess | None, count: int) -> None:
        self.spec, self.preprocess = DATASETS.get(dataset), preprocess
        self.folder = root / "data" / self.spec.split("val").root
        with (root / "data" / f"{dataset}_metadata_val.csv").open(newline="") as file:
            self.rows = list(csv.DictReader(file))[:count]

    def __len__(self) -> int:
        return len(self.rows)

    def frames(self, row: dict[str, str]) -> list[np.ndarray]:
        """The sampled frames, BGR."""
        if self.spec.media == "pair":
            return [cv2.imread(str(self.folder / row[name])) for name in ("src_img", "tgt_img")]
        video, everything = cv2.VideoCapture(str(self.folder / row["video_path"])), []
        while (got := video.read())[0]:
            everything.append(got[1])
        return [everything[int(index)] for index in row["sample_indices"].split(",")]

    def __getitem__(self, index: int) -> torch.Tensor:
        frames = self.frames(self.rows[index])
        if self.preprocess is None:
            for frame in frames:
                cv2.resize(frame, (224, 224), interpolation=cv2.INTER_CUBIC)
            return torch.empty(0)
        clip = np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames])
        return torch.from_numpy(prepare(clip, self.preprocess))


def plain_loop(root: Path, out: Path, dataset: str, model: str, count: int) -> None:
    """What a script does: two reading workers, the encoder, one compressed file per sample."""
    encoder = make_encoder(job_of(root, dataset, model), MODELS.get(model), "cpu")
    clips = PlainFrames(root, dataset, MODELS.get(model).preprocess, count)
    loader = torch.utils.data.DataLoader(clips, BATCH, num_workers=2, worker_init_fn=lambda _: cv2.setNumThreads(1))
    for number, batch in enumerate(loader):
        tokens = encoder.encode(batch).tokens
        for place, each in enumerate(tokens):
            np.savez_compressed(out / f"{BATCH * number + place}.npz", tokens=each.numpy(), indices=np.array([]))


def media_alone(root: Path, dataset: str, count: int) -> None:
    """Only what no program can leave out: OpenCV reads the same frames and resizes those that are sampled."""
    clips = PlainFrames(root, dataset, None, count)
    for index in range(len(clips)):
        clips[index]


def job_of(root: Path, dataset: str, model: str) -> Job:
    config = ExtractConfig(model=model, dataset=dataset, split="val")
    return Job(config, root / "data", root, None, settings_of(root).values(), ())


def per_sample(run: Callable[[int], None], short: int, long: int) -> float:
    """CPU milliseconds per sample: what a long run costs more than a short one, the least of three such pairs."""
    found = []
    for _ in range(3):
        spent = []
        for count in (short, long):
            before = cpu_seconds()
            run(count)
            spent.append(cpu_seconds() - before)
        found.append(1000 * (spent[1] - spent[0]) / (long - short))
    return min(found)


def overhead(kinds: Sequence[str], count: int) -> None:
    """Print CPU milliseconds per sample, and how many times less than the plain loop that is."""
    cv2.setNumThreads(1)
    datasets = {"pair": "calvin", "clip": "robot_1st"}
    print(
        f"{'latents':>18} {'media':>8} {'plain loop':>12} "
        + " ".join(f"{kind:>22}" for kind in kinds)
        + "   goal   [CPU ms]"
    )
    for media, dataset in datasets.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            if media == "pair":
                make_pairs(root, count)
            else:
                make_clips(root, count, 200, 200, 45)
            alone = per_sample(partial(media_alone, root, dataset), count // 8, count)
            for shape in SHAPES[media]:
                model, large = ready_latents(shape), math.prod(shape) >= LARGE
                most = count // 4 if large else count
                naive = per_sample(in_scratch(plain_loop, root, large, dataset, model), most // 8, most // 2)
                cells = []
                for kind in kinds:
                    own = per_sample(in_scratch(pipeline, root, large, dataset, model, kind), most // 8, most)
                    cells.append(f"{own:8.2f} ({naive / own:5.1f} times)")
                print(f"{media + ' ' + 'x'.join(map(str, shape)):>18} {alone:8.2f} {naive:12.2f} "
                      + " ".join(f"{cell:>22}" for cell in cells) + f"   {GOAL[shape]:4}", flush=True)  # fmt: skip


def in_scratch(call: Callable[..., None], root: Path, large: bool, *arguments: object) -> Callable[[int], None]:
    """`call` on a number of samples, with a folder for what it writes.

    Small files stay until the end: ext4 looks long for a free inode where thousands were freed a moment ago. Large ones
    go at once: a virtual machine pays dearly for memory that it has not had before, which is no matter of either loop.
    """

    def run(samples: int) -> None:
        out = Path(tempfile.mkdtemp(dir=root))
        call(root, out, *arguments, samples)
        if large:
            shutil.rmtree(out)

    return run


def pipeline(root: Path, out: Path, dataset: str, model: str, kind: Any, count: int) -> None:
    """Extract by `lary`."""
    config = ExtractConfig(model=model, dataset=dataset, split="val", limit=count, store=kind, workers=2)
    extract(config, settings_of(root, LARY_LA_DIR=str(out)))
    while reading.idle:
        reading.idle.pop().pool.close()


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


def ratio(pairs: int, clips: int, device: str) -> None:
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
            kind: Any = device.partition(":")[0]
            config = ExtractConfig(
                model="dinov2-origin", dataset=dataset, split="val", weights=str(weights), device=kind
            )
            job = Job(config, root / "data", root, str(weights), settings_of(root).values(), ())
            encoder = make_encoder(job, MODELS.get(config.model), device)
            frames, together = 2 if of_pairs else FRAMES, 1 if device == "cpu" else BATCH  # as extraction does it
            inputs = torch.randn(together, frames, 3, 224, 224).to(device)
            with torch.inference_mode():
                encoder.encode(inputs)
                bare = min(timed(lambda encoder=encoder, inputs=inputs, count=-(-count // together):
                                 [encoder.encode(inputs).tokens.cpu() for _ in range(count)])
                           for _ in range(2))  # fmt: skip
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
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="of both, for ratio")
    options = parser.parse_args()
    if options.what == "overhead":
        overhead(options.stores.split(","), options.samples or 256)
    else:
        count = options.samples or 64
        ratio(count, count // 4, pick_devices(None, options.device)[0])


if __name__ == "__main__":
    sys.exit(main())
