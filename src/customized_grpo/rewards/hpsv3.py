"""HPSv3: human preference score of an image for a prompt, by a Qwen2-VL with a small head. Unbounded, about 0 to 12.

Dimensions: G group size, n batch, L tokens, D features, H x W pixels. Source: HPSv3 (arXiv 2508.03789), whose
checkpoint this reads; reimplemented on transformers' class, and compared with the published code by golden tests.

Common mistakes: positions are plain 0 .. L-1 on all three axes of the rotary embedding, not Qwen2-VL's own;
an image is resized to about 448 x 448 by PIL before the processor sees it; the score is the mean (first output) at the
reward token; every weight must be found.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from customized_grpo.devices import safetensors_name
from customized_grpo.paths import model_path
from customized_grpo.recipe.scorers import HeldModel, ModelRewardSpec, Revision
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.features import DTYPES, DtypeName, require_prompt, to_pil
from customized_grpo.rewards.hpsv3_prompt import IMAGE_TOKEN, REWARD_TOKEN, chat
from customized_grpo.types import Example
from customized_grpo.web.hub import loading
from customized_grpo.weights import check_finite

_FILE: Final = "HPSv3.safetensors"
_PIXELS: Final = 256 * 28 * 28
"""Area to which every image is resized, up to rounding of its sides to multiples of 28."""
_UNUSED: Final = "lm_head.weight"
"""Language-model head of 1 GB, not loaded since no score depends on it."""


@final
class HPSv3(Reward):
    """Preference score of HPSv3; FLUX reaches about 10 on its benchmark, short prompts get less."""

    @final
    class Config(ModelRewardSpec):
        """A reward's section with ``type: hpsv3``."""

        transport: ClassVar[frozenset[str]] = frozenset({"batch_size"})
        model: str = Field(
            default="Qwen/Qwen2-VL-7B-Instruct",
            description="hub id or folder of configuration, tokenizer and image processor; its weights aren't used",
        )
        checkpoint: str = Field(
            default="MizzenAI/HPSv3", description=f"a .safetensors file, or a hub id that holds {_FILE}"
        )
        revision: Revision = None
        checkpoint_revision: Revision = None
        batch_size: PositiveInt = Field(default=4, description="images per forward")
        dtype: DtypeName = Field(default="bfloat16", description="dtype of the trunk; the head is always float32")

        def held_models(self) -> Sequence[HeldModel]:
            """The checkpoint, without the head of its language model."""
            revision = self.checkpoint_revision
            return (HeldModel(self.checkpoint, "hpsv3", self.dtype, self.batch_size, revision, frozenset({_UNUSED})),)

    def __init__(self, config: Config, *, device: torch.device) -> None:
        # The PIL processor explicitly: with torchvision installed the default, and so the reward, would differ.
        from transformers import AutoConfig, AutoTokenizer, Qwen2VLImageProcessorPil

        self._device, self._batch_size = device, config.batch_size
        base = model_path(config.model, "hpsv3")
        checkpoint = _checkpoint(config.checkpoint, config.checkpoint_revision)
        with loading("reward model", config.model):
            settings = AutoConfig.from_pretrained(base, revision=config.revision, trust_remote_code=False)
            self._tokenizer = AutoTokenizer.from_pretrained(base, revision=config.revision, trust_remote_code=False)
            self._processor = Qwen2VLImageProcessorPil.from_pretrained(base, revision=config.revision)
        if settings.model_type != "qwen2_vl":
            raise ValueError(
                f"reward model {config.model!r} is a {settings.model_type!r} model, but HPSv3 is a 'qwen2_vl' one"
            )
        self._tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        self._reward_id = int(self._tokenizer.convert_tokens_to_ids(REWARD_TOKEN))
        self._image_id = int(settings.image_token_id)
        self._merge = int(self._processor.merge_size)
        self._trunk, self._head = _load(settings, checkpoint, DTYPES[config.dtype], device, rows=self._reward_id + 1)

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """Preference score of each image for the example's prompt.

        Raises:
            ValueError: the example has no prompt, or it holds special tokens.
        """
        require_prompt(example)
        pictures = to_pil(images)
        batches = range(0, len(pictures), self._batch_size)
        return torch.cat([self._score(example.prompt, pictures[at : at + self._batch_size]) for at in batches])

    @torch.no_grad()
    def _score(self, prompt: str, images: list[Image.Image]) -> Float[Tensor, " n"]:
        # The images of a group share size and prompt, so their inputs have equal length: no padding is needed.
        picture = self._processor(images=[_resized(image) for image in images], do_resize=False, return_tensors="pt")
        grid = picture["image_grid_thw"]
        tokens = self._tokens(prompt, int(grid[0].prod()) // self._merge**2).to(self._device)
        n, length = len(images), len(tokens)
        states: Tensor = self._trunk(
            input_ids=tokens.expand(n, length),
            attention_mask=torch.ones(n, length, dtype=torch.long, device=self._device),
            position_ids=torch.arange(length, device=self._device).expand(3, n, length),
            pixel_values=picture["pixel_values"].to(self._device),
            image_grid_thw=grid.to(self._device),
            use_cache=False,
        ).last_hidden_state
        (at,) = (tokens == self._reward_id).nonzero().flatten().tolist()
        mean_and_spread: Tensor = self._head(states[:, at].float())
        return mean_and_spread[:, 0].cpu()

    def _tokens(self, prompt: str, image_tokens: int) -> Int[Tensor, " l"]:
        """Token ids of the whole input, with one placeholder per image token."""
        ids = torch.tensor(self._tokenizer(chat(prompt))["input_ids"])
        repeats = torch.where(ids == self._image_id, image_tokens, 1)
        assert int((ids == self._image_id).sum()) == 1, f"{IMAGE_TOKEN} is not a token of this tokenizer"
        return ids.repeat_interleave(repeats)


def _resized(image: Image.Image) -> Image.Image:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(image.height, image.width, 28, min_pixels=_PIXELS, max_pixels=_PIXELS)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _checkpoint(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(
                f"checkpoint {name!r} is not a .safetensors file; nothing is unpickled here, so convert it first"
            )
        return path
    found = Path(model_path(name, "hpsv3"))
    if found.is_dir():
        if not (found / _FILE).is_file():
            raise ValueError(f"checkpoint {name!r}: the folder holds no {_FILE}; give the file itself")
        return found / _FILE
    with loading(f"checkpoint ({_FILE})", name):
        return Path(hf_hub_download(name, _FILE, revision=revision))


def _head(width: int) -> nn.Sequential:
    """The head; an identity stands for the dropout at index 2, to match the checkpoint's numbering."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Identity(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def _load(
    settings: Any, checkpoint: Path, dtype: torch.dtype, device: torch.device, *, rows: int
) -> tuple[nn.Module, nn.Module]:
    """Trunk and head with the checkpoint's weights, each read once, directly to its device.

    Raises:
        ValueError: weights are missing, left over or have another shape, or the tokenizer differs.
    """
    from accelerate import init_empty_weights
    from transformers import Qwen2VLForConditionalGeneration

    weights = dict(_read(checkpoint, dtype, device))
    embedding = weights.get("trunk.language_model.embed_tokens.weight")
    if embedding is not None and len(embedding) != rows:
        raise ValueError(
            f"checkpoint {checkpoint} has {len(embedding)} token embeddings, but the tokenizer of 'model' makes "
            f"{REWARD_TOKEN} number {rows - 1}, which must be the last; give the base model that it was trained from"
        )
    settings.get_text_config().vocab_size = rows
    with init_empty_weights():
        model = Qwen2VLForConditionalGeneration._from_config(settings, attn_implementation="sdpa")
        parts = nn.ModuleDict({"trunk": model.model, "head": _head(settings.get_text_config().hidden_size)})
    try:
        parts.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"checkpoint {checkpoint} doesn't fit HPSv3 on this 'model': {_first_lines(error)}") from error
    check_finite(weights, f"checkpoint {checkpoint}")
    parts.to(device).eval().requires_grad_(False)
    return parts["trunk"], parts["head"]


def _read(checkpoint: Path, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    try:
        with safe_open(checkpoint, framework="pt", device=safetensors_name(device)) as file:
            for name in file.keys():  # noqa: SIM118 - it is not a mapping
                if name != _UNUSED:
                    kept = torch.float32 if name.startswith("rm_head.") else dtype
                    yield _renamed(name), file.get_tensor(name).to(kept)
    except Exception as error:
        raise ValueError(f"checkpoint {checkpoint} can't be read: {error}; download it again") from error


_PREFIXES: Final[Mapping[str, str]] = {
    "visual.": "trunk.visual.",
    "model.": "trunk.language_model.",
    "rm_head.": "head.",
}


def _renamed(name: str) -> str:
    """Map a weight's name in the checkpoint (transformers 4.45) to its name here; unknown names fail later."""
    for old, new in _PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _first_lines(error: RuntimeError) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[1:3])[:400]
