"""Held-out generation and scoring of a policy, during training and by the command.

Every image has its own noise, a function of the evaluation's seed and the image's global index, so the result does not
depend on the number of processes or on what was evaluated before. Dimensions: S latent tokens, C latent channels.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor, nn

from customized_grpo.config import Evaluate, EvaluateRecipe
from customized_grpo.data.base import Dataset, load_dataset
from customized_grpo.evaluation.items import Gather, Progress, alone, evaluate_images, quiet, reference_copies
from customized_grpo.evaluation.metrics import Scorer, build_metrics
from customized_grpo.evaluation.summary import Row, summarize
from customized_grpo.loading import save_recipe
from customized_grpo.policies import lora
from customized_grpo.policies.base import Policy, load_policy, runs_on_cpu, stack
from customized_grpo.sampling.rollout import generate
from customized_grpo.sampling.schedule import shifted_sigmas
from customized_grpo.seeding import generator
from customized_grpo.types import Conditioning, Example

__all__ = ["adapter_fingerprint", "evaluate", "evaluate_policy", "summarize"]


def adapter_fingerprint(module: nn.Module) -> str:
    """A hash of the module's LoRA weights, by name; the same for every module without any."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if "lora_" in name:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def evaluate_policy(
    policy: Policy,
    dataset: Dataset,
    metrics: Mapping[str, Scorer],
    spec: Evaluate,
    *,
    steps: int,
    shift: float,
    weights: str,
    rank: int,
    world: int,
    folder: Path,
    label: str,
    gather: Gather = alone,
    encode: Callable[[Example], Conditioning],
    progress: Progress = quiet,
) -> list[Row]:
    """Generate at fixed seeds by the deterministic sampler, score, and write ``folder/<label>.jsonl`` and images.

    Args:
        steps, shift: of the sampler; ``spec.steps`` goes before ``steps``.
        weights: names the policy's weights, as ``adapter_fingerprint`` does: finished rows of the same weights, recipe
            and sampler are kept, all others are made anew.
        folder: the run's ``evaluation`` folder, the same on all ranks.
        encode: conditioning of an example; the caller may cache it.

    Returns:
        All ranks' rows, ordered by example and image; see ``summary.Row``.
    """
    steps = spec.steps or steps
    sigmas = shifted_sigmas(steps, shift)
    block = max(1, spec.batch // spec.images_per_prompt)
    drawn: dict[int, Tensor] = {}

    def draw(index: int, example: Example) -> Tensor:
        """The example's images; those of its block are made along, in one batch where conditioning can be stacked."""
        if index not in drawn:
            drawn.clear()
            first = index // block * block
            # Also beyond spec.limit: the limit must not change a batch, and so the last bits of what is in it.
            members = range(first, min(first + block, len(dataset)))
            conds = [encode(dataset[i]) for i in members]
            noise = [_noise(policy, spec, i) for i in members]
            together = stack(policy, conds, spec.images_per_prompt) if block > 1 else None
            if together is not None:
                images = generate(policy, together, torch.cat(noise), sigmas).split(spec.images_per_prompt)
            else:
                images = tuple(
                    torch.cat([generate(policy, cond, batch, sigmas) for batch in one.split(spec.batch)])
                    for cond, one in zip(conds, noise, strict=True)
                )
            drawn.update(zip(members, images, strict=True))
        return drawn[index]

    made_by = {"weights": weights, "steps": steps, "shift": shift, "dtype": str(policy.dtype)}
    return evaluate_images(
        draw,
        dataset,
        metrics,
        spec,
        made_by=made_by,
        rank=rank,
        world=world,
        folder=folder,
        label=label,
        block=block,
        gather=gather,
        progress=progress,
    )


def _noise(policy: Policy, spec: Evaluate, index: int) -> Float[Tensor, "n s c"]:
    """Initial noise of an example's images: image i of example e draws from its global index alone."""
    first = index * spec.images_per_prompt
    return torch.stack(
        [
            torch.randn(policy.latent_shape, generator=generator(spec.seed, "evaluate", 0, first + i))
            for i in range(spec.images_per_prompt)
        ]
    )


def evaluate(recipe: EvaluateRecipe, *, progress: Progress = quiet) -> Path:
    """Evaluate the base, the adapter on it if there is one, and the copied reference, into ``run.dir``.

    The folder may hold an earlier, unfinished evaluation: rows that the same weights and recipe made are kept.

    Returns:
        The run's folder, with ``config.yaml`` and ``evaluation/`` (``summary.json``, ``summary.md``, rows, pictures).

    Raises:
        ValueError: ``run.dir`` is a file or a training run, the adapter does not fit, or the device is not there.
    """
    folder = _folder(recipe)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    state = PartialState(cpu=runs_on_cpu(recipe.run.device))
    if recipe.run.device == "cuda" and state.device.type != "cuda":
        raise ValueError(
            "run.device: 'cuda' was asked for but torch finds no GPU; use run.device=auto or cpu"
        )
    settings: Any = recipe.policy
    adapter = lora.read_adapter(recipe.lora) if recipe.lora is not None else None
    spec = recipe.evaluate
    policy = load_policy(recipe.policy, device=state.device, precision=recipe.run.precision)
    dataset = load_dataset(spec.data, "evaluate.data")
    metrics = build_metrics(spec.metrics, state.device)
    base = hashlib.sha256(json.dumps(settings.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[
        :16
    ]
    output = folder / "evaluation"
    rank, world = state.process_index, state.num_processes
    if state.is_main_process:
        save_recipe(recipe, folder / "config.yaml")

    def measured(label: str, weights: str) -> list[Row]:
        return evaluate_policy(
            policy,
            dataset,
            metrics,
            spec,
            steps=recipe.sampling.steps,
            shift=recipe.sampling.shift,
            weights=weights,
            rank=rank,
            world=world,
            folder=output,
            label=label,
            gather=gather_object,
            encode=lambda example: policy.encode(example.prompt, example.references),
            progress=progress,
        )

    rows = {"base": measured("base", base)}
    if adapter is not None:
        lora.attach(policy, adapter.settings(), recipe.run.seed)
        rows["tuned"] = measured("tuned", base + adapter_fingerprint(policy.transformer))
    copies = reference_copies(settings.height, settings.width)
    rows["copy_reference"] = evaluate_images(
        copies,
        dataset,
        metrics,
        spec,
        made_by={"copies": [settings.height, settings.width]},
        rank=rank,
        world=world,
        folder=output,
        label="copy_reference",
        gather=gather_object,
        progress=progress,
    )
    if state.is_main_process:
        summarize(output, spec.protocol, rows)
    state.wait_for_everyone()
    return folder


def _folder(recipe: EvaluateRecipe) -> Path:
    spec: Any = recipe.policy
    if spec.lora.path is not None:
        raise ValueError(
            "policy.lora.path is where a training starts; give the adapter to evaluate as lora=..."
        )
    folder = Path(recipe.run.dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run.dir: {folder} is a file; give a folder")
    if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
        raise ValueError(
            f"run.dir: {folder} is a training run; give the evaluation a folder of its own (run.dir=...)"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run.dir: {folder} can't be made ({error.strerror}); give another") from error
    return folder
