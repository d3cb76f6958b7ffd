"""Held-out generation and scoring of a policy, during training and by the command.

Every image has its own noise, a function of the evaluation's seed and the image's global index, so the result does not
depend on the number of processes or on what was evaluated before. Dimensions: S latent tokens, C latent channels.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

from customized_grpo.atomic import held
from customized_grpo.conditioning.opening import Process, open_policy
from customized_grpo.console import RANK, OnProgress, err, say
from customized_grpo.data.base import Dataset, load_dataset
from customized_grpo.data.content import hash_files
from customized_grpo.devices import device_name, leave_group_of_one, open_device
from customized_grpo.evaluation import about
from customized_grpo.evaluation.baselines import NO_IDENTITY, RealPhotos, identity_metrics, reference_copy
from customized_grpo.evaluation.blocks import block_of, encoded_examples, num_examples
from customized_grpo.evaluation.costs import METRICS, announced
from customized_grpo.evaluation.items import Site, evaluate_images, quiet
from customized_grpo.evaluation.metrics import AnyMetric, build_metrics
from customized_grpo.evaluation.precheck import check_held_out
from customized_grpo.evaluation.protocols import Protocol, find_protocol
from customized_grpo.evaluation.settings import settings_of
from customized_grpo.evaluation.summary import Row
from customized_grpo.evaluation.tables import summarize
from customized_grpo.identity.hashes import HASHES, FileHashes, meanwhile
from customized_grpo.identity.runs import named
from customized_grpo.policies.adapters import other_base, tuning
from customized_grpo.policies.base import Policy, stack
from customized_grpo.policies.identity import base_identity
from customized_grpo.recipe.config import Evaluate, EvaluateRecipe, EvaluateSampling, Sampling
from customized_grpo.recipe.drawn import Buckets
from customized_grpo.recipe.loading import save_recipe
from customized_grpo.recipe.sections import PolicySpec
from customized_grpo.rewards.base import begin, close
from customized_grpo.sampling.rollout import sample_images
from customized_grpo.sampling.schedule import sigma_grid
from customized_grpo.scoring.trial import ask_first
from customized_grpo.seeding import generator
from customized_grpo.types import Conditioning, Example


@torch.no_grad()
def evaluate_policy(
    policy: Policy,
    dataset: Dataset,
    metrics: Mapping[str, AnyMetric],
    spec: Evaluate,
    site: Site,
    label: str,
    *,
    sigmas: Float[Tensor, " t_plus_1"],
    weights: str,
    encode: Callable[[Example], Conditioning],
) -> list[Row]:
    """Generate at fixed seeds by the deterministic sampler, score, and write rows and images into ``site``'s folder.

    Args:
        weights: identifies the policy's weights, as ``tuning.apply`` does. Finished rows with the same weights, recipe
            and sampler are kept; all others are generated again.
        encode: makes the conditioning of an example; the caller may cache it.

    Returns:
        All ranks' rows, ordered by example and image; see ``summary.Row``.

    Raises:
        ValueError: the data lacks what the protocol needs.
    """
    block = block_of(spec)
    drawn: dict[int, Tensor] = {}

    def draw(index: int, example: Example) -> Tensor:
        """The example's images; its whole block is generated, in one batch if the conditioning can be stacked."""
        if index not in drawn:
            drawn.clear()
            first = index // block * block
            # Also beyond spec.limit, which must not change a batch and so the last bits of its images.
            members = range(first, min(first + block, len(dataset)))
            conds = [encode(dataset[i]) for i in members]
            noise = [_noise(policy, spec, i) for i in members]
            together = stack(policy, conds, spec.images_per_prompt) if block > 1 else None
            if together is not None:
                images = sample_images(policy, together, torch.cat(noise), sigmas).split(spec.images_per_prompt)
            else:
                images = tuple(
                    torch.cat([sample_images(policy, cond, batch, sigmas) for batch in one.split(spec.batch)])
                    for cond, one in zip(conds, noise, strict=True)
                )
            drawn.update(zip(members, images, strict=True))
        return drawn[index]

    made_by = {"weights": weights, "sigmas": sigmas.tolist(), "dtype": str(policy.dtype)}
    return evaluate_images(
        draw,
        dataset,
        metrics,
        spec,
        site,
        label,
        made_by=made_by,
        judged=find_protocol(spec.protocol).judged,
        total=num_examples(dataset, spec),
        block=block,
    )


def noise_levels(
    policy: PolicySpec, sampling: EvaluateSampling | Sampling, spec: Evaluate, num_tokens: int
) -> Float[Tensor, " t_plus_1"]:
    """Noise levels of an evaluation's sampler; ``spec.steps`` overrides the training's number of steps."""
    return sigma_grid(policy, sampling.shift, spec.steps or sampling.steps, num_tokens)


def _noise(policy: Policy, spec: Evaluate, index: int) -> Float[Tensor, "n s c"]:
    """Initial noise of an example's images, each seeded by its global index alone."""
    first = index * spec.images_per_prompt
    return torch.stack(
        [
            torch.randn(policy.latent_shape, generator=generator(spec.seed, "evaluate", 0, first + i))
            for i in range(spec.images_per_prompt)
        ]
    )


