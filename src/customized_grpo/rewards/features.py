"""Shared parts of rewards on image features: loading an encoder, batches, a bounded reference cache, cosines.

Dimensions: G images of a group, R references, D features, H x W pixels.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, final

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from customized_grpo.paths import model_path
from customized_grpo.types import Example
from customized_grpo.web.hub import hub_problem
from customized_grpo.weights import check_finite, check_whole, read_model

_log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DtypeName = Literal["float32", "bfloat16", "float16"]


Encode = Callable[[Sequence[Image.Image]], Tensor]
"""Maps n images to features (n, D), or (n, T, D) with one row per token."""


def load_frozen(
    families: Mapping[str, str],
    name: str,
    kind: str,
    *,
    dtype: DtypeName,
    device: torch.device,
    revision: str | None = None,
) -> Any:
    """A frozen transformers model in evaluation mode, from safetensors only.

    Args:
        families: the class of transformers that reads a checkpoint, by the ``model_type`` of its config.
        name: hub id, folder, ``mini`` or ``mini-judge``.
        kind: folder of the embedded models: ``dino`` or ``clip``.
        dtype: dtype of the weights.
        device: device of the weights.
        revision: of a hub id.

    Raises:
        ValueError: no such model, a model of another family, or weights that aren't whole or aren't numbers
            (see ``check_whole``): the reward would be noise.
    """
    import transformers
    from httpx2 import HTTPError

    path = model_path(name, kind)
    try:
        found = transformers.AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False).model_type
        if found not in families:
            wanted = " or ".join(repr(family) for family in families)
            raise ValueError(f"it is a {found!r} model, but this reward needs a {wanted} model")
        # DINO doesn't train a ViT's pooler, and its checkpoints lack it.
        options = {"add_pooling_layer": False} if found == "vit" else {}
        model_class = getattr(transformers, families[found])
        model, report = read_model(model_class, path, {"dtype": DTYPES[dtype], "revision": revision, **options})
    except (OSError, ValueError, HTTPError) as error:
        known = "named model.safetensors" in str(error)
        reason = _no_safetensors(name, revision) if known else hub_problem(error, name)
        raise ValueError(f"reward model {name!r} can't be loaded: {reason}") from error
    except SafetensorError as error:
        raise ValueError(
            f"reward model {name!r} can't be loaded: its weights are damaged ({error}), by a broken download or a "
            "clone without Git LFS; download it again, or run 'git lfs pull' there"
        ) from error
    check_whole(model, report, f"reward model {name!r}")
    check_finite(model.state_dict(), f"reward model {name!r}")
    # Weights of a mapped file have arbitrary alignment, on which the last bit of a CPU's product depends: without
    # aligned copies two processes score differently from one.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.to(device).eval().requires_grad_(False)


_CONVERTED: Final = {"openai/clip-vit-base-patch32": "refs/pr/15"}
"""Pull requests that add safetensors to a repository whose main branch had none."""


def _no_safetensors(name: str, revision: str | None) -> str:
    known = f"; of this one it is {_CONVERTED[name]}" if name in _CONVERTED else ""
    return (
        f"{revision or 'main'} of it holds no .safetensors, and nothing is unpickled here. Where a pull request of the "
        f"repository adds them (https://huggingface.co/{name}/discussions), give it as the revision, as in revision: "
        f"refs/pr/1{known}; or convert it once and give the folder (docs/how-to/choose-rewards.md)"
    )


def to_pil(images: UInt8[Tensor, "g h w 3"]) -> list[Image.Image]:
    """The images of a group as PIL RGB."""
    return [Image.fromarray(image) for image in images.cpu().numpy()]


def in_batches(encode: Encode, images: Sequence[Image.Image], batch_size: int) -> Float[Tensor, "g *d"]:
    """Features of any number of images, at most ``batch_size`` per forward."""
    return torch.cat([encode(images[at : at + batch_size]) for at in range(0, len(images), batch_size)])


@final
class PromptLimit:
    """A text model's limit on tokens; a prompt beyond it is warned of, once, as its end counts for nothing."""

    def __init__(self, reward: str, limit: int) -> None:
        self._reward, self._limit, self._said = reward, limit, False

    def check(self, prompt: str, tokenizer: Any) -> None:
        """Warn if a prompt's tokens, with the special ones, are beyond the limit; a short one is not counted."""
        # A byte is a token at most, and the two special ones come on top.
        if self._said or len(prompt.encode()) + 2 <= self._limit:
            return
        if (tokens := len(tokenizer(prompt, verbose=False)["input_ids"])) > self._limit:
            self._said = True
            _log.warning(
                "%s reads %d of the %d tokens of a prompt and scores nothing of its end (said once): %r",
                self._reward,
                self._limit,
                tokens,
                prompt,
            )


def require_references(example: Example) -> None:
    """Raise for an example without references: there is nothing to compare with."""
    if not example.references:
        raise ValueError(f"example {example.key!r} has no reference to compare with")


def require_prompt(example: Example) -> None:
    """Raise for an example without a prompt: the scores would be meaningless."""
    if not example.prompt.strip():
        raise ValueError(f"example {example.key!r} has no prompt to compare with")


def mean_cosine(a: Float[Tensor, "g d"], b: Float[Tensor, "r d"]) -> Float[Tensor, " g"]:
    """100 x the cosine of each image with each reference, mean over the references; float32."""
    a, b = a.float(), b.float()
    cosine: Tensor = (a / a.norm(dim=-1, keepdim=True)) @ (b / b.norm(dim=-1, keepdim=True)).T
    return cosine.mean(dim=-1) * 100.0


@final
class FeatureCache:
    """Cache of the features of the last ``size`` references: many prompts of one subject encode it once."""

    def __init__(self, encode: Encode, size: int = 512) -> None:
        self._encode = encode
        self._size = size
        self._entries: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, images: Sequence[Image.Image]) -> Float[Tensor, "r *d"]:
        """Features of ``images``, encoding only those not cached."""
        return torch.stack([self._one(image) for image in images])

    def _one(self, image: Image.Image) -> Float[Tensor, "*d"]:
        key = _digest(image)
        if key not in self._entries:
            # Alone, never in a batch: the last bit depends on the batch size, so what happened to be cached
            # would make a resumed run differ from an uninterrupted one.
            self._entries[key] = self._encode([image])[0]
        self._entries.move_to_end(key)
        features = self._entries[key]
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return features


def _digest(image: Image.Image) -> bytes:
    head = f"{image.mode} {image.width} {image.height} ".encode()
    return hashlib.blake2b(head + image.tobytes(), digest_size=16).digest()
