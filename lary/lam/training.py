"""The training of latent action models, in a folder whose files are whole at any time."""

import json
import math
import os
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lary.configs import help_texts
from lary.files import digest, file_digest, write_bytes, write_json
from lary.lam.codebook import CorrectedRule, Monitor, PublishedRule, code_entropy, monitor_due, seeded, verdict
from lary.lam.configs import TrainLamConfig
from lary.lam.network import (
    SILENT,
    SMALLER,
    FrozenBackbone,
    TrainableModel,
    average_weights,
    backbone_tensors,
    build_network,
    check_training_memory,
    embed_raw,
    make_optimizer,
)
from lary.lam.trained import RECORD, WEIGHTS
from lary.models.preprocess import DeviceNormaliser
from lary.probes.training import Session, save_checkpoint, staged
from lary.runtime import log, provenance, set_arithmetic, within_memory
from lary.types import JsonDict, LaryError, UsageError

CLIP = 0.5
"""Largest norm of all gradients together, as published."""
PUBLISHED = "published.pt"
WORK, STATE = ".work", "state.pt"
NOT_DECIDING = {*help_texts()["facts"]["training"]["not_deciding"].split()}
"""Options that may change when a training is resumed."""


class LamTraining:
    """A training in progress; noise and order are functions of seed, step and global sample numbers.

    `pairs` offer what `PairMixture` does; they may be features (B, 2, H, W, D).
    """

    def __init__(self, config: TrainLamConfig, backbone: FrozenBackbone, pairs: Any, session: Session) -> None:
        self.config, self.backbone = config, backbone
        self.pairs, self.session = pairs, session
        self.team, self.device = session.team, session.device
        self.corrected = config.recipe == "corrected"
        self.rate = config.rate(backbone.spec.ablation)
        sizes = backbone.sizes
        share = -(-config.batch_size // self.team.size)
        if config.batch_size < self.team.size:
            raise UsageError(f"--batch-size {config.batch_size}: it is shared by {self.team.size} processes.")
        self.rows = sizes["code_seq_len"], sizes["quant_dim"]
        name = backbone.spec.name
        known = backbone.spec.options
        if config.export == "published" and "features" not in known:
            raise UsageError(f"--export published: none is known for the backbone '{name}'.")
        check_training_memory(backbone, config, share, self.device)
        network = build_network(sizes, config.seed, name)
        self.network: TrainableModel = network.to(self.device)
        self.average: Any = None
        self.result = self.network  # what is saved and monitored
        if config.averaging:
            self.average = AveragedModel(network, multi_avg_fn=average_weights)
            self.result = self.average.module
        kind = torch.device(self.device).type
        mixed = config.precision == "bf16"
        self.autocast = partial(torch.autocast, kind, torch.bfloat16, enabled=mixed)
        if self.corrected:
            network.get_parameter(SILENT).requires_grad_(False)
        self.optimizer = make_optimizer(network, self.rate, config.weight_decay)
        rule = CorrectedRule if self.corrected else PublishedRule
        self.rule: Any = rule(sizes["codebook_size"], self.device, config.seed)
        self.normalise = DeviceNormaliser(backbone.preprocess, self.device)
        self.step = 0
        names = "train", "monitor", "validation"
        self.curves: dict[str, list[JsonDict]] = {each: [] for each in names}
        self.since: list[float] = []  # losses since the last row of the curve
        self.heldout: Tensor = pairs.heldout(config.monitor_pairs)
        self.manifest = pairs.manifest()
        self.monitor = Monitor(self.embed, self.heldout, share, config.seed)
        self.began = self.saved = time.monotonic()
        self.waited = 0.0
        self.first: Tensor | None = None

    def read(self, first: int) -> Tensor:
        """This process's pairs of the batch that begins with a sample."""
        if (kept := self.first) is not None:
            self.first = None
            return kept
        began = time.monotonic()
        numbers = range(first, first + self.config.batch_size)
        found: Tensor = self.pairs.batch(self.step, numbers[self.team.share])
        self.waited += time.monotonic() - began
        return found

    def noise(self, count: int, *parts: int | str) -> Tensor:
        """Normal values (count, N, Q) by the seed and what names the draw."""
        return torch.randn((count, *self.rows), generator=seeded(self.config.seed, *parts))

    def embed(self, network: TrainableModel, pairs: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `embed_raw`; features stay."""
        pairs = pairs.to(self.device, non_blocking=True)
        if pairs.dtype != torch.uint8:
            return pairs.float(), None
        return embed_raw(network, pairs, self.normalise, self.backbone.encode)

    def uses(self, codes: Tensor) -> Tensor:
        """How often each code (K,) occurs in codes (B, N)."""
        return torch.bincount(codes.flatten(), minlength=len(self.rule.used))

    def run(self) -> None:
        """Train to the end. Raises as `lary.lam.train_lam`."""
        own, bar = self.config, self.session.progress
        set_arithmetic(self.device)
        self.load()
        if bar:
            bar.skip(self.step)
        if self.corrected and not self.step:
            self.start_codebook()
        while True:
            watched = [row["step"] for row in self.curves["monitor"]]
            if monitor_due(self.step, own.steps) and self.step not in watched:
                self.watch()
            if self.step >= own.steps:
                break
            with within_memory(self.device, SMALLER):
                self.update()
            if time.monotonic() - self.saved >= 60 * own.checkpoint_minutes:
                self.save()
            if bar:
                bar.advance()
        self.save(finished=True)
        if self.team.leads:
            share = self.waited / (time.monotonic() - self.began)
            log.info("%.1f %% of the time was spent on reading", 100 * share)

    @torch.no_grad()
    def start_codebook(self) -> None:
        """Put the codebook's rows on latents of the first batch."""
        pairs = self.read(0)
        with self.autocast():
            latent = self.network.latent(self.embed(self.network, pairs)[0]).float()
        book, self.first = self.network.vq.codebooks, pairs
        book.copy_(self.rule.draw(len(book), latent, 0, self.team))
        self.result.vq.codebooks.copy_(book)

    @staged("training")
    def update(self) -> None:
        """One step: forward and backward passes, and an update. Raises LaryError."""
        own = self.config
        step = self.step
        team = self.team
        network = self.network
        size, book = own.batch_size, network.vq.codebooks
        noise = self.noise(own.accumulate * size, step)
        total = torch.zeros((), device=self.device)
        seen = torch.zeros_like(self.rule.used)
        for part in range(own.accumulate):
            pairs = self.read((step * own.accumulate + part) * size)
            drawn = noise[part * size : (part + 1) * size][team.share].to(self.device)
            with self.autocast():
                found = network(*self.embed(network, pairs), drawn)
            loss = found.loss
            ratio = len(pairs) / size / own.accumulate
            total += loss.detach() * ratio
            if own.entropy:
                loss = loss - own.entropy * code_entropy(found.latent, book)
            torch.autograd.backward(loss * ratio)
            uses = self.uses(found.codes)
            whole = uses.clone()
            team.add(whole)
            self.rule.count(uses, whole)
            seen += whole
            if not self.corrected:
                # As published: the update moves new rows by the gradient of old ones.
                self.rule.apply(book, step, len(pairs), team)
        team.add(total)
        team.add_gradients(network)
        assert book.grad is not None
        own_norm = book.grad.norm()
        norm = nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        part_of = own_norm / norm.clamp(min=1e-30)
        values = torch.stack([total, norm, part_of, (seen > 0).sum()]).tolist()
        if not all(map(math.isfinite, values[:2])):
            first, last = (at * own.accumulate * size for at in (step, step + 1))
            raise LaryError(
                f"The training diverged in step {step} (loss {values[0]:g}): check its samples, or pass a "
                f"smaller --lr than {self.rate:g}. They are {', '.join(self.pairs.ids(range(first, last)))}."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        restarted = self.restart(found.latent.detach()) if self.corrected else 0
        if self.average is not None:
            self.average.update_parameters(network)
        names = "loss", "gradient", "codebook_gradient", "codes"
        self.note(dict(zip(names, values, strict=True)) | {"restarted": restarted})
        if step % own.validate_every == 0:
            self.validate(step)
        self.step += 1

    @torch.no_grad()
    def restart(self, latent: Tensor) -> int:
        """Start dead codes on latents (B, N, Q) of this step; returns how many."""
        book = self.network.vq.codebooks
        dead = self.rule.dead(self.step, self.config.steps)
        if len(dead):
            book[dead] = self.rule.draw(len(dead), latent, self.step, self.team)
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[book][moment][dead] = 0
            self.result.vq.codebooks[dead] = book[dead]
        return len(dead)

    @torch.no_grad()
    def validate(self, step: int) -> None:
        """Losses on held-out pairs, the average's first."""
        size = self.config.batch_size
        row = JsonDict(step=step)
        networks = {"loss": self.network}
        if self.average is not None:
            networks = {"loss_average": self.result} | networks
        start = step // self.config.validate_every * len(networks)
        for turn, (name, network) in enumerate(networks.items(), start):
            places = torch.arange(turn * size, (turn + 1) * size)
            pairs = self.heldout[places % len(self.heldout)]
            # As published, one forward is for pictures; codes of both count.
            for again in range(1 if self.corrected else 2):
                noise = self.noise(size, step, turn, again).to(self.device)
                with self.autocast():
                    found = network(*self.embed(network, pairs), noise)
                if not self.corrected and network is self.network:
                    uses = self.uses(found.codes)
                    self.rule.count(uses, uses)
            row[name] = float(found.loss)
            self.track({"val/loss": row[name]})
            self.track({"val/num_unique_indices": len(found.codes.unique())})
        self.curves["validation"].append(row)

    def note(self, row: JsonDict) -> None:
        """Log a step, and every tenth or hundredth in the curve."""
        self.track({"train/lr": self.rate, "train/loss": row["loss"]})
        self.track({"train/num_unique_indices": row["codes"]})
        self.since.append(row["loss"])
        if self.step % (10 if self.step < 1000 else 100) == 0:
            mean = sum(self.since) / len(self.since)
            self.curves["train"].append({"step": self.step, **row, "loss": mean})
            self.since.clear()

    def track(self, values: JsonDict) -> None:
        """Send numbers to the tracker."""
        if self.session.tracker is not None and self.team.leads:
            self.session.tracker.log(values, step=self.step)

    @staged("evaluation")
    def watch(self) -> None:
        """Add the monitor's signals. Raises LaryError for a collapse."""
        rows = self.curves["monitor"]
        stop = torch.zeros((), device=self.device)
        if self.team.leads:
            with self.autocast():
                row = {"step": self.step, **self.monitor.measure(self.result)}
            if self.curves["train"]:
                row["codebook_gradient"] = self.curves["train"][-1]["codebook_gradient"]
            found = verdict(row)
            self.track({f"monitor/{name}": value for name, value in row.items()})
            log.info("step %d, %s", self.step, found["text"])
            rows.append(row | {"state": found["state"]})
            # A drawn codebook may look collapsed.
            last = [each["state"] == "collapsed" for each in rows[-2:] if each["step"]]
            stop += self.config.stop_on_collapse and last == [True] * 2
        self.team.add(stop)
        if stop:
            self.save(finished=True)
            what = f"The codebook collapsed, and the training was stopped at step {self.step}"
            raise LaryError(f"{what}: try --recipe corrected, or another --lr.")

    def inputs(self) -> JsonDict:
        """What decides the numbers, by the words of messages."""
        own = {"backbone": self.backbone.identity.digest + ", normed" * self.backbone.normed}
        for name, value in vars(self.config).items():
            if name not in NOT_DECIDING:
                own[f"--{name}".replace("_", "-")] = str(value)
        data = [self.manifest, asdict(self.backbone.preprocess)]
        return own | {"data": digest(json.dumps(data, default=str))}

    def load(self) -> None:
        """Take up the folder's state, if any. Raises UsageError."""
        path = self.session.folder and self.session.folder / WORK / STATE
        if path is None or not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            inputs, before = self.inputs(), state["inputs"]
        except Exception as error:  # torch raises many kinds for other files
            reason = str(error).partition("\n")[0]
            raise UsageError(f"{path} can't be read ({reason}): pass --overwrite to start anew.") from error
        if other := sorted(name for name in inputs if inputs[name] != before.get(name)):
            what = f"{self.session.folder} holds another training, with other {', '.join(other)}"
            raise UsageError(f"{what}: pass --overwrite, or another --out.")
        for name in ("network", "average", "optimizer"):
            if state[name] is not None:
                getattr(self, name).load_state_dict(state[name])
        self.rule.used.copy_(state["used"])
        self.step = state["step"]
        self.curves = state["curves"]
        self.since = state["since"]
        if self.team.leads:
            log.info("%s: resuming after step %d", path, self.step)

    def save(self, *, finished: bool = False) -> None:
        """Write state, weights and record. Raises LaryError."""
        folder = self.session.folder
        self.saved = time.monotonic()
        if folder is None or not self.team.leads:
            return
        from safetensors.torch import save

        average = self.average and self.average.state_dict()
        state = {
            "inputs": self.inputs(),
            "step": self.step,
            "network": self.network.state_dict(),
            "average": average,
            "optimizer": self.optimizer.state_dict(),
            "used": self.rule.used,
            "curves": self.curves,
            "since": self.since,
        }
        save_checkpoint(folder / WORK / STATE, state)
        own = self.result.state_dict()
        tensors = {key: value.cpu().contiguous() for key, value in own.items()}
        write_bytes(folder / WORK / WEIGHTS, save(tensors))
        backbone = self.backbone
        rows = self.curves["monitor"]
        if finished and self.config.export == "published":
            save_checkpoint(folder / PUBLISHED, tensors | backbone_tensors(backbone))
        about = {"model": backbone.spec.name, "seed": 0, **asdict(backbone.identity)}
        content = {
            "schema": 1,
            "options": asdict(self.config) | {"lr": self.rate},
            "sizes": backbone.sizes,
            "backbone": about,
            "preprocess": asdict(backbone.preprocess),
            "steps": self.step,
            "finished": finished,
            "features_normed": backbone.normed,
            "weights_digest": file_digest(folder / WORK / WEIGHTS, 64),
            "manifest": self.manifest,
            "curves": self.curves,
            "verdict": verdict(rows[-1]) if rows else None,
            "waited": self.waited / (time.monotonic() - self.began),
            "seconds": {stage: sum(spent) for stage, spent in self.session.spent.items()},
            "versions": provenance()["versions"],
        }
        write_json(folder / WORK / RECORD, json.loads(json.dumps(content, default=str)))
        for file in (WEIGHTS, RECORD):  # at once, since readers want a pair
            os.replace(folder / WORK / file, folder / file)
