"""Full fine-tuning: the transformer's own weights are trained, and saved in diffusers' format.

Trained weights are float32 whatever the model's dtype, because an update is often smaller than a bfloat16 weight's
last bit; autocast rounds them again in every forward. The exported model has the model's dtype.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from customized_grpo.atomic import readable
from customized_grpo.identity.hashes import file_hash
from customized_grpo.paths import matching
from customized_grpo.policies.acceleration import is_quantized
from customized_grpo.policies.adapters.hashes import base_hash
from customized_grpo.policies.adapters.lora_files import newest_complete
from customized_grpo.policies.adapters.low_rank import mismatch
from customized_grpo.policies.adapters.sharding import reshard
from customized_grpo.policies.adapters.tensor_files import read_tensors
from customized_grpo.policies.base import FullSettings, Policy
from customized_grpo.weights import shown

FOLDER: Final = "transformer"
"""Folder name in a checkpoint, as in a pipeline's layout."""
_CONFIG: Final = "config.json"
_WEIGHTS: Final = "diffusion_pytorch_model{suffix}.safetensors"
_WRITTEN: Final = _WEIGHTS.format(suffix="*")
"""Other files beside a config.json, such as a LoRA's, are no transformer's."""


@dataclass(frozen=True, slots=True)
class TransformerFolder:
    """A transformer on disk in diffusers' layout."""

    path: Path

    @property
    def files(self) -> list[Path]:
        """Its safetensors files."""
        return matching(self.path, _WRITTEN)

    def fingerprint(self) -> str:
        """A hash of its weights' files."""
        digest = sha256()
        for file in self.files:
            digest.update(bytes.fromhex(file_hash(file)))
        return digest.hexdigest()[:16]


def find(path: str | Path) -> TransformerFolder | None:
    """The transformer that a folder of one, a checkpoint, a pipeline or a run (its newest checkpoint) stands for.

    Returns:
        None where there is none, as in a run that trained an adapter.
    """
    given = Path(path).expanduser()
    for folder in (given, given / FOLDER):
        if (folder / _CONFIG).is_file() and matching(folder, _WRITTEN):
            return TransformerFolder(folder)
    newest = newest_complete(given, f"{FOLDER}/{_CONFIG}")
    return None if newest is None else TransformerFolder(newest.parent)


def attach(policy: Policy, settings: FullSettings, *, keep_base: bool) -> None:
    """Unfreeze the targets, in float32, and load ``settings.path`` into the model where it is given.

    Args:
        policy: without an adapter, and not yet wrapped for several processes.
        settings: what is trained, and from where it starts.
        keep_base: remember what the trained weights were before, for ``exchanged``.

    Raises:
        ValueError: a target that nothing matches, a transformer that diffusers can't save, or a file that doesn't fit.
    """
    from diffusers import ModelMixin

    transformer = policy.transformer
    if not isinstance(transformer, ModelMixin):
        raise ValueError(
            f"policy.full: it is saved as diffusers saves a model, and a {type(transformer).__name__} is none; train "
            "an adapter (policy.lora)"
        )
    policy.base_hash = base_hash(transformer)
    transformer.requires_grad_(False)
    named = dict(transformer.named_parameters())
    names = [name for name, one in named.items() if one.is_floating_point()]
    for name in trained_names(names, settings, policy.idle(transformer)):
        named[name].data = named[name].data.float()
        named[name].requires_grad_(True)
    if policy.dtype != torch.float32:
        _norm_in_float32(transformer)
    if keep_base:
        policy.base_weights = {n: p.detach().clone() for n, p in named.items() if p.requires_grad}
    if settings.path is not None:
        idle = {name for pattern in policy.idle(transformer) for name in _find(names, pattern)}
        frozen = [name for name in names if not named[name].requires_grad and name not in idle]
        load(policy, start(settings.path), fixed=frozen if keep_base else ())


def start(path: str) -> TransformerFolder:
    """The transformer of ``policy.full.path``.

    Raises:
        ValueError: there is none.
    """
    folder = find(path)
    if folder is None:
        raise ValueError(
            f"policy.full.path: there is no transformer in diffusers' layout at {path!r}; give a run or a checkpoint "
            f"of full fine-tuning, or a folder with {_CONFIG} and {_WRITTEN} (a LoRA is policy.lora.path)"
        )
    return folder


def trained_names(names: Sequence[str], settings: FullSettings, idle: Sequence[str]) -> set[str]:
    """Those of a transformer's parameters that are trained: the targets without what is idle.

    Raises:
        ValueError: a target that nothing matches.
    """
    chosen = {name for target in settings.targets or (".*",) for name in _matching(names, target)}
    return chosen - {name for pattern in idle for name in _find(names, pattern)}


