"""What a forward and a backward of FLUX.1-dev at full size must cost on a card: FLOPs and bytes of every operator.

    python benchmarks/roofline.py            # the tables, for the H200 that was measured
    python benchmarks/roofline.py --write    # and docs/roofline.csv with the tables of docs/roofline.md
    python benchmarks/roofline.py --peak 312 --bandwidth 1.9   # another card's TFLOP/s and TB/s: an A100's

Nothing is computed: the model is one of torch's fake tensors in UNO's geometry, and every operator that torch would run
is counted as it passes. An operator takes at least the larger of its FLOPs over the peak and its bytes over the
bandwidth (S. Williams, A. Waterman, D. Patterson: Roofline, 2009), where each reads its inputs and writes its outputs
once; so the sum is the least time of *these* operators, and a compiler that joins some can go below it.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import torch
from diffusers import FluxTransformer2DModel
from grid import ROOT
from page_parts import put, table
from records import write_table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from customized_grpo import registry
from customized_grpo.memory.estimate import activations
from customized_grpo.memory.footprint import shapes, tokens_of, trained_of
from customized_grpo.objectives.grpo import GRPO
from customized_grpo.policies import precision
from customized_grpo.policies.acceleration import apply
from customized_grpo.policies.adapters import lora, lora_layers, tuning
from customized_grpo.policies.base import Policy
from customized_grpo.policies.checkpointing import checkpoint_blocks
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.training.replay import Pairs, replay
from customized_grpo.types import Conditioning

sys.path.insert(0, str(ROOT / "tests" / "support"))
from gpu_autocast import as_on_a_gpu

RECIPE = "uno_customized_grpo_fast"
RESULT, PAGE = ROOT / "docs" / "roofline.csv", ROOT / "docs" / "roofline.md"
PEAK, BANDWIDTH = 789.0, 4.3
"""TFLOP/s in bfloat16 and TB/s, measured on an H200 (benchmarks/results/flux_h200.json, docs/benchmarks.md)."""
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = RESULTS / "flux_h200.json"
MEMORY = ROOT / "docs" / "how-to" / "memory.md"
SIZES = (1, 4, 12)
PLAIN, NOW = "peft's layers, each casts its input", "as it is"
VARIANTS: dict[str, tuple[str, ...]] = {PLAIN: (), NOW: (), "with `policy.norms=half`": ("policy.norms=half",)}
"""The first is what was measured."""
STORED: tuple[tuple[float, Literal["all", "cheap"]], ...] = (
    (0.0, "all"), (0.5, "all"), (0.5, "cheap"), (1.0, "cheap"), (1.0, "all"),
)  # fmt: skip
SAMPLE = (1024, 64)
"""Tokens of an image of 512 x 512, and their channels."""
GIB = 2**30
KINDS = (
    "products with the base's weights",
    "products with the adapter's alone",
    "attention",
    "norms",
    "casts",
    "elementwise",
    "copies",
    "sums",
)
NORMS = ("native_layer_norm", "_fused_rms_norm")
COPIES = ("cat", "clone", "copy_", "slice_backward", "select_backward", "stack", "repeat", "zeros", "fill_", "zero_")
SUMS = ("sum", "mean", "linalg_vector_norm")
FREE = ("empty", "detach", "lift_fresh", "_unsafe_view", "ones_like", "scalar_tensor", "device", "_local_scalar_dense")


@dataclass(slots=True)
class Cost:
    """Sum over operators."""

    calls: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    """At least; see above."""


@dataclass
class Counter(TorchDispatchMode):
    """Counts what passes, by kind of operator."""

    rank: int
    peak: float
    bandwidth: float
    found: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    names: dict[tuple[str, str], Cost] = field(default_factory=lambda: defaultdict(Cost))

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet.__name__
        if func.is_view or name.startswith(FREE):
            return out
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        made = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        flops = float(attention_flops(name, given)) if "attention" in name else 0.0
        if not flops and packet in flop_registry:
            flops = float(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
        moved = float(sum(one.numel() * one.element_size() for one in {id(x): x for x in (*given, *made)}.values()))
        if name == "lora_product":  # its second product is added to what the first wrote
            moved += 2.0 * made[0].numel() * made[0].element_size()
        seconds = max(flops / (self.peak * 1e12), moved / (self.bandwidth * 1e12))
        kind = self.kind_of(name, given, made)
        for cost in (self.found[kind], self.names[kind, name]):
            cost.calls += 1
            cost.flops += flops
            cost.bytes += moved
            cost.seconds += seconds
        return out

    def kind_of(self, name: str, given: Sequence[Tensor], made: Sequence[Tensor]) -> str:
        """The kind that an operator is counted under."""
        if "attention" in name:
            return "attention"
        if name in ("mm", "addmm", "bmm", "baddbmm", "convolution", "lora_product"):
            sides = {size for one in given if one.ndim == 2 for size in one.shape}
            return KINDS[1] if self.rank in sides and name != "lora_product" else KINDS[0]
        if name.startswith(NORMS):
            return "norms"
        if name == "_to_copy":
            same = bool(given) and bool(made) and given[0].dtype == made[0].dtype
            return "copies" if same else "casts"
        if name in COPIES:
            return "copies"
        return "sums" if name in SUMS else "elementwise"


def attention_flops(name: str, given: Sequence[Tensor]) -> float:
    """Two products of s x s per head; a backward computes the first again and has four more (FlashAttention)."""
    query = next(one for one in given if one.ndim == 4)
    n, heads, s, width = query.shape
    return (10 if "backward" in name else 4) * n * heads * s * s * width


class Model:
    """FLUX.1-dev with UNO's geometry and the recipe's adapter, of fake tensors."""

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.policy.lora is not None
        self.rank = recipe.policy.lora.rank
        with torch.device("meta"):
            transformer = FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16)  # all else is FLUX.1's
        kind: Any = registry.resolve("policies", registry.type_of(recipe.policy))
        pipeline = SimpleNamespace(transformer=transformer, vae=None)
        self.policy: Policy = kind(pipeline, recipe.policy, device=torch.device("meta"), dtype=torch.bfloat16)
        with patch.object(lora, "base_hash", lambda _: ""):  # such weights have no content
            tuning.attach(self.policy, recipe.policy, 0)
        self.policy.device = torch.device("cpu")
        with FakeTensorMode() as self.fake:  # unlike the meta device's, these know autocast
            for module in transformer.modules():
                for name, one in module._parameters.items():
                    if one is not None:
                        made = torch.empty(one.shape, dtype=one.dtype)
                        module._parameters[name] = torch.nn.Parameter(made, requires_grad=one.requires_grad)
        transformer.disable_gradient_checkpointing()
        apply(
            transformer,
            self.policy.device,
            quantization="none",
            attention=None,
            norms=recipe.policy.norms,
            compile_blocks=False,
        )
        self.objective: Any = GRPO(recipe, self.policy, torch.linspace(1, 0, recipe.sampling.steps + 1))

    def pairs(self, n: int) -> Pairs:
        """n transitions with UNO's conditioning: one reference of the image's size, 512 tokens of text."""
        s, c = self.policy.latent_shape
        cond = Conditioning(
            {
                "text": torch.empty(1, 512, 4096, dtype=torch.bfloat16),
                "pooled": torch.empty(1, 768, dtype=torch.bfloat16),
                "references": torch.empty(1, s, c, dtype=torch.bfloat16),
                "image_ids": torch.empty(1, 2 * s, 3),
            }
        )
        x = torch.empty(n, s, c, dtype=torch.bfloat16)
        at = torch.full((n,), 0.5)
        return Pairs(
            cond=cond, x=x, x_next=x, sigma=at, sigma_next=at - 0.1, sigma_max=torch.tensor(0.9),
            log_prob=torch.zeros(n), advantage=torch.ones(n),
        )  # fmt: skip

    def forward(self, n: int) -> None:
        """As the rollout runs it."""
        pairs = self.pairs(n)
        with torch.no_grad():
            self.policy.velocity(pairs.x, pairs.sigma[0], pairs.cond)

    def replayed(self, n: int) -> None:
        """As the replay runs it, nothing computed again."""
        replay(self.policy, self.objective.transition, self.pairs(n))[0].sum().backward()
        for one in tuning.trainable_parameters(self.policy).values():
            one.grad = None


class Stored(TorchDispatchMode):
    """Bytes of all that was made inside and is still held, the model's weights left out."""

    def __init__(self, model: Model) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {one.untyped_storage()._cdata for one in model.policy.transformer.parameters()}
        self._made = dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and (storage := one.untyped_storage())._cdata not in self._weights:
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def bytes(self) -> int:
        """Now."""
        return sum(size for storage, size in self._made.values() if not storage.expired())