def evaluate(recipe: EvaluateRecipe, *, progress: OnProgress = quiet) -> Path:
    """Evaluate real photos, the copied reference, the base and any adapter into ``run.dir``; returns that folder.

    The folder may hold an earlier, unfinished evaluation: rows of the same weights and recipe are kept.

    Raises:
        ValueError: ``run.dir`` is a file or a training run, the adapter does not fit, or the device does not exist.
    """
    protocol = find_protocol(recipe.evaluate.protocol)
    folder = _folder(recipe)
    with held(folder) if RANK == 0 else nullcontext(), ExitStack() as until_end:
        return _evaluate(recipe, protocol, folder, progress, until_end)


def _evaluate(
    recipe: EvaluateRecipe, protocol: Protocol, folder: Path, progress: OnProgress, until_end: ExitStack
) -> Path:
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    on_cpu = open_device(recipe.run.device).type == "cpu"
    state = PartialState(cpu=on_cpu, timeout=timedelta(seconds=recipe.run.timeout_s))
    until_end.callback(leave_group_of_one)
    settings = recipe.evaluated
    tuned = tuning.read_all(recipe.lora or [], recipe.balance)
    if recipe.base is not None:
        other_base.check_adapters(tuned)
    spec = recipe.evaluate
    dataset = load_dataset(spec.data, "evaluate.data")
    total = num_examples(dataset, spec)
    # Unsuitable data should stop this before models are loaded.
    check_held_out(settings, spec, dataset, download=True)
    if state.is_main_process:
        for notice in announced(recipe, total):
            say(notice, on=err)
    if state.is_main_process and recipe.run.ask_first:
        for notice in ask_first(spec.metrics, run=partial(named, folder), place=METRICS):
            say(notice, on=err)
    site = Site(
        folder=folder / "evaluation",
        rank=state.process_index,
        world=state.num_processes,
        gather=gather_object,
        progress=progress,
        hashes=FileHashes(folder / "evaluation" / HASHES),
    )
    until_end.callback(site.hashes.stop)
    with meanwhile(
        lambda: base_identity(settings, site.hashes), lambda: hash_files(dataset, range(total), site.hashes)
    ):
        with other_base.explained(recipe.base, recipe.policy):
            policy, encode = open_policy(
                Buckets((settings,)),
                recipe.run.cache,
                lambda: [(dataset, index) for index in encoded_examples(dataset, spec)],
                Process.of(state, recipe.run.precision, progress),
            )
        metrics = build_metrics(spec.metrics, state.device)
        until_end.callback(close, metrics)
    base = base_identity(settings, site.hashes)
    if state.is_main_process:
        save_recipe(recipe, folder / "config.yaml")
        about.note(folder, device=device_name(state.device), processes=state.num_processes)
        if recipe.base is not None:
            steps = spec.steps or recipe.sampling.steps
            for notice in other_base.notices(tuned, policy, recipe.policy, settings, steps=steps):
                say(notice, style="yellow", on=err)
    begin(metrics, gather_object([named(folder) if state.is_main_process else ""])[0], METRICS)

    sigmas = noise_levels(settings, recipe.sampling, spec, policy.latent_shape[0])

    measured = partial(evaluate_policy, policy, dataset, metrics, spec, site, sigmas=sigmas, encode=encode)
    rows: dict[str, list[Row]] = {}
    photos = RealPhotos(dataset, total, protocol)
    identity = identity_metrics(metrics, spec.metrics)
    if len(photos) and identity:
        rows["real_photos"] = evaluate_images(
            photos.draw,
            photos,
            identity,
            spec.model_copy(update={"products": {}}),
            site,
            "real_photos",
            made_by={"photos": protocol.references},
            judged=lambda example: example,
            total=len(photos),
        )
    rows["copy_reference"] = evaluate_images(
        lambda index, example: reference_copy(example, settings.height, settings.width),
        dataset,
        metrics,
        spec,
        site,
        "copy_reference",
        made_by={"copies": [settings.height, settings.width]},
        judged=protocol.judged,
        total=total,
    )
    rows["base"] = measured("base", weights=base)
    if tuned:
        with other_base.explained(recipe.base, recipe.policy):
            update = tuning.apply_all(policy, tuned, other_base=recipe.base is not None)
        rows["tuned"] = measured("tuned", weights=base + update)
    if state.is_main_process:
        made = settings_of(settings, recipe.sampling, spec, total)
        absent = {} if "real_photos" in rows else {"real_photos": photos.absent if identity else NO_IDENTITY}
        summarize(site.folder, spec.protocol, rows, made, absent)
    state.wait_for_everyone()
    return folder


def _folder(recipe: EvaluateRecipe) -> Path:
    spec = recipe.policy
    for key, section in {"lora": spec.lora, "full": spec.full}.items():
        if section is not None and section.path is not None:
            raise ValueError(f"policy.{key}.path is where a training starts; give what is to be evaluated as lora=...")
    folder = Path(recipe.run.dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run.dir: {folder} is a file; give a folder")
    if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
        raise ValueError(f"run.dir: {folder} is a training run; give the evaluation a folder of its own (run.dir=...)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run.dir: {folder} can't be made ({error.strerror}); give another") from error
    return folder
