"""The trained adapter: attach it, save and load it in diffusers' LoRA format, switch it off for the KL.

An adapter file is ``pytorch_lora_weights.safetensors``: keys ``transformer.<module>.lora_{A,B}.weight``, rank and
alpha in the header, so that ``pipeline.load_lora_weights(folder)`` gives the same velocity.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from accelerate.utils import extract_model_from_parallel
from peft import LoraConfig
from torch import Tensor, nn

from customized_grpo.policies.base import LoraSettings, Policy
from customized_grpo.seeding import generator
from customized_grpo.sharding import whole

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
_ADAPTER = "default"
_PREFIX = "transformer."
_HEADER = "lora_adapter_metadata"
"""diffusers' key of the header entry that holds the LoraConfig."""


def base_transformer(policy: Policy) -> Any:
    """The diffusers model itself, out of whatever DDP or compile wrapper the trainer has put around it."""
    return extract_model_from_parallel(policy.transformer)


def attach(policy: Policy, settings: LoraSettings, seed: int) -> None:
    """Freeze the transformer and add the adapter to it, in float32 even on a bf16 base.

    The first weights are a function of (seed, settings, model) alone: A is drawn on the CPU, B is zero, so that the
    policy starts as its base. With ``settings.path`` they are those of that adapter instead.

    Args:
        policy: without an adapter, and not yet wrapped for several processes.
        settings: rank, alpha and targets; ``targets`` null means ``policy.lora_targets``.
        seed: the run's seed.

    Raises:
        ValueError: a target that no linear layer matches, or an adapter file that does not fit.
    """
    transformer: Any = policy.transformer
    transformer.requires_grad_(False)
    targets = settings.targets if settings.targets is not None else policy.lora_targets
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=_number(float(settings.alpha or settings.rank)),
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
        target_modules=_target_regex(transformer, targets),
    )
    # peft draws from the global generators; what it draws is replaced below.
    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        transformer.add_adapter(config, _ADAPTER)
    draw = generator(seed, "lora", 0, 0)
    for name, parameter in trainable_parameters(policy).items():
        weight = torch.zeros(parameter.shape)
        if ".lora_A." in name and settings.init == "gaussian":
            nn.init.normal_(weight, std=1 / settings.rank, generator=draw)
        elif ".lora_A." in name:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=draw)
        parameter.data = weight.to(policy.device)
    if settings.path is not None:
        load_adapter(policy, settings.path)


def trainable_parameters(policy: Policy) -> dict[str, nn.Parameter]:
    """Name -> parameter of the adapter, in the order of the names, which is the same on every rank."""
    named = {n: p for n, p in base_transformer(policy).named_parameters() if ".lora_" in n}
    return dict(sorted(named.items()))


def adapter_state(transformer: nn.Module) -> dict[str, Tensor]:
    """peft's state dict of the adapter (``<module>.lora_A.weight``): float32 copies on the CPU, sorted by name."""
    return {
        name.replace(f".{_ADAPTER}.", "."): whole(parameter.detach())
        .to("cpu", torch.float32, copy=True)
        .contiguous()
        for name, parameter in sorted(transformer.named_parameters())
        if ".lora_" in name
    }


def save_adapter(
    policy: Policy,
    folder: str | Path,
    metadata: Mapping[str, str],
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write ``folder/pytorch_lora_weights.safetensors``; the same weights and metadata give the same bytes.

    Args:
        policy: with an adapter attached.
        folder: made where it is missing.
        metadata: what else the header says (base id and hash, recipe, step).
        weights: what to write in place of the policy's own weights, by the names of ``trainable_parameters``.
    """
    model = base_transformer(policy)
    state = adapter_state(model) if weights is None else weights
    config = model.peft_config[_ADAPTER]
    own = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": config.target_modules}
    header = {
        **metadata,
        "format": "pt",
        _HEADER: json.dumps({_PREFIX + key: value for key, value in own.items()}, sort_keys=True),
    }
    path = Path(folder) / WEIGHTS_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {_PREFIX + name.replace(f".{_ADAPTER}.", "."): tensor for name, tensor in state.items()}
    path.write_bytes(_serialize(named, header))
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """What an adapter file holds."""

    path: Path
    tensors: Mapping[str, Tensor]
    """By peft's names, without the prefix ``transformer.``."""
    rank: int
    alpha: float
    metadata: Mapping[str, str]

    def settings(self) -> LoraSettings:
        """Settings whose ``attach`` makes exactly this file's modules; ``path`` is set, so that it loads them too."""
        modules = sorted({name.split(".lora_")[0] for name in self.tensors})
        # "^" pins the full name: the top-level "proj_out" is also how other layers' names end.
        targets = tuple("^" + re.escape(module) for module in modules)
        return LoraSettings(rank=self.rank, alpha=self.alpha, targets=targets, path=str(self.path))


def read_adapter(path: str | Path) -> AdapterFile:
    """Read an adapter: a file, its folder, a checkpoint, or a run (its newest complete checkpoint).

    Raises:
        ValueError: nothing there, a damaged file, or no LoRA of one rank in diffusers' format.
    """
    file = find_adapter(path)
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"adapter {str(file)!r} can't be read ({error}); is it whole, and a safetensors file?"
        ) from error
    foreign = [name for name in tensors if not re.fullmatch(r"transformer\..+\.lora_[AB]\.weight", name)]
    if foreign or not tensors:
        raise ValueError(
            f"adapter {str(file)!r} is no LoRA of a transformer in diffusers' format "
            f"(transformer.<module>.lora_A.weight): {_some(foreign) or 'it is empty'}"
        )
    ranks = {
        tensor.shape[0 if ".lora_A." in name else 1] for name, tensor in tensors.items() if tensor.ndim == 2
    }
    if len(ranks) != 1:
        raise ValueError(
            f"adapter {str(file)!r} has the ranks {sorted(ranks)}; only one rank for all is supported"
        )
    rank = ranks.pop()
    # Without an entry the scale is 1, as in diffusers.
    config = json.loads(metadata.get(_HEADER, "{}"))
    return AdapterFile(
        path=file,
        tensors={name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()},
        rank=rank,
        alpha=float(config.get(f"{_PREFIX}lora_alpha", rank)),
        metadata=metadata,
    )


