"""One GRPO update: the published recipe's schedule against ours, paired, on the same model in one process.

    python benchmarks/update.py [--recipe mini_customized] [--repeats 5] [--json FILE] [key.sub=value ...]

Three schedules take turns, one group each. ``published``: T = 25, all steps stochastic, 14 trained; one image at a
time is sampled, decoded, scored and replayed. ``batched``: the same work, a group at a time. ``default``: the recipe
as it stands. The breakdown is of the default's update: seconds by phase, the share inside the models (transformer, VAE,
encoders, rewards, their backward), and what is left, which is ours. GPU work is waited for at the end of each phase.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from customized_grpo.recipe.loading import load_recipe
from customized_grpo.scoring.scorer import Pending
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from customized_grpo.types import Example

PUBLISHED = (
    "sampling.steps=25",
    "sampling.dynamics={type: dance_sde, eta: 0.4}",
    "sampling.plan={type: fraction, fraction: 0.6}",
)
SERIAL = ("sampling.batch=1", "train.microbatch=1")
SCHEDULES = {
    "published": (*PUBLISHED, *SERIAL),
    "batched": (*PUBLISHED, "train.microbatch=84"),
    "default": (),
}
PAIRS = {"batching_only": ("published", "batched"), "default_plan": ("published", "default")}
MATMULS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution", "attention", "conv")
"""Names, or parts of them, of the operators that multiply matrices."""


def make_trainer(recipe: str, overrides: Sequence[str], folder: Path) -> Trainer:
    """A trainer of one group an update that evaluates, saves and logs nothing."""
    quiet = (
        "train.groups_per_step=1",
        "train.steps=100000",
        "train.evaluate_every=0",
        "train.save_samples_every=0",
        "train.checkpoint_every=0",
    )
    return Trainer(build(load_recipe(recipe, [f"run.dir={folder}", *quiet, *overrides])))


def one_at_a_time(trainer: Trainer) -> None:
    """Decode and score image by image, as the published loop does; sampling and replay are the recipe's keys."""
    policy, scorer = trainer.parts.policy, trainer.parts.scorer
    decode, submit = policy.decode, scorer.submit

    def serial_decode(x: Tensor) -> Tensor:
        return torch.cat([decode(one) for one in x.split(1)])

    def serial_submit(example: Example, images: Tensor) -> Pending:
        pending = [submit(example, image) for image in images.split(1)]
        return Pending(lambda: torch.cat([one.result() for one in pending]))

    policy.decode = serial_decode  # type: ignore[method-assign]
    scorer.submit = serial_submit  # type: ignore[method-assign]


def models_of(trainer: Trainer) -> Iterator[nn.Module]:
    """Every module that a user's hours should go to: of the policy's pipeline and of the rewards, outermost ones."""
    seen: set[int] = set()
    owners: list[Any] = [trainer.parts.policy, trainer.parts.scorer]
    while owners:
        owner = owners.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        if isinstance(owner, nn.Module):
            yield owner
        elif isinstance(owner, dict):
            owners += owner.values()
        elif isinstance(owner, DiffusionPipeline):
            owners += owner.components.values()
        elif type(owner).__module__.startswith("customized_grpo"):
            owners += vars(owner).values() if hasattr(owner, "__dict__") else ()


@contextmanager
def inside_models(trainer: Trainer, seconds: dict[str, float]) -> Iterator[None]:
    """Adds up the wall time inside the models: forwards by hooks, the VAE's two halves, and every backward."""
    device, depth, started = trainer.parts.accelerator.device, 0, 0.0

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def enter(*_: Any) -> None:
        nonlocal depth, started
        depth += 1
        if depth == 1:
            started = now()

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            seconds["models"] += now() - started

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            enter()
            try:
                return call(*args, **kwargs)
            finally:
                leave()

        return run

    with ExitStack() as stack:
        for module in models_of(trainer):
            for handle in (
                module.register_forward_pre_hook(enter, prepend=True),
                module.register_forward_hook(leave, always_call=True),
            ):
                stack.callback(handle.remove)
            for name in (
                "encode",
                "decode",
                "get_image_features",
                "get_text_features",
            ):  # no forward of the module
                if callable(getattr(module, name, None)):
                    setattr(module, name, timed(getattr(module, name)))
                    stack.callback(delattr, module, name)
        accelerator = trainer.parts.accelerator
        backward = accelerator.backward
        accelerator.backward = timed(backward)
        stack.callback(setattr, accelerator, "backward", backward)
        yield


