"""Programs that load a published folder: by diffusers alone, and what ComfyUI needs; by the policy's type."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from customized_grpo.policies.pipelines import PipelineConfig
from customized_grpo.publish.licences import MINI
from customized_grpo.recipe.config import Recipe

_SHIFT: Final = """
# the training's noise levels, whatever the base's scheduler has
pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
    pipe.scheduler.config, use_dynamic_shifting=False, shift_terminal=None, shift={shift:g}
)"""
_FIND_MINI: Final = '''\
# the miniature is part of the package: pip install customized-grpo
BASE = importlib.util.find_spec("customized_grpo").submodule_search_locations[0] + "/mini/assets/flux"'''


@dataclass(frozen=True, slots=True)
class Kind:
    """A policy's model as diffusers and ComfyUI know it.

    Attributes:
        family: see ``lora_names.family_of``.
        pipeline: diffusers' class.
        transformer: its transformer's class.
        call: its arguments by the recipe's key, beside prompt, size and steps.
        image: how it takes references: one, several, or not at all.
        comfy: how ComfyUI takes references.
    """

    family: str
    pipeline: str
    transformer: str
    call: Mapping[str, str]
    image: str
    comfy: str


_GUIDED: Final = {"guidance_scale": "guidance", "max_sequence_length": "max_sequence_length"}
_CLASSIFIER_FREE: Final = {"true_cfg_scale": "guidance", "negative_prompt": "negative_prompt"}
_REFERENCE: Final = "`VAEEncode` of the reference, then `ReferenceLatent`"
KINDS: Final[Mapping[str, Kind]] = {
    "uno": Kind(
        "FLUX.1",
        "FluxPipeline",
        "FluxTransformer2DModel",
        _GUIDED,
        "",
        f"{_REFERENCE}, then `FluxKontextMultiReferenceLatentMethod` with `uxo/uno`, UNO's places",
    ),
    "flux-kontext": Kind("FLUX.1", "FluxKontextPipeline", "FluxTransformer2DModel", _GUIDED, "reference", _REFERENCE),
    "flux2": Kind("FLUX.2", "Flux2Pipeline", "Flux2Transformer2DModel", _GUIDED, "[reference]", _REFERENCE),
    "flux2-klein": Kind("FLUX.2", "Flux2KleinPipeline", "Flux2Transformer2DModel", _GUIDED, "[reference]", _REFERENCE),
    "flux3-klein": Kind(
        "FLUX.3", "Flux3ModularPipeline", "Flux3Transformer2DModel", {}, "[reference]", "not known here"
    ),
    "qwen-image-edit-plus": Kind(
        "Qwen-Image",
        "QwenImageEditPlusPipeline",
        "QwenImageTransformer2DModel",
        _CLASSIFIER_FREE,
        "[reference]",
        "`TextEncodeQwenImageEditPlus`",
    ),
    "qwen-image-2.1": Kind(
        "Qwen-Image-2.1",
        "QwenImage21Pipeline",
        "QwenImage21Transformer2DModel",
        _CLASSIFIER_FREE,
        "[reference]",
        "the nodes of its own template",
    ),
}
"""By ``policy.type``; a third party's policy has no program for diffusers."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a published folder holds.

    Attributes:
        repo: hub id or folder.
        base: hub id of the base, or ``mini``.
        full: whether it is a whole transformer.
        balanced: whether it is two LoRAs, dW_0 and dW_1.
        joined: whether the recipe's base LoRA is in it.
    """

    repo: str
    base: str
    full: bool = False
    balanced: bool = False
    joined: bool = False


def program(recipe: Recipe, form: Form) -> str | None:
    """A program that draws one image by diffusers alone, with the recipe's sampler; None for a third party's policy."""
    policy = recipe.evaluated
    kind = KINDS.get(str(dict(policy).get("type")))
    if kind is None or not isinstance(policy, PipelineConfig):
        return None
    steps = (recipe.evaluate.steps if recipe.evaluate else None) or recipe.sampling.steps
    tokens = policy.latent_shape()[0]
    shift = None
    if recipe.sampling.shift != "dynamic":
        shift = policy.shift(recipe.sampling.shift, tokens=tokens, steps=steps).value
    modular = "Modular" in kind.pipeline
    names = [
        kind.pipeline,
        *([kind.transformer] if form.full else []),
        *(["FlowMatchEulerDiscreteScheduler"] if shift and not modular else []),
    ]
    dtype = "torch.float32" if recipe.run.precision == "no" else "torch.bfloat16"
    lines = [
        *(["import importlib.util", ""] if form.base == MINI else []),
        "import torch",
        f"from diffusers import {', '.join(sorted(names))}",
        *(["from diffusers.utils import load_image"] if kind.image else []),
        "",
        *([_FIND_MINI] if form.base == MINI else [f'BASE = "{form.base}"']),
        f'REPO = "{form.repo}"  # its id on the hub, or the folder',
        "",
        *_opening(kind, form, dtype, modular=modular),
        *([] if form.full else _adapters(policy, form)),
        *(_SHIFT.format(shift=shift).strip("\n").split("\n") if shift and not modular else []),
        'pipe.to("cuda")',
        "",
        *_call(kind, policy, steps, modular=modular),
        'image.save("out.png")',
    ]
    return "\n".join(lines)


def _opening(kind: Kind, form: Form, dtype: str, *, modular: bool) -> list[str]:
    lines, more = [], ""
    if form.full:
        lines.append(f'transformer = {kind.transformer}.from_pretrained(REPO, subfolder="transformer", dtype={dtype})')
        more = "transformer=transformer, "
    if modular:
        lines += [f"pipe = {kind.pipeline}.from_pretrained(BASE)", f"pipe.load_components(dtype={dtype})"]
        return lines + (["pipe.update_components(transformer=transformer)"] if form.full else [])
    return [*lines, f"pipe = {kind.pipeline}.from_pretrained(BASE, {more}dtype={dtype})"]


def _adapters(policy: PipelineConfig, form: Form) -> list[str]:
    """Loading of every LoRA, each with its weight; one alone needs no name."""
    beneath = None if form.joined else policy.base_lora
    if beneath is None and not form.balanced:
        return ["pipe.load_lora_weights(REPO)  # its scale is in the file: use it at 1.0"]
    lines, weights = [], {"tuned": "1.0"}
    if beneath is not None:
        owner, name, *file = beneath.path.split("/")
        place = f', weight_name="{"/".join(file)}"' if file else ""
        place = place or (', weight_name="dit_lora.safetensors"' if name == "UNO" else "")
        lines.append(f'pipe.load_lora_weights("{owner}/{name}"{place}, adapter_name="base_lora")  # policy.base_lora')
        weights["base_lora"] = f"{beneath.scale:g}"
    lines.append('pipe.load_lora_weights(REPO, adapter_name="tuned")')
    if form.balanced:
        lines += [
            'pipe.load_lora_weights(REPO, subfolder="balance", adapter_name="slope")',
            "b = 0.0  # from -1, the prompt's side, to 1, the identity's",
        ]
        weights["slope"] = "b"
    names = ", ".join(f'"{one}"' for one in weights)
    return [*lines, f"pipe.set_adapters([{names}], [{', '.join(weights.values())}])"]


def _call(kind: Kind, policy: PipelineConfig, steps: int, *, modular: bool) -> list[str]:
    options: dict[str, Any] = dict(policy)
    given = {
        "prompt": '"what to draw"',
        **({"image": kind.image} if kind.image else {}),
        "height": policy.height,
        "width": policy.width,
        **({"max_area": policy.height * policy.width} if kind.pipeline == "FluxKontextPipeline" else {}),
        "num_inference_steps": steps,
        **{name: repr(options[key]).replace("'", '"') for name, key in kind.call.items() if key in options},
        "generator": "torch.Generator().manual_seed(0)",
    }
    return [
        *(['reference = load_image("subject.png")'] if kind.image else []),
        "image = pipe(",
        *(f"    {name}={value}," for name, value in given.items()),
        *(['    output="images",'] if modular else []),
        ")[0]" if modular else ").images[0]",
    ]
