"""The reader of LoRA files, whoever wrote them: factors with the true scale of each module.

Every key of a file is used, left aside and counted, or the file is refused. ``lora_keys`` tells the keys apart,
``lora_scale`` finds the scales, ``lora_names`` knows which layers are meant.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from customized_grpo.console import err, say
from customized_grpo.policies.adapters import lora_keys, lora_scale
from customized_grpo.policies.adapters.lora_files import HEADER, PEFT_CONFIG, PEFT_WEIGHTS, PREFIX, find_adapter
from customized_grpo.policies.adapters.lora_keys import Key
from customized_grpo.policies.adapters.lora_names import factors_at, family_of, places, unknown
from customized_grpo.policies.adapters.low_rank import Factors, linear_shapes, turned
from customized_grpo.policies.adapters.tensor_files import read_metadata, read_tensors
from customized_grpo.policies.base import NO_LORA
from customized_grpo.text import read_text
from customized_grpo.weights import FLOAT8, FLOATS, shown

_ORIGINAL: Final = re.compile(r"(double|single|content_mode)_blocks[._]|(img|txt|time|vector|guidance|emb)_in|final_l")
_MODEL_ENTRIES: Final = ("modelspec.architecture", "ss_base_model_version", "base_model")
"""Entries of headers in which sd-scripts, ai-toolkit, ComfyUI and this package name the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """Content of a LoRA file."""

    path: Path
    tool: str
    """Who writes such names of layers."""
    factors: Mapping[str, Factors]
    """By the file's own names of modules, without prefix."""
    keys: Mapping[str, str]
    """The key of each module's A, for messages."""
    aside: Mapping[str, int]
    """What was left aside, and how many keys."""
    metadata: Mapping[str, str]

    def update(self, transformer: Any) -> dict[str, Factors]:
        """Its factors by the modules of a transformer.

        Args:
            transformer: diffusers' model, which may be on the meta device.

        Raises:
            ValueError: it is of another model; the message names the file's keys.
        """
        known, shapes = places(transformer), linear_shapes(transformer)
        update: dict[str, Factors] = {}
        for name, given in self.factors.items():
            place = known.get(name.replace(".", "_"))
            if place is None:
                raise ValueError(
                    f"LoRA {str(self.path)!r}: {unknown(self.factors, known)} ({self.keys[name]}){self._made_for()}"
                )
            try:
                found = factors_at(place, given, shapes)
            except ValueError as error:
                raise ValueError(
                    f"LoRA {str(self.path)!r} does not fit: {self.keys[name]}: {error}{self._made_for()}"
                ) from error
            if twice := sorted(found.keys() & update.keys()):
                raise ValueError(
                    f"LoRA {str(self.path)!r} has more than one LoRA of {shown(twice)} ({self.keys[name]})"
                )
            update |= found
        return dict(sorted(update.items()))

    def _made_for(self) -> str:
        """What its header says of its model, for messages."""
        said = [self.metadata[name] for name in _MODEL_ENTRIES if self.metadata.get(name)]
        return f"; its header speaks of {', '.join(map(repr, said))}" if said else ""

    def by_its_names(self) -> dict[str, Factors]:
        """Its factors where no model is at hand, if its names are diffusers' own.

        Raises:
            ValueError: they are another tool's.
        """
        flat = [name for name in self.factors if "." not in name and "_blocks_" in name]
        foreign = [self.keys[name] for name in self.factors if name in flat or _ORIGINAL.match(name)]
        if foreign:
            raise ValueError(
                f"LoRA {str(self.path)!r} names its layers as {self.tool} does ({shown(foreign)}), and only the model "
                "can say which they are; give its recipe as --config"
            )
        return dict(self.factors)

    def check_base(self, base_hash: str, base_lora: str) -> None:
        """Raise if the adapter was trained on another base than this one, or with another LoRA beneath.

        Args:
            base_hash: see ``hashes.base_hash``.
            base_lora: identity of ``policy.base_lora``; see ``hashes.update_hash``.

        Raises:
            ValueError: it was another.
        """
        trained_on = self.metadata.get("base_hash", base_hash)
        name = self.metadata.get("base_model", "unknown")
        if trained_on != base_hash:
            raise ValueError(
                f"adapter {str(self.path)!r} was trained on another base ({name!r}, hash "
                f"{trained_on}) than this policy's (hash {base_hash}); give that base as policy.model, "
                "or draw on this one on purpose by --base of generate and evaluate"
            )
        self.check_base_lora(base_lora)

    def check_base_lora(self, base_lora: str) -> None:
        """Raise if the adapter was trained with another LoRA beneath; warn if an older file's recipe had or lacked one.

        Raises:
            ValueError: it was another.
        """
        path = self._base_lora_path()
        ours = "has none" if base_lora == NO_LORA else f"has one (hash {base_lora})"
        trained_on = self.metadata.get("base_lora")
        if trained_on is None and path is not None and bool(path) != (base_lora != NO_LORA):
            theirs = f"had policy.base_lora {path!r}" if path else "had no policy.base_lora"
            say(f"adapter {str(self.path)!r}: its recipe {theirs}, and this policy {ours}", style="yellow", on=err)
        if trained_on is None or trained_on == base_lora:
            return
        if trained_on == NO_LORA:
            raise ValueError(
                f"adapter {str(self.path)!r} was trained on a base without policy.base_lora, or holds that LoRA, and "
                f"this policy {ours}; use policy.base_lora=null"
            )
        named = f"{path!r}, " if path else ""
        raise ValueError(
            f"adapter {str(self.path)!r} was trained with a LoRA beneath ({named}hash {trained_on}), and this policy "
            f"{ours}; give that LoRA as policy.base_lora, or one file of both (customized-grpo export --with-base)"
        )

    def _base_lora_path(self) -> str | None:
        """The path of ``policy.base_lora`` in the header's recipe, empty if that has none; None: there is no recipe."""
        try:
            return str((json.loads(self.metadata["recipe"])["policy"].get("base_lora") or {}).get("path", ""))
        except (KeyError, ValueError, TypeError, AttributeError):  # no recipe, or one that isn't ours
            return None


