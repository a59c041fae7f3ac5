"""The steps of benchmarks/first_hour.py."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lary.files import read_json, write_json
from lary.models.spec import MODELS, ModelContext

ROOT = Path(__file__).parents[1]
TIMED = ("vjepa2", "dinov2-origin", "flux2")  # bound by launches, by products, by convolutions
STEPS = ("machine", "suite", "models", "parity", "stores", "sequences", "speed", "probes", "devices", "teams", "ray")
ALONE = 8  # steps that one GPU does
TESTS = {
    "parity": "parity", "stores": "bits or memory or probes or ctrl", "sequences": "sequences", "devices": "two_devices"
}  # fmt: skip
Found = dict[str, Any]


class Hour:
    """The hour in progress: its options, its data, and the log of the current step."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out, self.device, self.tiny = options.out.absolute(), options.device, options.device == "cpu"
        self.sim, self.log, self.names = self.out / "simulated", self.out, ("random-vit",) if self.tiny else TIMED
        self.precisions = ("fp32", "bf16") if self.tiny else ("fp32", "tf32", "bf16")

    def run(self, *words: object, check: bool = True, **more: str) -> str:
        """The output of a process, whose errors go to the log. Raises CalledProcessError."""
        command, environment = [sys.executable, *map(str, words)], {**os.environ, "PYTHONPATH": str(ROOT), **more}
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
            print(done.stdout, f"exit code {done.returncode}", file=log)
        if check:
            done.check_returncode()
        return done.stdout

    def lary(self, *words: object, **more: Any) -> str:
        return self.run("-m", "lary.cli", *words, **more)

    def tests(self, *words: object, file: str = "test_cuda.py", **more: str) -> Found:
        """The last line of some tests, by default of those of the device."""
        more |= {"LARY_TEST_DEVICE": self.device if self.tiny else "cuda:0", "LARY_FULL_SIZE": "" if self.tiny else "1"}
        text = self.run("-m", "pytest", "-q", "--rootdir", ROOT, ROOT / "tests" / file, *words, **more)
        return {" ".join(["tests", *map(str, words)]): text.strip().splitlines()[-1]}

    def data(self) -> list[object]:
        """Options of the simulated data, which is made once."""
        if not (self.sim / "whole").exists():
            sizes = (20, "--clips", 20, "--size", 64) if self.tiny else (2000, "--clips", 1000)
            self.lary("simulate", self.sim, "--pairs", *sizes, "--processes", os.cpu_count())
            (self.sim / "whole").touch()
        return ["--lary-root", self.sim, "--data-dir", self.sim / "data"]

    def extract(self, model: str, dataset: str, *more: object) -> Path:
        """The store of an extraction that starts from nothing."""
        shutil.rmtree(self.out / "latents", ignore_errors=True)
        words = ["extract", "--model", model, "--dataset", dataset, "--split", "train", "--device", self.device]
        words += ["--weights", "random"] if MODELS.get(model).weights else []
        self.lary(*words, *self.data(), "--lary-la-dir", self.out / "latents", *more)
        return next((self.out / "latents").rglob("store.json")).parent

    def probe(self, *more: object) -> tuple[Found, str]:
        """The score of a run with its interval, and a line about its time."""
        words = ["--model", "random-vit", "--probe-preset", "demo"]
        if not self.tiny:
            words = ["--model", "dinov2-origin", "--weights", "random", "--epochs", "2", "--pool", "grid:4"]
        shutil.rmtree(folder := self.out / "run", ignore_errors=True)
        folders = [*self.data(), "--lary-la-dir", folder, "--lary-log-dir", folder / "logs"]
        self.lary("run", *words, "--dataset", "simarm_actions", "--seeds", 0, *folders, *more)
        result = read_json(next(folder.rglob("result.json")), "result")
        score, spent = result["selections"][result["headline"]]["metrics"][result["primary"]], result["timings"]
        waiting = f"{spent['waiting for latents']:.1f} of them waiting"
        return score, f"{score['value']:.4f}, {spent['probe']:.1f} s, {waiting}"

    def machine(self) -> Found:
        lines = [line[2:].split(maxsplit=1) for line in self.lary("doctor", check=False).splitlines()[:-1]]
        found = {name: text for name, text in lines if name.startswith(("cuda:", "torch"))}
        if tool := shutil.which("nvidia-smi"):
            asked = [tool, "--query-gpu=driver_version,compute_mode,mig.mode.current", "--format=csv,noheader"]
            found["driver, mode, MIG"] = subprocess.run(asked, stdout=subprocess.PIPE, text=True).stdout.strip()
        return found

    def suite(self) -> Found:
        own = "test_runtime.py" if self.tiny else ""
        return self.tests("-n", 4, file=own, CUDA_VISIBLE_DEVICES="") | self.tests("-n", 2, file=own)

    def models(self) -> Found:
        names = self.names if self.tiny else [spec.name for spec in MODELS if not spec.ablation]
        found, compiled = {}, [] if self.tiny else [("vjepa2", "bf16", "--compile")]
        for name, precision, *more in [(name, each) for name in names for each in self.precisions] + compiled:
            words = [name, *(["--weights", "random"] if MODELS.get(name).weights else []), "--precision", precision]
            out = self.lary("check-model", *words, "--device", self.device, *more, check=False)
            if "everything as it should be" not in out:
                found[f"{name} {precision}"] = out.strip().splitlines()[-1] if out else "an error"
        if found:
            raise ValueError(f"check-model: {found}")
        return found

    def speed(self) -> Found:
        found: Found = {}
        for model, precision in [(model, precision) for model in self.names for precision in self.precisions]:
            for dataset, unit, frames in (("simarm", "pairs/s", 2), ("simarm_actions", "clips/s", 9)):
                more = "--precision", precision, "--store", "shards", "--dtype", "float16"
                timing = read_json(self.extract(model, dataset, *more) / "extraction.json", "timing")
                alone = bare(model, frames, self.device, precision, 2 if self.tiny else 16)
                found[f"{model} {precision} {unit}"] = f"{timing['rows'] / timing['seconds']:.1f}, bare {alone:.1f}"
        return found

    def probes(self) -> Found:
        (cpu, text), (own, other) = self.probe("--device", "cpu"), self.probe("--device", self.device)
        if cpu["low"] is not None and not cpu["low"] <= own["value"] <= cpu["high"]:
            raise ValueError(f"{other} is outside of the CPU's {cpu['low']:.4f} to {cpu['high']:.4f}")
        return {"cpu": text, f"own {self.device}": other}

    def teams(self) -> Found:
        chosen = {"0": ("--gpus", "0"), "0,1": ("--gpus", "0,1"), "all": ()}
        return {name: self.probe(*words)[1] for name, words in chosen.items()}

    def ray(self) -> Found:
        self.extract(self.names[-1], "simarm", "--engine", "ray", "--address", "local")
        file = self.out / "sweep.yaml"
        file.write_text("options: {dataset: simarm, probe_preset: demo}\ngrid: {model: [pixels, random-vit]}\n")
        self.lary("sweep", file, "--engine", "ray", "--address", "local", *self.data())
        return {}