def stored_bytes(model: Model, n: int, share: float, recompute: Literal["all", "cheap"] = "all") -> int:
    """What autograd, and a checkpoint, keep of a forward of n samples until its backward."""
    transformer: Any = model.policy.transformer
    if share:
        checkpoint_blocks(transformer, share, recompute)
    else:
        transformer.disable_gradient_checkpointing()
    with as_on_a_gpu(), Stored(model) as stored:
        held = replay(model.policy, model.objective.transition, model.pairs(n))
    found: int = stored.bytes()
    del held
    transformer.disable_gradient_checkpointing()
    return found


def counted(work: Callable[[], None], rank: int, peak: float, bandwidth: float) -> Counter:
    """What a piece of work costs."""
    counter = Counter(rank, peak, bandwidth)
    with as_on_a_gpu(), counter:
        work()
    return counter


def recipe_of(overrides: Sequence[str]) -> Recipe:
    """The recipe without files."""
    return load_recipe(RECIPE, ["run.dir=unused", "policy.base_lora=null", *overrides])


def model_of(variant: str, overrides: Sequence[str] = ()) -> Model:
    """The model of one of ``VARIANTS``."""
    with ExitStack() as stack:
        for room, name in ((lora_layers, "join_products"), (precision, "cast_once")) if variant == PLAIN else ():
            stack.enter_context(patch.object(room, name, lambda _: None))  # every layer as the libraries have it
        return Model(recipe_of([*VARIANTS[variant], *overrides]))