def read_lora(path: str | Path, *, revision: str | None = None, offline: bool = False) -> LoraFile:
    """Read a LoRA: a file, its folder, a checkpoint, a run (its newest complete checkpoint), or one on the hub.

    Read are the names of diffusers, peft, sd-scripts, ComfyUI, ai-toolkit, OneTrainer, SimpleTuner, XLabs and UNO, and
    each module's own rank and alpha. Keys of text encoders are left aside, which is said on the console.

    Raises:
        ValueError: nothing there, a damaged file, or one that is not wholly understood; what isn't is named.
    """
    file = find_adapter(path, revision=revision, offline=offline)
    tensors, metadata = read_tensors(file, "LoRA"), read_metadata(file, "LoRA")
    try:
        config = _config(file, metadata)
        aside, mine = _set_aside(tensors)
        keys = lora_keys.parse(mine)
        pairs = _pairs(keys, mine)
        alphas = _alphas(keys, mine, {name: a.shape[0] for name, (a, _) in pairs.items()}, config, metadata)
    except ValueError as error:
        family = family_of(tensors)
        of_model = "" if family is None else f" (its layers are named as those of {family})"
        raise ValueError(f"LoRA {str(file)!r} can't be used: {error}{of_model}") from error
    lora = LoraFile(
        path=file,
        tool=lora_keys.tool_of(keys),
        factors={name: _factors(a, b, alphas[name]) for name, (a, b) in sorted(pairs.items())},
        keys={key.module: key.text for key in keys if key.part == "a"},
        aside=aside,
        metadata=metadata,
    )
    if not any(one.b.any() for one in lora.factors.values()):
        say(f"LoRA {str(file)!r}: every B is zero, as before training, so it changes nothing", on=err)
    if idle := lora_scale.idle_patterns(config, pairs):
        say(f"LoRA {str(file)!r}: no layer fits {len(idle)} of its patterns: {shown(idle)}", on=err)
    for what, count in aside.items():
        say(f"LoRA {str(file)!r}: {count} keys {what} are left aside", on=err)
    return lora


def _set_aside(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, Tensor]]:
    """What is left aside, counted, and the rest; all of it of a kind that is read."""
    if not tensors:
        raise ValueError("it is empty")
    encoders = {name for name in tensors if lora_keys.of_encoder(name)}
    zeros = {n for n in tensors.keys() - encoders if lora_keys.is_added(n) and not tensors[n].any()}
    mine = {name: tensor for name, tensor in tensors.items() if name not in encoders | zeros}
    if not mine:
        raise ValueError(f"it has no LoRA of a transformer, only of text encoders: {shown(sorted(encoders | zeros))}")
    if refused := lora_keys.kinds(mine):
        kind, keys = next(iter(refused.items()))
        raise ValueError(f"it holds {kind}, which is not supported here: {shown(keys)}")
    counts = {
        "of text encoders": len(encoders),
        "of differences or biases that are all zero": len(zeros),
    }
    return {what: count for what, count in counts.items() if count}, mine


