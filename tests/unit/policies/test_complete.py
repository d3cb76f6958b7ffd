"""A folder of a model is whole: weights that its files lack or its configuration leaves out are named before a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.policies.complete import check_complete
from tiny import tiny_policy

PARTS = ["text_encoder", "text_encoder_2", "transformer", "vae"]


def changed(folder: Path, part: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.fixture
def folder(tiny_flux: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_flux, tmp_path / "flux"))


@pytest.mark.parametrize("part", PARTS)
def test_missing_weights_are_named(folder: Path, part: str) -> None:
    """Of a text encoder they were drawn at random, of the others a traceback of torch's meta device came."""
    gone: list[str] = []

    def take(tensors: dict[str, Tensor]) -> None:
        gone.append(sorted(tensors)[3])
        del tensors[gone[0]]

    changed(folder, part, take)
    with pytest.raises(ValueError, match=rf"policy\.model: .*weights of its {part} are missing: .*; get .* again"):
        tiny_policy(folder)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_weights_without_a_place_are_named(folder: Path, part: str) -> None:
    changed(folder, part, lambda tensors: tensors.update({"blocks.9.weight": torch.ones(2)}))
    with pytest.raises(ValueError, match=rf"of its {part} have no place in what its config\.json says: blocks\.9"):
        tiny_policy(folder)


@pytest.mark.parametrize(("layers", "message"), [(0, "have no place in what"), (3, "are missing")])
def test_a_configuration_of_other_blocks_is_named(folder: Path, layers: int, message: str) -> None:
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_single_layers": layers}))
    with pytest.raises(ValueError, match=rf"weights of its transformer {message}.*single_transformer_blocks"):
        tiny_policy(folder)


@pytest.mark.parametrize("part", PARTS)
def test_weights_of_another_shape_are_named(folder: Path, part: str) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
        tensors[name] = torch.ones(3, 3)

    changed(folder, part, widen)
    with pytest.raises(ValueError, match=rf"policy\.model: .*weights of its {part} are of another shape"):
        tiny_policy(folder)


def test_parts_from_elsewhere_and_heads_of_text_encoders_are_no_matter(folder: Path) -> None:
    changed(folder, "transformer", lambda tensors: tensors.clear())
    changed(folder, "text_encoder", lambda tensors: tensors.update({"text_projection.weight": torch.ones(2)}))
    check_complete(folder, "model_index.json", skip={"transformer"}, variant=None)


@pytest.mark.parametrize("shards", [False, True])
def test_no_weights_of_a_model_that_fits_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, shards: bool
) -> None:
    """Else a start would read FLUX's 24 GB twice."""
    if shards:
        FluxTransformer2DModel.from_pretrained(folder / "transformer").save_pretrained(
            folder / "transformer", max_shard_size="200KB"
        )
        assert len(list((folder / "transformer").glob("*-of-*.safetensors"))) > 1
    for model in (FluxTransformer2DModel, AutoencoderKL):
        monkeypatch.setattr(model, "from_pretrained", pytest.fail)
    check_complete(folder, "model_index.json", skip=(), variant=None)