def measure(
    model: Model, peak: float, bandwidth: float, sizes: Sequence[int] = SIZES
) -> dict[tuple[str, int], Counter]:
    """Costs of both uses at each batch."""
    with model.fake:
        return {
            (use, n): counted(partial(work, n), model.rank, peak, bandwidth)
            for n in sizes
            for use, work in (("forward", model.forward), ("replay", model.replayed))
        }


def total(counter: Counter) -> Cost:
    """Sum over all kinds."""
    every = counter.found.values()
    return Cost(*(sum(getattr(cost, name) for cost in every) for name in Cost.__slots__))


def rows_of(found: Mapping[tuple[str, int], Counter], variant: str) -> list[dict[str, Any]]:
    """A row a use, batch and kind, and their sum."""
    rows = []
    for (use, n), counter in found.items():
        whole = total(counter)
        for kind, cost in [*((kind, counter.found[kind]) for kind in KINDS if kind in counter.found), ("all", whole)]:
            row = {"variant": variant, "use": use, "n": n, "kind": kind, "calls": cost.calls}
            row |= {"tflop": round(cost.flops / 1e12, 4), "gb": round(cost.bytes / 1e9, 3)}
            rows.append(
                row | {"least_ms": round(cost.seconds * 1e3, 3), "share": round(cost.seconds / whole.seconds, 4)}
            )
    return rows