def matmul_share(trainer: Trainer, step: int) -> float:
    """Share of an update's operator time (of the GPU's where there is one) in matrix multiplications."""
    activities = [ProfilerActivity.CPU]
    if trainer.parts.accelerator.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        trainer.step(step)
    on_gpu = len(activities) > 1
    total = matmuls = 0.0
    for event in profiler.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        total += own
        if any(name in event.key for name in (*MATMULS, "gemm", "mkldnn", "flash")):
            matmuls += own
    return matmuls / total


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "n": len(values)}


def measure(recipe: str, overrides: Sequence[str], repeats: int) -> dict[str, Any]:
    """All schedules in turn, ``repeats`` times after one warm-up each."""
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: make_trainer(recipe, [*overrides, *keys], Path(folder, name)) for name, keys in SCHEDULES.items()
        }
        one_at_a_time(trainers["published"])
        for step in range(repeats + 1):
            for name, trainer in trainers.items():
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                trainer.parts.clock.drain()
                began = time.perf_counter()
                trainer.step(step)
                if step:
                    seconds[name].append(time.perf_counter() - began)
                if torch.cuda.is_available():
                    peaks[name] = torch.cuda.max_memory_allocated() / 2**30
        parts = breakdown(trainers["default"], range(repeats + 1, 2 * repeats + 1))
        share = matmul_share(trainers["default"], 2 * repeats + 1)
        device = trainers["default"].parts.accelerator.device
    ratios = {
        pair: summary([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])
        for pair, (slow, fast) in PAIRS.items()
    }
    return {
        "speedup": {pair: ratio["median"] for pair, ratio in ratios.items()},
        "ratios": ratios,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "breakdown": parts,
        "matmul_share": share,
        "peak_gib": peaks,
        "recipe": recipe,
        "overrides": list(overrides),
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def breakdown(trainer: Trainer, steps: Sequence[int]) -> dict[str, float]:
    """Medians of an update's seconds by phase, of those inside the models, and the share that is neither."""
    rows: list[dict[str, float]] = []
    for step in steps:
        trainer.parts.clock.drain()
        inside: dict[str, float] = defaultdict(float)
        with inside_models(trainer, inside):
            metrics = trainer.step(step)
        row = {
            name.removeprefix("time/"): value
            for name, value in metrics.items()
            if name.startswith("time/") and not name.startswith("time/reward/")
        }
        rows.append(row | {"models": inside["models"], "overhead_share": 1 - inside["models"] / row["step"]})
    return {name: statistics.median(row.get(name, 0.0) for row in rows) for name in rows[0]}


def show(found: dict[str, Any]) -> None:
    print(f"{found['recipe']} on {found['machine']}")
    for name, value in found["seconds"].items():
        print(f"{name:>12}: {value['median']:.3f} s an update ({value['low']:.3f} to {value['high']:.3f})")
    for pair, ratio in found["ratios"].items():
        print(f"{pair:>14}: {ratio['median']:.2f} times faster ({ratio['low']:.2f} to {ratio['high']:.2f})")
    for name, value in found["breakdown"].items():
        print(f"{name:>16}: {value:.4f}" + ("" if name.endswith("share") else " s"))
    print(f"    matmul share: {found['matmul_share']:.3f} of operator time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mini_customized")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error(f"--repeats: given {args.repeats}; at least 2, for a spread")
    found = measure(args.recipe, args.overrides, args.repeats)
    show(found)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
