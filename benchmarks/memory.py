"""What a replay keeps in memory against the estimate of ``validate``, by micro-batch and share of checkpointed blocks.

    python benchmarks/memory.py [--recipe mini_customized] [--json FILE] [key.sub=value ...]

On a CPU: bytes of all storages that autograd keeps of one forward (``saved_tensors_hooks``), weights left out, against
the estimate's stored activations. On a GPU, too: the peak of a forward and backward above what was allocated before, by
torch's own count, against stored and working activations together.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from customized_grpo import registry
from customized_grpo.memory.estimate import Activations, Tokens, activations
from customized_grpo.memory.footprint import shapes
from customized_grpo.memory.parameters import adapted
from customized_grpo.policies.checkpointing import checkpoint_blocks
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.training.parts import Parts
from customized_grpo.training.replay import Pairs, micro_batches
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from customized_grpo.types import Trajectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
SIZES = (1, 4, 12, 60)
SHARES = (0.0, 0.5, 1.0)


def tokens_of(group: Trajectory) -> Tokens:
    """Of one sample as it is, references included."""
    cond = group.cond.tensors
    references = cond["references"].shape[1] if "references" in cond else 0
    return Tokens(image=group.x.shape[2] + references, text=cond["text"].shape[1])


def estimated(parts: Parts, tokens: Tokens, n: int, share: float) -> Activations:
    """By the formulas of ``validate``, on this model."""
    policy: Any = parts.recipe.policy
    kind: Any = registry.resolve("policies", registry.type_of(policy))
    bare = shapes(policy.source(), kind.encoders).transformer  # without the adapter, as validate sees it
    targets = [
        pattern
        for target in policy.lora.targets or kind.lora_targets
        for pattern in kind.lora_presets.get(target, (target,))
    ]
    b = 2 if parts.policy.dtype == torch.bfloat16 else 4
    layers, rank = adapted(bare, targets), policy.lora.rank
    return activations(bare, layers, rank, tokens, n=n, b=b, checkpointing=share)


def peak_bytes(parts: Parts, pairs: Pairs) -> int:
    """Of a GPU, in a forward and backward, above what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    parts.objective.loss(pairs, on_policy=True).loss.backward()
    torch.cuda.synchronize()
    found = torch.cuda.max_memory_allocated() - before
    for one in parts.parameters.values():
        one.grad = None
    return found


def measure(recipe: str, overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row a micro-batch and share."""
    from autograd_memory import kept_bytes

    with tempfile.TemporaryDirectory() as folder:
        quiet = [f"run.dir={folder}/run", "train.evaluate_every=0", "train.groups_per_step=1"]
        trainer = Trainer(build(load_recipe(recipe, [*quiet, *overrides])))
        parts = trainer.parts
        group = trainer.sample(0, *trainer.assignments(0)[0])
        assert isinstance(group, Trajectory)
        ones = torch.ones_like(group.log_prob)
        tokens = tokens_of(group)
        for size in SIZES:
            pairs = next(micro_batches([group], [ones], range(len(group.x)), size))
            for share in SHARES:
                checkpoint_blocks(parts.accelerator.unwrap_model(parts.policy.transformer), share)
                found = estimated(parts, tokens, len(pairs.x), share)
                row: dict[str, Any] = {
                    "pairs": len(pairs.x),
                    "checkpointed": share,
                    "estimated": found.stored,
                }
                row["kept"] = kept_bytes(parts.policy.transformer, partial(parts.objective.loss, pairs, on_policy=True))
                row["ratio"] = found.stored / row["kept"]
                if torch.cuda.is_available():
                    row["peak"] = peak_bytes(parts, pairs)
                    row["peak_ratio"] = (found.stored + found.working) / row["peak"]
                yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mini_customized")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    found = []
    for row in measure(args.recipe, args.overrides):
        found.append(row)
        print(
            f"{row['pairs']:>3} pairs, {row['checkpointed']:>4.0%} checkpointed: kept {row['kept'] / 2**20:8.2f} MiB, "
            f"estimated {row['estimated'] / 2**20:8.2f} MiB, estimate / kept {row['ratio']:.3f}"
            + (f", of the GPU's peak {row['peak_ratio']:.3f}" if "peak" in row else "")
        )
    if args.json is not None:
        machine = {"platform": platform.platform(), "torch": torch.__version__}
        about = {"recipe": args.recipe, "overrides": args.overrides, "machine": machine, "rows": found}
        args.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
