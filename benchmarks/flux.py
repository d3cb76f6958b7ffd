"""FLUX.1-dev at its full size, with UNO's geometry and random weights, on one GPU: nothing is downloaded.

    PYTHONPATH=src:tests/support python benchmarks/flux.py [--json FILE] [--stages forward replay ...]
        [--plain [lora] [casts]] [--seconds 500] [--tiny] [key.sub=value ...]

``benchmarks/visit.py`` runs all of it in order of value. Stages, in this order; one that fails is reported and the next
goes on. ``forward`` and ``replay``: seconds, share of the card's peak in bfloat16 and memory of the transformer's two
uses, by batch and checkpointing. ``update``: whole updates of one group, paired, in one process: the published
schedule, ours, ours without recomputation, and NFT's. ``kernels``: what the two uses consist of. ``overhead``: what of
an update is not inside a model. ``attention``: the two uses with each of diffusers' backends that works here.
``float8``: a forward with products in float8, and how far it and a log-ratio move. ``parts``: the optimizer plain and
fused, the VAE's decoder in either layout, a forward as a CUDA graph. ``compile``: the two uses and an update with
compiled blocks; last, because it changes the model. ``--plain`` leaves every layer as peft and autocast have it, which
is what was measured before; overrides of the recipe (``policy.norms=half``) give other variants. ``--tiny`` runs all of
it on a CPU.

Rewards are random DINOv2-base and CLIP ViT-B/32; HPSv3, 16 GB, is not in it.
"""

import argparse
import copy
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import diffusers
import torch
from random_flux import random_flux
from rewards import clip_b32, dinov2_base
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from update import SERIAL, breakdown, make_trainer, matmul_share, one_at_a_time

from customized_grpo.objectives.grpo import GRPO
from customized_grpo.policies import flux_base, precision
from customized_grpo.policies.acceleration import apply, place_and_freeze, to_channels_last
from customized_grpo.policies.adapters import lora_layers, tuning
from customized_grpo.policies.base import Policy
from customized_grpo.policies.checkpointing import checkpoint_blocks
from customized_grpo.policies.float8 import Float8Products
from customized_grpo.training import setup
from customized_grpo.training.replay import Pairs, replay
from customized_grpo.training.trainer import Trainer
from tiny import make_tiny_flux
from tiny_rewards import save_clip, save_dino

GIB = 2**30
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
FOUR = ("sampling.batch=4", "train.microbatch=4")
SCHEDULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "published": ("uno_customized_grpo", SERIAL),
    "batched": ("uno_customized_grpo", ()),
    "fast": ("uno_customized_grpo_fast", ()),
    "fast, cheap": ("uno_customized_grpo_fast", (*FOUR, "policy.recompute=cheap")),
    "fast, stored": ("uno_customized_grpo_fast", (*FOUR, "policy.gradient_checkpointing=false")),
    "nft": ("uno_customized_nft", (*FOUR, "policy.gradient_checkpointing=false")),
}
"""Recipe and overrides. The first ones recompute every block, as the recipes say."""
ORDER = ("fast, stored", "published", "fast, stored", "fast", "fast, cheap", "nft", "batched")
SIZES = (1, 4, 12)
SHARES: tuple[tuple[float, Literal["all", "cheap"]], ...] = ((1.0, "all"), (1.0, "cheap"), (0.5, "all"), (0.0, "all"))
PLAIN = {"lora": (lora_layers, "join_products"), "casts": (precision, "cast_once")}
BACKENDS = ("native", "_native_flash", "_native_cudnn", "_native_efficient", "_flash_3_hub", "_flash_3", "flash_hub")