def bare(name: str, frames: int, kind: str, precision: Any, batch: int) -> float:
    """Samples per second of the forward pass alone."""
    import torch

    from lary.models.running import build
    from lary.runtime import pick_devices

    spec, device = MODELS.get(name), pick_devices(None, kind)[0]
    context = ModelContext(device, "corrected", "random" if spec.weights else None)
    encoder, side = build(spec, context, precision=precision), spec.preprocess.size
    clips, count = torch.randn(batch, frames, 3, side, side, device=device), 0
    with torch.inference_mode():
        encoder.encode(clips).tokens.cpu()
        started = time.perf_counter()
        while time.perf_counter() - started < (0.3 if device == "cpu" else 5):
            encoder.encode(clips).tokens.cpu()
            count += batch
    return count / (time.perf_counter() - started)


def main(about: str) -> int:
    """Do the steps and print the table. Returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--steps", type=int, nargs="+", default=range(len(STEPS)))
    options = parser.parse_args()
    import torch

    hour, count = Hour(options), torch.cuda.device_count() if options.device == "cuda" else 1
    if not count:
        parser.error("torch finds no CUDA device; --device cpu tries the script itself")
    (hour.out / "logs").mkdir(parents=True, exist_ok=True)
    done = read_json(file, "steps") if (file := hour.out / "steps.json").exists() else {}
    for number in options.steps:
        if done.get(name := STEPS[number], {}).get("state") == "passed":
            continue
        print(f"step {number}: {name}", flush=True)
        hour.log, started, found = hour.out / "logs" / f"{number}_{name}.txt", time.monotonic(), {}
        hour.log.unlink(missing_ok=True)
        state = "skipped: it takes two GPUs" if number >= ALONE and count < 2 else "passed"
        try:
            if state == "passed":
                words = TESTS.get(name, "").partition(" ")[0] if hour.tiny else TESTS.get(name)
                found = hour.tests("-n", 0, "-k", words) if words else getattr(hour, name)()
        except (subprocess.CalledProcessError, OSError, LookupError, ValueError, StopIteration) as error:
            state = f"FAILED: {error}; see {hour.log}"
        done[name] = {"state": state, "seconds": time.monotonic() - started, "found": found}
        write_json(file, done)
    for name, row in done.items():
        print(f"{name:10} {row['seconds']:8.1f} s  {row['state']}")
        print("".join(f"{'':12}{key}: {value}\n" for key, value in row["found"].items()), end="")
    return int(any(row["state"].startswith("FAILED") for row in done.values()))
