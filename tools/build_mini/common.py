"""Shared parts of the build's stages: context, progress, resumable training state, atomic folders, cards."""

import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LOG: Final = logging.getLogger("build_mini")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Folders of a build: `out` receives the assets, `work` holds the state to resume from."""

    out: Path
    work: Path
    seed: int = 0
    scale: float = 1.0
    """Factor on the number of training steps of every stage: below 1 for a quick trial of the whole build."""

    def steps(self, full: int) -> int:
        """`full` steps, scaled; at least 4."""
        return max(4, round(full * self.scale))


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that replaces `folder` at the end: readers see all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        aside.chmod(0o755)
        old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def save_tensors(path: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    """Writes a safetensors file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, aside, metadata=metadata)
    aside.rename(path)


@final
class Training:
    """One resumable training run: warm-up and cosine schedule, progress, averaged weights.

    The data of step k must depend only on k (and the seed); then a resumed run equals an uninterrupted one.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        modules: nn.Module,
        *,
        steps: int,
        lr: float,
        ema: float = 0.995,
        weight_decay: float = 0.0,
        final_lr: float = 0.02,
        save_every_s: float = 120.0,
    ) -> None:
        """`final_lr` is the share of `lr` at the end of the cosine."""
        self.path = context.work / f"{name}.safetensors"
        self.name, self.steps, self.lr, self.final_lr, self.ema = (
            name,
            context.steps(steps),
            lr,
            final_lr,
            ema,
        )
        self.module = modules
        self.optimizer = torch.optim.AdamW(
            [p for p in modules.parameters() if p.requires_grad],
            lr,
            (0.9, 0.98),
            weight_decay=weight_decay,
            fused=True,
        )
        self.average = {k: v.detach().clone() for k, v in modules.state_dict().items()}
        self.step, self.seconds, self.save_every_s = 0, 0.0, save_every_s
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        tensors = load_file(self.path)
        self.module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.average = {k[8:]: v for k, v in tensors.items() if k.startswith("average.")}
        params = self.optimizer.param_groups[0]["params"]
        for index, parameter in enumerate(params):
            if f"optimizer.{index}.exp_avg" in tensors:
                self.optimizer.state[parameter] = {
                    key: tensors[f"optimizer.{index}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.step, self.seconds = int(tensors["step"]), float(tensors["seconds"])
        LOG.info("%s: resumed at step %d of %d", self.name, self.step, self.steps)

    def save(self) -> None:
        """Writes everything a resumed run needs."""
        tensors = {f"model.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, parameter in enumerate(self.optimizer.param_groups[0]["params"]):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{index}.{key}"] = value
        tensors["step"] = torch.tensor(self.step)
        tensors["seconds"] = torch.tensor(self.seconds)
        save_tensors(self.path, tensors)

    def _rate(self) -> float:
        warm = min(1.0, (self.step + 1) / min(100, 1 + self.steps // 10))
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        return self.lr * warm * (self.final_lr + (1 - self.final_lr) * cosine)

    def run(
        self,
        loss_of: Callable[[int], Tensor],
        *,
        every_s: float = 0.0,
        hook: Callable[[], None] | None = None,
    ) -> dict[str, Tensor]:
        """Trains to the end and returns the averaged weights. `hook` is called about every `every_s` seconds."""
        start, saved, hooked, told = (time.monotonic() for _ in range(4))
        before, running = self.seconds, math.nan
        self.module.train()
        while self.step < self.steps:
            rate = self._rate()
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(self.step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self._track()
            value = float(loss.detach())
            running = value if math.isnan(running) else 0.97 * running + 0.03 * value
            now = time.monotonic()
            self.seconds = before + now - start
            if now - told > 10 or self.step == self.steps:
                told = now
                left = self.seconds / self.step * (self.steps - self.step)
                LOG.info(
                    "%s: step %d/%d loss %.4f (%.0f s, %.0f s left)",
                    self.name,
                    self.step,
                    self.steps,
                    running,
                    self.seconds,
                    left,
                )
            if now - saved > self.save_every_s:
                self.save()
                saved = now
            if hook is not None and now - hooked > every_s:
                hook()
                self.module.train()
                hooked = time.monotonic()
        self.save()
        return self.average

    @torch.no_grad()
    def _track(self) -> None:
        decay = min(self.ema, (1 + self.step) / (10 + self.step))
        state = self.module.state_dict()
        floats = [k for k, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in floats], [state[k] for k in floats], 1 - decay)
        for key in state.keys() - set(floats):
            self.average[key].copy_(state[key])


def write_card(folder: Path, title: str, *, data: str, recipe: str, seconds: float, metrics: dict[str, float]) -> None:
    """Writes README.md and metrics.json of an asset: data, recipe, time and metrics."""
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    text = (
        f"# {title}\n\nPart of the miniature world of customized-grpo (Apache-2.0). Built from nothing by "
        f"`make assets` (tools/build_mini); the figures below were measured by that command.\n\n"
        f"* **Data**: {data}\n* **Recipe**: {recipe}\n* **Time**: {seconds / 60:.1f} minutes of training\n\n"
        f"| metric | value |\n|---|---|\n{rows}\n"
    )
    (folder / "README.md").write_text(text)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
