"""Export of a trained adapter to the formats of other code, as in ``customized-grpo export``.

A file without the base's own LoRA (``policy.base_lora``) belongs on a base that has it; ``with_base`` makes one file of
both, for the stock model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from customized_grpo.atomic import readable
from customized_grpo.identity.private import public
from customized_grpo.policies.adapters import tuning, uno_lora
from customized_grpo.policies.adapters.base_lora import read_base_lora
from customized_grpo.policies.adapters.flux_keys import to_original
from customized_grpo.policies.adapters.full import TransformerFolder
from customized_grpo.policies.adapters.hashes import base_hash, update_hash
from customized_grpo.policies.adapters.lora_files import HEADER, RECIPE, WEIGHTS_NAME, write_update
from customized_grpo.policies.adapters.lora_reader import LoraFile
from customized_grpo.policies.adapters.low_rank import Factors, fuse, joined
from customized_grpo.policies.adapters.tensor_files import write_tensors
from customized_grpo.policies.balance import BALANCE
from customized_grpo.policies.base import NO_LORA, load_policy
from customized_grpo.policies.flux_base import Flux
from customized_grpo.policies.flux_loading import FluxConfig, original_keys
from customized_grpo.policies.pipeline_policy import PipelinePolicy
from customized_grpo.policies.pipelines import PipelineConfig, empty_transformer
from customized_grpo.recipe.config import EvaluateRecipe, Recipe

Format = Literal["diffusers", "uno", "model", "original"]
ORIGINAL_NAME = "transformer.safetensors"


def export(
    adapter: str,
    out: Path,
    form: Format,
    *,
    with_base: bool,
    recipe: Recipe | EvaluateRecipe | None,
    balance: float | None = None,
) -> Path:
    """Write an adapter, or its model, into a new folder.

    Args:
        adapter: a run, a checkpoint, an adapter's folder or file, or a transformer's folder.
        out: the folder, new or empty.
        form: ``diffusers`` and ``uno`` are LoRA files; ``model`` is a whole pipeline in diffusers' layout and
            ``original`` one file in Black Forest Labs' format, both with every LoRA fused in.
        with_base: join the recipe's base LoRA and the adapter into one file, their ranks one after another.
        recipe: the adapter's training recipe; not needed for ``diffusers`` and ``uno`` without the base, where the
            adapter's layers have diffusers' names.
        balance: b of a balanced adapter, whose ranks then stand one after another, which is exact; None: dW_0.

    Returns:
        The file or folder that was written.

    Raises:
        ValueError: no such adapter, it has no such form, it is of another base, or ``out`` is taken.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"--out: {out} is taken; give a new or empty folder")
    file = tuning.read(adapter)
    if balance is not None:
        file = tuning.at_balance(file, balance)
    if form in ("model", "original"):
        assert recipe is not None
        config = _pipeline_policy(recipe, f"--format {form}")
        if form == "original" and not isinstance(config, FluxConfig):
            raise ValueError(
                f"--format original: it is Black Forest Labs' format of FLUX.1 (uno, flux-kontext), and the recipe's "
                f"policy is {config.type!r}; use --format model"
            )
        return _write_model(file, out, form, config, recipe.run.precision)
    if isinstance(file, TransformerFolder):
        raise ValueError(
            f"{file.path} is a transformer that was trained in full, and no LoRA; use --format model or original, or "
            "open the folder by diffusers as it is"
        )
    update, about = lora_of(file, with_base=with_base, recipe=recipe)
    about = _public(about) | {"exported_from": _place(file.path)}
    if balance is not None:
        about[BALANCE] = f"{balance:g}"
    if form == "uno":
        target = out / uno_lora.FILE_NAME
        write_tensors(target, uno_lora.to_uno(update), about)
        return target
    return write_update(out / WEIGHTS_NAME, update, about)


def _public(about: Mapping[str, str]) -> dict[str, str]:
    """A header without paths of this machine, the recipe's in it included."""
    found = {name: public(text) for name, text in about.items() if name != RECIPE}
    if RECIPE in about:
        found[RECIPE] = json.dumps(public(json.loads(about[RECIPE])), separators=(",", ":"))
    return found


def _place(path: str | Path) -> str:
    """Where an adapter came from: from its run's folder on, where it lies in one, else its file's name."""
    parts = Path(path).resolve().parts
    if "checkpoints" not in parts:
        return parts[-1]
    return "/".join(parts[max(1, parts.index("checkpoints") - 1) :])


def lora_of(
    file: LoraFile, *, with_base: bool, recipe: Recipe | EvaluateRecipe | None
) -> tuple[dict[str, Factors], dict[str, str]]:
    """An adapter's update by diffusers' names, and what its file's header says beside its configuration.

    Args:
        file: the adapter.
        with_base: join the recipe's base LoRA and the adapter, their ranks one after another.
        recipe: says the model where layers have another tool's names, and the base LoRA.

    Raises:
        ValueError: it is of another base, or there is no base LoRA to join.
    """
    update = file.by_its_names() if recipe is None else _by_the_model(file, recipe)
    about = {name: text for name, text in file.metadata.items() if name != HEADER}
    if with_base:
        beneath = _base_update(_pipeline_policy(recipe, "--with-base"))
        file.check_base_lora(update_hash(beneath))
        update = joined(beneath, update)
        about |= {"holds": "policy.base_lora and the adapter, for the stock base", "base_lora": NO_LORA}
    return update, about


def _pipeline_policy(recipe: Recipe | EvaluateRecipe | None, what: str) -> PipelineConfig:
    assert recipe is not None
    if not isinstance(recipe.policy, PipelineConfig):
        raise ValueError(
            f"{what}: it is for policies on a pipeline of diffusers, and the recipe's is {recipe.policy.type!r}; leave "
            "it out"
        )
    return recipe.policy


def _by_the_model(file: LoraFile, recipe: Recipe | EvaluateRecipe) -> dict[str, Factors]:
    """The update of a file whose layers a model names, without that model's weights."""
    if not isinstance(recipe.policy, PipelineConfig):
        return file.by_its_names()
    return file.update(empty_transformer(recipe.policy))


def _base_update(config: PipelineConfig) -> dict[str, Factors]:
    if config.base_lora is None:
        raise ValueError("--with-base: the recipe has no policy.base_lora, so the adapter is all there is")
    offline = isinstance(config, FluxConfig) and config.offline
    return read_base_lora(empty_transformer(config, offline=offline), config.base_lora, offline=offline)[1]


def _write_model(
    file: tuning.Tuned, out: Path, form: str, config: PipelineConfig, precision: Literal["no", "bf16"]
) -> Path:
    """Fuse both LoRAs at once, to round the weights once; a fully trained transformer already has the base's."""
    bare = config.model_copy(update={"base_lora": None, "quantization": "none"})  # quantized weights can't be fused
    policy = load_policy(bare, device=torch.device("cpu"), precision=precision)
    assert isinstance(policy, Flux | PipelinePolicy)
    if isinstance(file, TransformerFolder):
        tuning.apply(policy, file)
    else:
        beneath = {} if config.base_lora is None else _base_update(config)
        file.check_base(base_hash(policy.transformer), update_hash(beneath) if beneath else NO_LORA)
        fuse(policy.transformer, joined(beneath, file.update(policy.transformer)))
    if form == "model":
        policy.save_pipeline(out)
        readable(out)
        return out
    state = to_original(policy.transformer.state_dict(), original_keys(policy.transformer))
    about = {"format": "pt", "base_model": public(config.model), "fused": _place(file.path)}
    write_tensors(out / ORIGINAL_NAME, state, about)
    return out / ORIGINAL_NAME