def load_adapter(policy: Policy, path: str | Path) -> AdapterFile:
    """Copy an adapter's weights into the attached one; every key of both must match.

    Raises:
        ValueError: keys are missing or left over, another rank or scale, or an unreadable file.
    """
    file = read_adapter(path)
    parameters = {n.replace(f".{_ADAPTER}.", "."): p for n, p in trainable_parameters(policy).items()}
    if not parameters:
        raise ValueError("the policy has no adapter to load into; call lora.attach first")
    surplus = sorted(file.tensors.keys() - parameters.keys())
    missing = sorted(parameters.keys() - file.tensors.keys())
    if surplus or missing:
        parts = [f"surplus: {_some(surplus)}"] if surplus else []
        parts += [f"missing: {_some(missing)}"] if missing else []
        raise ValueError(
            f"adapter {str(file.path)!r} does not fit this policy's; {'; '.join(parts)}. "
            "Is it of this model, and is policy.lora.targets what it was trained with?"
        )
    config = base_transformer(policy).peft_config[_ADAPTER]
    if (file.rank, file.alpha / file.rank) != (config.r, config.lora_alpha / config.r):
        raise ValueError(
            f"adapter {str(file.path)!r} has rank {file.rank} and alpha {file.alpha:g}, the recipe has rank {config.r} "
            f"and alpha {config.lora_alpha:g}; set policy.lora.rank={file.rank} policy.lora.alpha={file.alpha:g}"
        )
    wrong = [name for name, parameter in parameters.items() if parameter.shape != file.tensors[name].shape]
    if wrong:
        raise ValueError(f"adapter {str(file.path)!r} is of a model of another width: {_some(wrong)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(file.tensors[name])
    return file


def find_adapter(path: str | Path) -> Path:
    """The weights file that a file, an adapter's folder, a checkpoint or a run stands for.

    Raises:
        ValueError: there is none.
    """
    given = Path(path).expanduser()
    if given.is_file() and given.suffix == ".safetensors":
        return given
    if (given / WEIGHTS_NAME).is_file():
        return given / WEIGHTS_NAME
    complete = [
        folder / WEIGHTS_NAME
        for folder in (given / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d+", folder.name)
        and (folder / "manifest.json").is_file()
        and (folder / WEIGHTS_NAME).is_file()
    ]
    if not complete:
        raise ValueError(
            f"no adapter at {str(path)!r}; give a .safetensors file, a folder with {WEIGHTS_NAME}, a checkpoint, "
            "or a run with checkpoints/step-*"
        )
    return max(complete, key=lambda file: int(file.parent.name.removeprefix("step-")))


@contextmanager
def reference(policy: Policy) -> Iterator[None]:
    """The policy without its adapter, for the KL: the frozen base."""
    model = base_transformer(policy)
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def frozen_hash(transformer: nn.Module) -> str:
    """sha256 of every weight but the adapter's; the same before and after an adapter is attached."""
    digest = sha256()
    frozen = {
        n.replace(".base_layer.", "."): p for n, p in transformer.named_parameters() if ".lora_" not in n
    }
    for name, parameter in sorted(frozen.items()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _target_regex(transformer: nn.Module, targets: tuple[str, ...]) -> str:
    """One regular expression for peft out of the targets, each matched against a name or its end after a dot."""
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        try:
            matches = [name for name in linear if re.fullmatch(rf"(.*\.)?({target})", name)]
        except re.error as error:
            raise ValueError(f"policy.lora.targets: {target!r} is no regular expression ({error})") from error
        if not matches:
            ends = sorted({name.rsplit(".", 1)[-1] for name in linear if not name[-1].isdigit()})
            raise ValueError(
                f"policy.lora.targets: no linear layer matches {target!r}; among the names' ends are: {', '.join(ends)}"
            )
    return rf"(.*\.)?({'|'.join(targets)})"


def _serialize(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """safetensors bytes with the header's metadata sorted; the library writes it in the order of a random hash."""
    blob = safetensors.torch.save(tensors)
    end = 8 + int.from_bytes(blob[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(blob[8:end])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[end:]


def _number(value: float) -> int | float:
    """An integer where it is one: peft's own type for alpha."""
    return int(value) if value.is_integer() else value


def _some(names: list[str]) -> str:
    """The first three names and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