def _norm_in_float32(transformer: nn.Module) -> None:
    """Give norms with trained weights an input of these weights' dtype, and the next layer what it would have had.

    autocast doesn't look at them: torch would warn and leave its fused kernel, and diffusers' would hand float32
    queries on to an attention that has bfloat16 values. FLUX.3 gives its norms float32, and rotates the result so.
    """
    from diffusers.models.normalization import RMSNorm

    for module in transformer.modules():
        if isinstance(module, nn.RMSNorm | RMSNorm) and module.weight is not None and module.weight.requires_grad:
            _around(module)


def _around(norm: nn.Module) -> None:
    given = torch.float32

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal given
        given = args[0].dtype
        return args[0].float(), *args[1:]

    norm.register_forward_pre_hook(before)
    norm.register_forward_hook(lambda _, __, output: output.to(given))


def _find(names: Sequence[str], pattern: str) -> list[str]:
    """Names of parameters that a pattern matches: all of a name, its end after a dot, or a module that it is in."""
    compiled = re.compile(rf"(.*\.)?({pattern})(\..*)?")
    return [name for name in names if compiled.fullmatch(name)]


def _matching(names: Sequence[str], target: str) -> list[str]:
    try:
        found = _find(names, target)
    except re.error as error:
        raise ValueError(f"policy.full.targets: {target!r} is not a regular expression ({error})") from error
    if not found:
        modules = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
        raise ValueError(
            f"policy.full.targets: no parameter matches {target!r}; among the names' parts are: {', '.join(modules)}"
        )
    return found


def save(model: Any, folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write ``folder/transformer``, which ``from_pretrained`` of the model's class opens; equal weights, equal bytes.

    Args:
        model: says the configuration.
        folder: of the checkpoint.
        weights: every parameter, on the CPU.
        dtype: of what is written.
    """
    from huggingface_hub import save_torch_state_dict

    target = folder / FOLDER
    target.mkdir()
    own = next(one for one in type(model).__mro__ if one.__module__.startswith("diffusers."))
    config = json.loads(model.to_json_string()) | {"_class_name": own.__name__}  # FSDP2 gives it another
    (target / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    buffers = {name: value for name, value in model.state_dict().items() if name not in weights}
    state = {name: tensor.to("cpu", dtype) for name, tensor in sorted((buffers | {**weights}).items())}
    save_torch_state_dict(state, target, filename_pattern=_WEIGHTS, max_shard_size="10GB")
    readable(target)


@torch.no_grad()
def load(policy: Policy, folder: TransformerFolder, fixed: Sequence[str] = ()) -> None:
    """Put a transformer's weights into the policy's, in the dtypes that it has.

    Args:
        policy: with the model of these weights.
        folder: the transformer.
        fixed: weights that it may not change: ``reference`` puts the base's values back into the trained ones alone.

    Raises:
        ValueError: names or shapes are others than the model's, its weights are quantised, or a fixed one is another.
    """
    if is_quantized(policy.transformer):
        raise ValueError(
            f"{folder.path} holds whole weights, and policy.quantization has made bits of the model's; set it to none"
        )
    state = policy.transformer.state_dict()
    tensors: dict[str, Tensor] = {}
    for file in folder.files:
        tensors |= read_tensors(file, "transformer")
    if wrong := mismatch(tensors.keys(), state.keys()):
        raise ValueError(
            f"the transformer in {folder.path} does not fit this policy's; {wrong}. Is it of this model, and is there "
            "no LoRA beneath (policy.base_lora.mode=adapter)?"
        )
    if unlike := sorted(name for name, one in state.items() if one.shape != tensors[name].shape):
        raise ValueError(f"the transformer in {folder.path} is of a model of another width: {shown(unlike)}")
    if moved := [name for name in fixed if not torch.equal(state[name], tensors[name].to(state[name]))]:
        raise ValueError(
            f"policy.full.path: {folder.path} has other values of {len(moved):,} weights that policy.full.targets "
            f"leaves frozen ({shown(moved)}), and the KL would go to a mix of it and policy.model; start a new run "
            "with targets that cover them, or with objective.kl=0"
        )
    for name, one in state.items():
        one.copy_(tensors[name])


@contextmanager
def exchanged(model: nn.Module, base: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the trained parameters hold the base's values, and ``base``, by their names, holds theirs."""
    _exchange(model, base)
    try:
        yield
    finally:
        _exchange(model, base)


def _exchange(model: nn.Module, base: Mapping[str, Tensor]) -> None:
    reshard(model)  # what FSDP2 keeps whole after a forward is no longer what its shards say
    parameters = dict(model.named_parameters())
    for name, first in base.items():
        held = parameters[name].detach().clone()
        # By .data: a running graph has saved the weights, and they will be back before its backward pass.
        parameters[name].data.copy_(first)
        first.copy_(held)