class Bench:
    """One policy, attached once, and as many trainers on it as there are schedules."""

    def __init__(self, folder: Path, tiny: bool, overrides: Sequence[str] = ()) -> None:
        self.found = dict[str, Any]()
        self.size = 4 if tiny else 12
        if not tiny:
            patch.object(flux_base, "load_flux", self._load_flux).start()
        build_dino, build_clip = (save_dino, save_clip) if tiny else (dinov2_base, clip_b32)
        for name in ("dino", "clip"):
            (folder / name).mkdir()
        keys = [
            "policy.base_lora=null",
            "data={type: mini, split: train}",
            f"rewards={{clip_t: {{type: clip_t, axis: prompt, model: {build_clip(folder / 'clip')}}}, "
            f"dino: {{type: dino, axis: identity, model: {build_dino(folder / 'dino')}}}}}",
            f"train.group_size={self.size}",
            *overrides,
        ]
        if tiny:
            small = ("height=64", "width=64", "reference_size=64", "max_sequence_length=16")
            keys += [f"policy.model={make_tiny_flux(folder / 'flux')}", *(f"policy.{one}" for one in small)]
        self.trainers: dict[str, Trainer] = {}
        for name, (recipe, given) in SCHEDULES.items():
            own = [] if name == "nft" else ["train.ratio_guard=100"]  # what it would judge is printed
            self.trainers[name] = make_trainer(recipe, [*keys, *own, *given], folder / name)
            if len(self.trainers) == 1:
                self._share(self.trainers[name].parts.policy)
        serial = self.trainers["published"]
        serial.parts = replace(serial.parts, policy=copy.copy(serial.parts.policy))
        one_at_a_time(serial)

    @staticmethod
    def _load_flux(config: Any, *_: Any, device: torch.device, **__: Any) -> Any:
        """In the place of files."""
        pipeline = random_flux(device)
        place_and_freeze(pipeline, config, device)
        return pipeline

    @staticmethod
    def _share(policy: Policy) -> None:
        """Every later trainer gets the policy of the first, with its adapter."""
        opened = policy, lambda one: policy.encode(one.prompt, one.references)
        patch.object(setup, "open_for_training", lambda *_: (*opened, opened[1])).start()
        patch.object(tuning, "attach", lambda *_, **__: None).start()

    @property
    def parts(self) -> Any:
        return self.trainers["batched"].parts

    @property
    def transformer(self) -> Any:
        return self.parts.accelerator.unwrap_model(self.parts.policy.transformer)

    def pairs(self, n: int) -> Pairs:
        """n transitions of one step, of random states."""
        parts = self.parts
        example = parts.dataset[0]
        cond = parts.encode(example)
        draw = torch.Generator(DEVICE).manual_seed(0)
        x = torch.randn(n, *parts.policy.latent_shape, generator=draw, device=DEVICE).to(parts.policy.dtype)
        at = parts.sigmas[2].expand(n)
        return Pairs(
            cond=cond, x=x, x_next=x, sigma=at, sigma_next=parts.sigmas[3].expand(n), sigma_max=parts.sigmas[1],
            log_prob=torch.zeros(n, device=DEVICE), advantage=torch.ones(n, device=DEVICE),
        )  # fmt: skip

    def measure_scale(self) -> None:
        """What seconds are held against: the card's peak, and the arithmetic of one sample, nothing computed again."""
        self.found["peak"] = {"tflops": peak_tflops()}
        self.found["flops_of_a_forward"] = flops(partial(self.forward, self.pairs(1)))
        checkpoint_blocks(self.transformer, 0.0)
        self.found["flops_of_a_replay"] = flops(partial(self.backward, self.pairs(1)))
        checkpoint_blocks(self.transformer, 1.0)

    def forward(self, pairs: Pairs) -> None:
        """As the rollout runs it."""
        with torch.no_grad():
            self.parts.policy.velocity(pairs.x, pairs.sigma[0], pairs.cond)

    def backward(self, pairs: Pairs) -> None:
        """As the replay runs it."""
        objective = self.parts.objective
        assert isinstance(objective, GRPO), "the stages of transitions are GRPO's"
        replay(self.parts.policy, objective.transition, pairs)[0].sum().backward()
        for one in self.parts.parameters.values():
            one.grad = None


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def timed(work: Callable[[], object], repeats: int = 3) -> dict[str, float]:
    """Median seconds after one warm-up, spread, and the peak of memory above what was there."""
    work()
    synchronize()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    before, seconds = torch.cuda.memory_allocated() if CUDA else 0, []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        synchronize()
        seconds.append(time.perf_counter() - began)
    peak = (torch.cuda.max_memory_allocated() - before) / GIB if CUDA else 0.0
    return {
        "seconds": statistics.median(seconds),
        "spread": max(seconds) - min(seconds),
        "peak_gib": peak,
    }


def flops(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


@contextmanager
def possible_or_not(row: dict[str, Any]) -> Iterator[None]:
    """That a size doesn't fit is a result."""
    try:
        yield
    except RuntimeError as error:  # which torch.OutOfMemoryError is one of
        row["failed"] = str(error).splitlines()[0][:100]
    gc.collect()  # a graph that was cut off holds itself
    if CUDA:
        torch.cuda.empty_cache()


def peak_tflops() -> float:
    """Of a large matrix product of random numbers in bfloat16."""
    n = 8192 if CUDA else 256
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / timed(lambda: a @ b, repeats=20)["seconds"] / 1e12


def rate(bench: Bench, row: dict[str, Any], work: float) -> dict[str, Any]:
    """With TFLOP/s and the share of the peak."""
    if row.get("seconds"):
        row["tflops"] = work / row["seconds"] / 1e12
        row["share_of_peak"] = row["tflops"] / bench.found["peak"]["tflops"]
    return row


def forward(bench: Bench) -> list[dict[str, Any]]:
    """By batch."""
    rows = []
    one = bench.found["flops_of_a_forward"]
    for n in SIZES:
        row: dict[str, Any] = {"n": n}
        with possible_or_not(row):
            row |= timed(partial(bench.forward, bench.pairs(n)))
        rows.append(rate(bench, row, n * one))
    return rows


def kernels(bench: Bench) -> dict[str, list[tuple[str, float, int]]]:
    """What a forward and a replay of the group consist of: operators by their own time, in milliseconds, and calls."""
    found = {}
    for name, work in (("forward", bench.forward), ("replay", bench.backward)):
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]) as profiler:
            work(bench.pairs(bench.size))
            synchronize()
        own = {
            event.key: (event.self_device_time_total if CUDA else event.self_cpu_time_total, event.count)
            for event in profiler.key_averages()
        }
        largest = sorted(own.items(), key=lambda item: -item[1][0])[:30]
        found[name] = [(key[:80], time / 1000, count) for key, (time, count) in largest]
    return found