def shown(rows: Sequence[Mapping[str, Any]], use: str, n: int) -> str:
    """One use at one batch, per sample."""
    lines = [
        [
            str(row["kind"]),
            f"{row['calls']:,}",
            f"{row['tflop'] / n:.2f}",
            f"{row['gb'] / n:.1f}",
            f"{row['least_ms'] / n:.1f}",
            f"{row['share']:.0%}",
        ]
        for row in rows
        if row["use"] == use and row["n"] == n
    ]
    return table(["", "operators", "TFLOP a sample", "GB a sample", "ms a sample, at least", "share"], lines)


def gains(rows: Sequence[Mapping[str, Any]], peak: float) -> str:
    """Least times of the variants, what share of the peak that allows, and what was measured."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    took = {
        ("forward", 12): next(row["seconds"] for row in measured["forward"] if row["n"] == 12),
        ("replay", 4): next(row["seconds"] for row in measured["replay"] if (row["n"], row["checkpointed"]) == (4, 0)),
    }
    lines = []
    for use, n in took:
        for variant in VARIANTS:
            row = next(
                one for one in rows if (one["variant"], one["use"], one["n"], one["kind"]) == (variant, use, n, "all")
            )
            bound = row["tflop"] / row["least_ms"] * 1e3 / peak
            seconds = took[use, n] / n * 1e3 if variant == PLAIN else None
            lines.append(
                [
                    f"{use} of {n}",
                    variant,
                    f"{row['gb'] / n:.0f}",
                    f"{row['least_ms'] / n:.1f}",
                    f"{bound:.0%}",
                    "" if seconds is None else f"{seconds:.0f} ms, {row['tflop'] / n / seconds * 1e3 / peak:.0%}",
                ]
            )
    head = ["", "", "GB a sample", "ms a sample, at least", "share of the peak, at most", "measured, H200"]
    return table(head, lines)


def stored_rows(model: Model) -> list[dict[str, Any]]:
    """What a forward of one sample stores in GiB, counted and by the estimate of ``validate``."""
    rows = []
    for norms in ("float32", "half"):
        if norms == "half":
            precision.half_norms(model.policy.transformer)
        for share, recompute in STORED:
            with model.fake:
                found = stored_bytes(model, 1, share, recompute) / GIB
            row = {"norms": norms, "checkpointed": share, "recompute": recompute, "counted": found}
            rows.append(row | {"estimated": estimated(share, recompute, norms) / GIB})
    return rows


def memory(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as a table."""
    lines = []
    for row in rows:
        share = row["checkpointed"]
        what = {0.0: "nothing", 1.0: "all blocks"}.get(share, f"{share:.0%} of the blocks")
        cheap = ", cheap operators" if row["recompute"] == "cheap" else ""
        counted, by_formula = row["counted"], row["estimated"]
        values = (f"{counted:.1f}", f"{by_formula:.1f}", f"{by_formula / counted:.2f}")
        lines.append([f"`{row['norms']}`", f"{what}{cheap}", *values])
    return table(["`policy.norms`", "recomputed", "GiB a sample", "`validate`'s estimate", "estimate / counted"], lines)


def estimated(share: float, recompute: str, norms: str, n: int = 1, *, peak: bool = False) -> int:
    """Bytes that the estimate of ``validate`` says are stored of n samples; or a replay's peak."""
    spec = recipe_of(()).policy
    kind: Any = registry.resolve("policies", spec.type)
    transformer = shapes(spec.source(), kind.encoders).transformer
    trained = trained_of(spec, kind, transformer)
    found = activations(
        transformer, trained.layers, trained.rank, tokens_of(spec, SAMPLE[0]),
        n=n, b=2, checkpointing=share, cheap=recompute == "cheap", half_norms=norms == "half",
    )  # fmt: skip
    return found.stored + (found.working if peak else 0)


