"""Style similarity by CSD: 100 x the cosine of the style descriptors of image and reference, mean over references.

Dimensions: G group size, n batch, D features, H x W pixels. Source: Contrastive Style Descriptors (Somepalli et al.
2024, arXiv 2404.01292): a CLIP image tower, fine-tuned, with a projection for style in the place of its own. Pictures
are prepared as CLIP's are: shorter side, middle square, CLIP's mean and deviation.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from pydantic import Field, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from customized_grpo.recipe.limits import Need
from customized_grpo.recipe.scorers import HeldModel, ModelRewardSpec
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.features import (
    DTYPES,
    DtypeName,
    FeatureCache,
    in_batches,
    mean_cosine,
    require_references,
    to_pil,
)
from customized_grpo.types import Example
from customized_grpo.weights import check_finite

_HEAD_WIDTH: Final = 64
"""Width of a head in every CLIP tower of OpenAI's."""
_CONTENT: Final = "last_layer_content"
"""CSD's other projection, trained beside the one for style."""
_OUTER: Final = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
_INNER: Final = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""OpenAI's names of a tower and of a block of it, to those of transformers."""
_BLOCK: Final = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


@final
class Style(Reward):
    """Similarity of style to the references, in [-100, 100]."""

    @final
    class Config(ModelRewardSpec):
        """A reward's section with ``type: style``."""

        transport: ClassVar[frozenset[str]] = frozenset({"batch_size"})
        model: str = Field(
            min_length=1,
            description="CSD's weights as .safetensors; the page 'Choose rewards' says how to convert published ones",
        )
        batch_size: PositiveInt = Field(default=32, description="images per forward")
        dtype: DtypeName = "float32"

        def held_models(self) -> Sequence[HeldModel]:
            """CSD without its other projection."""
            return (HeldModel(self.model, "", self.dtype, self.batch_size, unused=frozenset({_CONTENT})),)

        def needs(self) -> frozenset[Need]:
            """References."""
            return frozenset({"reference"})

    def __init__(self, config: Config, *, device: torch.device) -> None:
        # The PIL processor explicitly: with torchvision installed the default, and so the reward, would differ.
        from transformers import CLIPImageProcessorPil

        self._device, self._batch_size = device, config.batch_size
        self._model = _load(config.model).to(device, DTYPES[config.dtype]).eval().requires_grad_(False)
        side = self._model.config.image_size
        size = {"height": side, "width": side}
        self._processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size)
        self._references = FeatureCache(self._encode)

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """Mean similarity of each image's style to that of the example's references.

        Raises:
            ValueError: the example has no reference.
        """
        require_references(example)
        features = in_batches(self._encode, to_pil(images), self._batch_size)
        return mean_cosine(features, self._references(example.references)).cpu()

    @torch.no_grad()
    def _encode(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        pixels: Tensor = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        features: Tensor = self._model(pixel_values=pixels.to(self._device, self._model.dtype)).image_embeds
        return features.float()


def _load(name: str) -> Any:
    """CSD's tower and its projection for style, as transformers' class."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    path = Path(name).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(
            f"model {name!r}: give CSD's weights as an existing .safetensors file; docs/how-to/choose-rewards.md says "
            "where they are, and how to convert the published ones"
        )
    try:
        given = {key.removeprefix("module."): tensor.float() for key, tensor in load_file(path).items()}
        weights = _renamed(given)
        tower = weights["vision_model.embeddings.patch_embedding.weight"]
        tokens, width = weights["vision_model.embeddings.position_embedding.weight"].shape
        blocks = {key.split(".")[3] for key in weights if key.startswith("vision_model.encoder.layers.")}
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=len(weights["vision_model.encoder.layers.0.mlp.fc1.bias"]),
            num_hidden_layers=len(blocks),
            num_attention_heads=max(1, width // _HEAD_WIDTH),
            patch_size=tower.shape[-1],
            image_size=round((tokens - 1) ** 0.5) * tower.shape[-1],
            projection_dim=len(weights["visual_projection.weight"]),
            hidden_act="quick_gelu",
        )
        model = CLIPVisionModelWithProjection(config)
        model.load_state_dict(weights, strict=True)
    except (KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"model {name!r} is not a CSD (a tower of OpenAI's CLIP as 'backbone.' and 'last_layer_style'): "
            f"{' '.join(str(error).split())[:400]}"
        ) from error
    check_finite(weights, f"model {name!r}")
    return model


def _renamed(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CSD's weights under transformers' names, q, k and v apart; what has no place keeps its name."""
    renamed = {"visual_projection.weight": given["last_layer_style"].T.contiguous()}
    for key, tensor in given.items():
        if key in ("last_layer_style", _CONTENT):
            continue
        inside = key.removeprefix("backbone.")
        block = _BLOCK.fullmatch(inside)
        name, known = (block[2], _INNER) if block else (inside, _OUTER)
        place = f"vision_model.encoder.layers.{block[1]}." if block else "vision_model."
        if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{place}self_attn.{part}_proj.{name.rpartition('_')[2]}"] = third.clone()
            continue
        stem = next((old for old in known if name == old or name.startswith(f"{old}.")), None)
        renamed[key if stem is None else place + known[stem] + name.removeprefix(stem)] = tensor
    return renamed