def replays(bench: Bench) -> list[dict[str, Any]]:
    """By batch and what of the blocks is computed again. Its work is counted without what is computed again."""
    rows = []
    one = bench.found["flops_of_a_replay"]
    for share, recompute in SHARES:
        checkpoint_blocks(bench.transformer, share, recompute)
        for n in SIZES:
            row: dict[str, Any] = {"n": n, "checkpointed": share, "recompute": recompute}
            with possible_or_not(row):
                row |= timed(partial(bench.backward, bench.pairs(n)), repeats=2)
            rows.append(rate(bench, row, n * one))
    checkpoint_blocks(bench.transformer, 1.0)
    return rows


def update(bench: Bench, name: str, step: int) -> dict[str, float]:
    """One update's seconds by phase, its first ratio and its peak of memory."""
    trainer = bench.trainers[name]
    section = trainer.recipe.policy
    checkpoint_blocks(bench.transformer, float(section.gradient_checkpointing), section.recompute)
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer.parts.clock.drain()
    found = trainer.step(step)
    checkpoint_blocks(bench.transformer, 1.0)
    row = {key: value for key, value in found.items() if key.startswith(("time/", "ratio/", "grad/"))}
    return row | {"peak_gib": torch.cuda.max_memory_allocated() / GIB if CUDA else 0.0}


def updates(bench: Bench) -> dict[str, Any]:
    """Ours twice, with the published schedule between; then the others, the slowest last."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in SCHEDULES}
    for name in ORDER:
        rows[name].append(update(bench, name, 1 + len(rows[name])))
        bench.found["update"] = rows
        say({name: rows[name][-1]})
    return rows


def overhead(bench: Bench) -> dict[str, float]:
    """Of the fast recipe's update: what is not inside a model, and matrix products' share of the GPU's time."""
    trainer = bench.trainers["fast"]
    found = breakdown(trainer, [10])
    return found | {"matmul_share": matmul_share(trainer, 11)}


def attentions(bench: Bench) -> list[dict[str, Any]]:
    """A forward of a group and a replay of four by each backend; what can't be used here is said."""
    rows, dispatched = [], bench.transformer
    checkpoint_blocks(dispatched, 0.0)
    one, both = bench.found["flops_of_a_forward"], bench.found["flops_of_a_replay"]
    for name in BACKENDS:
        row: dict[str, Any] = {"backend": name}
        try:
            apply(dispatched, DEVICE, quantization="none", attention=name, compile_blocks=False)
        except ValueError as error:
            rows.append(row | {"failed": str(error)[:200]})
            continue
        with possible_or_not(row):
            row["forward"] = rate(bench, dict(timed(partial(bench.forward, bench.pairs(bench.size)))), bench.size * one)
            row["replay"] = rate(bench, dict(timed(partial(bench.backward, bench.pairs(4)))), 4 * both)
        rows.append(row)
        say(row)
    apply(dispatched, DEVICE, quantization="none", attention="native", compile_blocks=False)
    checkpoint_blocks(dispatched, 1.0)
    return rows


@torch.no_grad()
def float8(bench: Bench) -> dict[str, Any]:
    """Seconds of a forward, by batch, and how far a velocity and a transition's log-probability move."""
    products, policy, objective = Float8Products(bench.parts.policy), bench.parts.policy, bench.parts.objective
    rows = []
    for n in SIZES:
        row: dict[str, Any] = {"n": n}
        with possible_or_not(row), products.over():
            row |= timed(partial(bench.forward, bench.pairs(n)))
        rows.append(row)
    pairs = bench.pairs(4)
    plain = policy.velocity(pairs.x, pairs.sigma, pairs.cond)
    _, gaussian = replay(policy, objective.transition, pairs)
    drawn = (gaussian.mean + gaussian.std * torch.randn_like(gaussian.mean)).to(policy.dtype)
    pairs = replace(pairs, x_next=drawn)
    old = replay(policy, objective.transition, pairs)[0]
    with products.over():
        moved = policy.velocity(pairs.x, pairs.sigma, pairs.cond)
        new = replay(policy, objective.transition, pairs)[0]
    return {
        "forward": rows,
        "velocity_moves": float((moved - plain).norm() / plain.norm()),
        "log_ratio_max_abs": float((new - old).abs().max()),
        "clip": objective.clip,
    }


