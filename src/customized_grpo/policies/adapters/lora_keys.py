"""Keys of LoRA files as the tools write them: ``<prefix><module><part>``, told apart without a look at any tensor.

A part is a factor or an alpha; what else a file may hold is a text encoder's, which is left aside, or belongs to
another kind of adapter, which is refused by name. Modules keep the file's own names; ``lora_names`` translates them.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from customized_grpo.policies.adapters.low_rank import shown

Part = Literal["a", "b", "alpha"]

_PREFIXES: Final = {
    "transformer.": "diffusers",
    "base_model.model.": "peft",
    "diffusion_model.": "ComfyUI or ai-toolkit",
    "model.diffusion_model.": "ComfyUI",
    "lora_unet_": "sd-scripts",
    "lora_transformer_": "OneTrainer",
    "lycoris_": "LyCORIS",
    "_orig_mod.": "torch.compile",
    "module.": "DDP",
}
"""What stands before a module's name, and who writes it so. They may stand one before another."""

_ENCODERS: Final = re.compile(
    r"(base_model\.model\.)?(lora_te\d*_|lora_prior_te|text_encoders?(_\d+)?\.|text_model\.|te\d*\.|clip_[lg]\.|"
    r"t5xxl\.|conditioner\.|cond_stage_model\.|bundle_emb\.|emb_params)"
)
"""Beginnings of keys of text encoders and of trained embeddings."""

_PARTS: Final[tuple[tuple[Part, re.Pattern[str]], ...]] = (
    ("a", re.compile(r"\.(lora_A(\.\w+)??|lora_down|lora\.down|lora_linear_layer\.down|down)(\.weight)?$")),
    ("b", re.compile(r"\.(lora_B(\.\w+)??|lora_up|lora\.up|lora_linear_layer\.up|up)(\.weight)?$")),
    ("alpha", re.compile(r"\.(lora_)?alpha$")),
)

_KINDS: Final = (
    ("DoRA", re.compile(r"dora_scale|lora_magnitude_vector")),
    ("LoHa (LyCORIS)", re.compile(r"\.hada_")),
    ("LoKr (LyCORIS)", re.compile(r"\.lokr_")),
    ("BOFT", re.compile(r"boft_")),
    ("OFT", re.compile(r"\.oft_|oft_blocks|oft_diag")),
    ("GLoRA (LyCORIS)", re.compile(r"\.[ab][12]\.weight$|glora_")),
    ("a Tucker decomposition (LyCORIS)", re.compile(r"lora_mid")),
    ("full differences of weights", re.compile(r"\.diff(_b|_m)?$")),
    ("LoRA with biases (lora_bias, control LoRA)", re.compile(r"lora_[AB](\.\w+)?\.bias$|lora_(down|up)\.bias$")),
    ("FourierFT", re.compile(r"fourierft")),
    ("VeRA", re.compile(r"vera_(lambda|[AB])")),
    ("IA3", re.compile(r"ia3_|\.on_input$")),
    ("whole modules beside the LoRA (modules_to_save)", re.compile(r"modules_to_save")),
    ("LoRA of embeddings", re.compile(r"lora_embedding_")),
    ("scaled float8 or quantised factors", re.compile(r"scale_weight|weight_scale|scale_input|\.absmax|quant_state")),
    ("new widths of layers", re.compile(r"reshape_weight")),
)
"""Kinds of adapters and entries that are not read, by what their keys contain."""

_ADDED: Final = re.compile(r"\.diff(_b|_m)?$|lora_[AB](\.\w+)?\.bias$|lora_(down|up)\.bias$")
"""Those that are added to the model, so that zeros are without effect."""
_WHOLE: Final = re.compile(r"\.(weight|bias|scale)$")


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a LoRA of the transformer."""

    text: str
    """The key itself."""
    module: str
    """Name of its module in the file, without prefix."""
    part: Part
    tool: str
    """Who writes such names."""


def of_encoder(key: str) -> bool:
    """True for a text encoder's key, or that of a trained embedding."""
    return _ENCODERS.match(key) is not None


def is_added(key: str) -> bool:
    """True if the tensor is added to the model as it is: a difference of weights, or a bias."""
    return _ADDED.search(key) is not None


def kinds(keys: Iterable[str]) -> dict[str, list[str]]:
    """Kinds that are not read, and their keys."""
    found: dict[str, list[str]] = {}
    for key in sorted(keys):
        kind = next((name for name, pattern in _KINDS if pattern.search(key)), None)
        if kind is not None:
            found.setdefault(kind, []).append(key)
    return found


def parse(keys: Iterable[str]) -> list[Key]:
    """Module and part of each key.

    Raises:
        ValueError: a key is neither a factor nor an alpha.
    """
    parsed, unknown = [], []
    for key in sorted(keys):
        found = next(((part, match) for part, pattern in _PARTS if (match := pattern.search(key))), None)
        if found is None:
            unknown.append(key)
            continue
        module, tool = _bare(key[: found[1].start()])
        parsed.append(Key(key, module, found[0], tool))
    if unknown and not parsed and all(_WHOLE.search(key) for key in unknown):
        raise ValueError(
            f"it holds a model's whole weights and no LoRA ({shown(unknown)}); give a model's file as "
            "policy.transformer, or the folder of a fully trained one as it is"
        )
    if unknown:
        raise ValueError(f"these of its keys belong to no LoRA that is read here: {shown(unknown)}")
    return parsed


def tool_of(keys: Iterable[Key]) -> str:
    """Who writes most of the names."""
    return Counter(key.tool for key in keys).most_common(1)[0][0]


def _bare(module: str) -> tuple[str, str]:
    tool = "XLabs or UNO" if ".processor." in module else "diffusers, without prefix"
    while prefix := next((one for one in _PREFIXES if module.startswith(one)), None):
        module, tool = module.removeprefix(prefix), _PREFIXES[prefix]
    return module, tool