def _pairs(keys: Sequence[Key], tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each module, as matrices of floating-point numbers."""
    sides: dict[str, dict[str, Key]] = {}
    for key in keys:
        if (other := sides.setdefault(key.module, {}).setdefault(key.part, key)) is not key:
            raise ValueError(f"it has {other.text} and {key.text}, which are the same part of the same layer")
    lonely = [side["a" if "a" in side else "b"].text for side in sides.values() if ("a" in side) != ("b" in side)]
    if lonely:
        raise ValueError(f"it is not whole; the other factor is missing of {shown(sorted(lonely))}")
    pairs = {
        name: (_matrix(side["a"].text, tensors), _matrix(side["b"].text, tensors))
        for name, side in sides.items()
        if "a" in side
    }
    if not pairs:
        raise ValueError("it has no factors, only alphas")
    for name, (a, b) in pairs.items():
        if a.shape[0] != b.shape[1]:
            raise ValueError(
                f"the factors of {name} don't fit each other: {sides[name]['a'].text} is {tuple(a.shape)} and "
                f"{sides[name]['b'].text} {tuple(b.shape)}{turned(a.shape, b.shape)}"
            )
    return pairs


def _matrix(key: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """A factor as a matrix: that of a 1x1 convolution has sides of length 1, and float8 becomes float32."""
    tensor = tensors[key]
    if tensor.dtype not in FLOATS | FLOAT8:
        raise ValueError(f"{key} is of {tensor.dtype}, quantised numbers without their scales; get it in bfloat16")
    if not tensor.numel():
        raise ValueError(f"{key} is of size 0: {tuple(tensor.shape)}")
    matrix = tensor
    while matrix.ndim > 2 and matrix.shape[-1] == 1:
        matrix = matrix.squeeze(-1)
    if matrix.ndim != 2:
        raise ValueError(f"{key} is of shape {tuple(tensor.shape)}; factors of linear layers and 1x1 convolutions fit")
    return matrix.float() if tensor.dtype in FLOAT8 else matrix


def _alphas(
    keys: Sequence[Key],
    tensors: Mapping[str, Tensor],
    ranks: Mapping[str, int],
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> dict[str, float]:
    """alpha of each module; a header and alphas beside the factors must agree."""
    beside = {}
    for key in keys:
        if key.part == "alpha":
            if tensors[key.text].numel() != 1:
                raise ValueError(f"{key.text} is of shape {tuple(tensors[key.text].shape)}, and one number is needed")
            beside[key.module] = float(tensors[key.text].item())
    kohya = any("down" in key.text for key in keys)
    of_keys = lora_scale.of_keys(beside, ranks, by_default_the_rank=kohya)
    if not config:
        lora_scale.check_header(metadata, {rank for name, rank in ranks.items() if name not in beside})
        return of_keys
    lora_scale.check_config(config)
    of_config = lora_scale.of_config(config, ranks)
    if other := [name for name in sorted(beside) if not math.isclose(of_keys[name], of_config[name], rel_tol=1e-5)]:
        raise ValueError(
            f"its header and its alphas disagree: {other[0]} has {of_config[other[0]]:g} by the one and "
            f"{of_keys[other[0]]:g} by the other; remove one of them"
        )
    return of_config


def _factors(a: Tensor, b: Tensor, alpha: float) -> Factors:
    """alpha is above 0 everywhere else, so that a sign goes into B."""
    return Factors(a, b if alpha > 0 else -b, abs(alpha))


def _config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The transformer's entries of peft's ``LoraConfig``, from the header or from the file that peft writes beside."""
    beside = file.parent / PEFT_CONFIG
    text, where = metadata.get(HEADER, "{}"), HEADER
    if file.name == PEFT_WEIGHTS and beside.is_file():
        text, where = read_text(beside), PEFT_CONFIG
    elif file.name == PEFT_WEIGHTS and HEADER not in metadata:
        raise ValueError(f"peft writes {PEFT_CONFIG} beside it, which says its alpha, and it is missing: get it too")
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"its configuration is damaged ({where}: {error})") from error
    if not isinstance(entries, dict):
        raise ValueError(f"its configuration is damaged ({where}: {shown([text[:40]])} is no object)")
    return {key.removeprefix(PREFIX): value for key, value in entries.items() if "." not in key.removeprefix(PREFIX)}