def peaks() -> str:
    """Peaks of a replay's memory above what is resident: measured where it was, and by the estimate of ``validate``."""
    measured = {
        (row["n"], row["checkpointed"], row.get("recompute", "all")): row.get("peak_gib")
        for row in json.loads(MEASURED.read_text(encoding="utf-8"))["replay"]
    }
    lines = []
    for n in SIZES:
        for share, recompute in STORED:
            what = {0.0: "nothing", 1.0: "all blocks"}.get(share, f"{share:.0%} of the blocks")
            found = measured.get((n, share, recompute), "not measured")
            shown = "out of memory" if found is None else found if isinstance(found, str) else f"**{found:.1f}**"
            own, half = (estimated(share, recompute, norms, n, peak=True) / GIB for norms in ("float32", "half"))
            cheap = ", cheap operators" if recompute == "cheap" else ""
            lines.append([str(n), f"{what}{cheap}", shown, f"{own:.1f}", f"{half:.1f}"])
    return table(["samples", "recomputed", "measured, H200", "estimate", "estimate with `policy.norms: half`"], lines)


def overlapped() -> str:
    """What ``overlap.py`` found."""
    rows = json.loads((RESULTS / "overlap.json").read_text(encoding="utf-8"))["rows"]
    lines = []
    for plain, ahead in zip(rows[::2], rows[1::2], strict=True):
        lines.append(
            [
                f"{plain['wait_s']:g} s",
                *(f"{row['groups_a_second']:.2f}" for row in (plain, ahead)),
                f"{ahead['groups_a_second'] / plain['groups_a_second']:.2f}",
                f"{ahead['adapter_differs']:.1g}",
            ]
        )
    head = ["wait a group", "groups a second", "one update ahead", "ratio", "adapter's difference to no wait"]
    return table(head, lines)


def scaled() -> str:
    """What ``scaling.py`` found of processes."""
    found = json.loads((RESULTS / "scaling_ranks.json").read_text(encoding="utf-8"))["groups_a_second"]
    one = found["1"]
    lines = [[ranks, f"{rate:.3f}", f"{rate / one / int(ranks):.2f}"] for ranks, rate in found.items()]
    return table(["processes", "groups a second", "of the ideal"], lines)


def main(arguments: Sequence[str]) -> None:
    """Count, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=PEAK, help="TFLOP/s of a large product in bfloat16")
    parser.add_argument("--bandwidth", type=float, default=BANDWIDTH, help="TB/s of the card's memory")
    parser.add_argument("--names", action="store_true", help="also every operator by its name")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="samples in a forward")
    parser.add_argument("--json", type=Path, help="all counts alone, to this file")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("overrides", nargs="*", help="key.sub=value of the recipe")
    given = parser.parse_args(arguments)
    rows = []
    for variant in VARIANTS:
        found = measure(model_of(variant, given.overrides), given.peak, given.bandwidth, given.sizes)
        rows += rows_of(found, variant)
        for (use, n), counter in found.items() if given.names else ():
            sys.stdout.write(f"\n{use} of {n}, {variant}\n")
            for (kind, name), cost in sorted(counter.names.items(), key=lambda one: -one[1].seconds):
                sys.stdout.write(f"{kind}: {name} {cost.calls} {cost.bytes / 1e9:.2f} GB {cost.seconds * 1e3:.2f} ms\n")
    stored = stored_rows(model_of(NOW, given.overrides))
    if given.json is not None:
        given.json.write_text(json.dumps({"costs": rows, "stored": stored}, indent=1) + "\n", encoding="utf-8")
        return
    now = [row for row in rows if row["variant"] == NOW]
    parts = {use: shown(now, use, n) for use, n in (("forward", 12), ("replay", 4))}
    parts |= {"gains": gains(rows, given.peak), "stored": memory(stored)}
    parts |= {"overlap": overlapped(), "scaling": scaled()}
    for name, part in parts.items():
        sys.stdout.write(f"\n{name}\n{part}\n")
    if given.write:
        write_table(RESULT, list(rows[0]), rows)
        text = PAGE.read_text(encoding="utf-8")
        for name, part in parts.items():
            text = put(text, name, part)
        PAGE.write_text(text, encoding="utf-8")
        MEMORY.write_text(put(MEMORY.read_text(encoding="utf-8"), "peaks", peaks()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