def parts_of_an_update(bench: Bench) -> dict[str, Any]:
    """What is small, each plain and otherwise: optimizer, decoder, and a forward of few samples as a CUDA graph."""
    weights = [torch.nn.Parameter(one.detach().clone()) for one in bench.parts.parameters.values()]
    for one in weights:
        one.grad = torch.randn_like(one)
    found: dict[str, Any] = {}
    for name, fused in (("adamw", None), ("adamw_fused", True)):
        found[name] = timed(torch.optim.AdamW(weights, lr=1e-9, fused=fused).step, repeats=5)
    del weights
    policy = bench.parts.policy
    x = torch.randn(bench.size, *policy.latent_shape, device=DEVICE)
    found["decode"] = timed(lambda: policy.decode(x))
    plain = policy.decode(x)
    to_channels_last(policy._vae)
    found["decode, channels last"] = timed(lambda: policy.decode(x))
    found["decode, channels last"] |= {"levels": int((policy.decode(x).int() - plain.int()).abs().max())}
    for n in (1, 4):
        pairs = bench.pairs(n)
        found[f"forward of {n}"] = timed(partial(bench.forward, pairs))
        row: dict[str, Any] = {}
        with possible_or_not(row):
            row |= timed(captured(partial(bench.forward, pairs)))
        found[f"forward of {n}, CUDA graph"] = row
    return found


def captured(work: Callable[[], None]) -> Callable[[], object]:
    """The work as a CUDA graph; as it is where there is none."""
    if not CUDA:
        return work
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def compiled(bench: Bench) -> dict[str, Any]:
    """Forward, replay and whole update of the fast recipe with compiled blocks."""
    pairs = bench.pairs(bench.size)
    one, both = bench.found["flops_of_a_forward"], bench.found["flops_of_a_replay"]
    bench.transformer.compile_repeated_blocks(dynamic=False)
    checkpoint_blocks(bench.transformer, 0.0)
    four = bench.pairs(4)
    rows: dict[str, Any] = {}
    uses = (("forward", bench.forward, pairs, bench.size * one), ("replay", bench.backward, four, 4 * both))
    for name, work, given, count in uses:
        began = time.perf_counter()
        work(given)
        synchronize()
        first = time.perf_counter() - began
        rows[name] = rate(bench, {"first_s": first, **timed(partial(work, given))}, count)
        say({name: rows[name]})
    update(bench, "fast, stored", 20)
    rows["update"] = update(bench, "fast, stored", 21)
    return rows


STAGES = {
    "forward": forward,
    "replay": replays,
    "update": updates,
    "kernels": kernels,
    "overhead": overhead,
    "attention": attentions,
    "float8": float8,
    "parts": parts_of_an_update,
    "compile": compiled,
}


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stages", nargs="*", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--seconds", type=float, default=3600, help="no stage begins later than this")
    parser.add_argument(
        "--plain", nargs="*", choices=PLAIN, help="layers as peft and autocast have them; or one of the two alone"
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("overrides", nargs="*", default=[], help="key.sub=value of the recipes")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    plain = [] if given.plain is None else given.plain or list(PLAIN)
    for name in plain:
        patch.object(*PLAIN[name], lambda _: None).start()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.tiny, given.overrides)
        bench.found["machine"] = {
            "device": torch.cuda.get_device_name() if CUDA else "CPU",
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "tokens": [bench.parts.policy.latent_shape[0], *_tokens(bench)],
            "resident_gib": torch.cuda.memory_allocated() / GIB if CUDA else 0.0,
            "setup_s": time.perf_counter() - began,
            "variant": [f"--plain {name}" for name in plain] + given.overrides,
        }
        bench.measure_scale()
        say(bench.found)
        for name in given.stages:
            if time.perf_counter() - began > given.seconds:
                say({name: "left out: no time"})
                continue
            started = time.perf_counter()
            try:
                bench.found[name] = STAGES[name](bench)
                say({name: bench.found[name]})
            except Exception:
                traceback.print_exc()
            say({f"stage {name}, seconds": time.perf_counter() - started})
            if given.json is not None:
                given.json.write_text(json.dumps(bench.found, indent=2) + "\n")


def _tokens(bench: Bench) -> tuple[int, int]:
    """Of the reference and of the text."""
    tensors = bench.pairs(1).cond.tensors
    return tensors["references"].shape[1], tensors["text"].shape[1]


if __name__ == "__main__":
    main(sys.argv[1:])
