"""The scale of each module of a LoRA file: from peft's ``LoraConfig``, from alphas that stand beside the factors, or 1.

peft: scale = alpha / r, or alpha / sqrt(r) with ``use_rslora``, where alpha and r of a module are those of the first
entry of ``alpha_pattern`` and ``rank_pattern`` that matches its name or its name's end after a dot.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from customized_grpo.policies.adapters.low_rank import shown

_WITHOUT_EFFECT: Final = frozenset(
    {
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "lora_dropout",
        "loftq_config",
        "eva_config",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
        "ensure_weight_tying",
    }
)
"""Entries of a ``LoraConfig`` that don't change what a file's factors mean: which layers they are on, how they were
trained, where they came from."""
_READ: Final = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"})
_STARTS: Final = (True, False, "gaussian", "eva", "orthogonal")
"""``init_lora_weights`` that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ) subtract from it."""


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that says more than rank and alpha.

    Raises:
        ValueError: an entry that changes the adapter and is not read here, or of another type than peft's.
    """
    from peft import LoraConfig

    defaults = {
        one.name: one.default if one.default is not dataclasses.MISSING else None
        for one in dataclasses.fields(LoraConfig)
    }
    kind = config.get("peft_type")
    if kind not in (None, "LORA"):
        raise ValueError(f"its configuration says peft_type {kind}, and only LORA is read here")
    for name, value in config.items():
        if name in _WITHOUT_EFFECT | _READ or value in (defaults.get(name), None, False, {}, []):
            continue
        raise ValueError(f"its configuration says {name}: {value!r}, which is not supported here")
    if config.get("init_lora_weights", True) not in _STARTS:
        raise ValueError(
            f"its configuration says init_lora_weights: {config['init_lora_weights']!r}, which also changes the base's "
            "weights; save it again as a plain LoRA (peft's path_initial_model_for_weight_conversion)"
        )
    for name in ("r", "lora_alpha"):
        if name in config and not _is_number(config[name]):
            raise ValueError(f"its configuration says {name}: {config[name]!r}, and a number above 0 is needed")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, Mapping) or not all(map(_is_number, pattern.values())):
            raise ValueError(f"its configuration says {name}: {pattern!r}, and numbers by module are needed")


def of_config(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """alpha by module, in the sense of scale = alpha / r.

    Args:
        config: as ``check_config`` takes it.
        ranks: of each module's factors, by the names that the patterns are for.

    Raises:
        ValueError: the configuration has another rank than the factors.
    """
    from peft import LoraConfig
    from peft.utils.other import get_pattern_key

    read = LoraConfig(**{name: config[name] for name in _READ - {"init_lora_weights"} if config.get(name) is not None})
    of_rank, of_alpha = dict(read.rank_pattern), dict(read.alpha_pattern)
    alphas = {}
    for pattern in (*of_rank, *of_alpha):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"its configuration has the pattern {pattern!r}, no regular expression: {error}"
            ) from error
    for module, rank in ranks.items():
        said = of_rank.get(get_pattern_key(of_rank, module), read.r)
        if said != rank:
            raise ValueError(f"its header says rank {said} for {module}, and the factors are of rank {rank}")
        alpha = float(of_alpha.get(get_pattern_key(of_alpha, module), read.lora_alpha))
        alphas[module] = alpha * math.sqrt(rank) if read.use_rslora else alpha
    return alphas


def idle_patterns(config: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """Patterns of a configuration that no module of the file fits."""
    names = list(modules)
    patterns = {pattern for name in ("rank_pattern", "alpha_pattern") for pattern in config.get(name) or {}}
    if not patterns:
        return []
    from peft.utils.other import get_pattern_key

    return sorted(one for one in patterns if all(get_pattern_key([one], name) != one for name in names))


def of_keys(given: Mapping[str, float], ranks: Mapping[str, int], *, by_default_the_rank: bool) -> dict[str, float]:
    """alpha by module, where alphas stand beside the factors.

    Args:
        given: alphas of the file; a module without one has its rank, in all tools but one.
        ranks: of each module's factors.
        by_default_the_rank: false for names for which diffusers takes the commonest alpha instead.

    Raises:
        ValueError: an alpha of 0, one without factors, or one that is lacking and has more than one reading.
    """
    if lonely := sorted(given.keys() - ranks.keys()):
        raise ValueError(f"it has alphas without factors: {shown(lonely)}")
    if zero := sorted(name for name, alpha in given.items() if alpha == 0):
        raise ValueError(
            f"it has an alpha of 0 for {shown(zero)}: sd-scripts reads that as the rank, diffusers as no LoRA at all"
        )
    lacking = sorted(ranks.keys() - given.keys())
    if given and lacking and not by_default_the_rank:
        commonest = Counter(given.values()).most_common(1)[0][0]
        if any(ranks[name] != commonest for name in lacking):
            raise ValueError(
                f"it has an alpha for some modules and none for {shown(lacking)}: diffusers takes the commonest, "
                f"{commonest:g}, and other tools the rank; write an alpha for each"
            )
    return {name: given.get(name, float(rank)) for name, rank in ranks.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
