"""Damaged files of weights: what they are is said, and numbers that are none are refused wherever weights are read."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from customized_grpo.policies.adapters import tuning
from customized_grpo.policies.adapters.lora_reader import LoraFile
from customized_grpo.policies.adapters.tensor_files import check_finite, read_metadata, read_tensors
from customized_grpo.policies.base import FullSettings, PolicyConfig
from tiny import tiny_policy

GOOD = save({"a": torch.ones(8)}, {"format": "pt"})


def header(content: Any, body: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + body


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty; download it again"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "'git lfs pull'"),
    "a web page": (b"\n<!DOCTYPE html><html><title>404</title>", "a web page"),
    "a page in upper case": (b"<HTML><body>Sign in</body>", "a web page"),
    "an answer of a server": (b'{"error":"Repository not found"}', r"a text \('.*Repository not found"),
    "a word of a server": (b"Entry not found", r"a text \('Entry not found'\)"),
    "an archive of torch.save": (b"PK\x03\x04" + bytes(60), "a pickle of torch.save, which is never opened"),
    "a pickle": (b"\x80\x02}q\x00.", "a pickle, which is never opened"),
    "GGUF": (b"GGUF" + bytes(60), "a GGUF file"),
    "cut off in its header": (GOOD[:30], r"cut off: its header speaks of \d+ bytes, and the file has 30"),
    "cut off in its weights": (GOOD[:-4], rf"cut off: its header speaks of {len(GOOD)} bytes, and the file has \d+"),
    "with more at its end": (GOOD + bytes(4), rf"speaks of {len(GOOD)} bytes, and the file has {len(GOOD) + 4}"),
    "a broken header": (header(b"{not json}"), "its header is damaged"),
    "a header that is a list": (header([]), "no safetensors file, or a damaged one"),
    "a header that is no UTF-8": (header(b'{"\xff":1}'), "its header is damaged"),
    "metadata that are numbers": (header({"__metadata__": {"a": 1}}), "its header is damaged"),
    "an unknown dtype": (
        header({"a": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "its header is damaged",
    ),
    "a shape below 0": (
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        "its header is damaged",
    ),
    "a length beyond all": (struct.pack("<Q", 2**63) + GOOD[8:], "no safetensors file, or a damaged one"),
}


@pytest.mark.parametrize("read", [read_tensors, read_metadata])
@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_what_a_file_is_instead_is_said(tmp_path: Path, content: bytes, message: str, read: Any) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights '.*w\.safetensors' can't be read .*: .*{message}"):
        read(file, "weights")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        read_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(tmp_path: Path, dtype: torch.dtype, bad: float) -> None:
    tensor = torch.ones(4, 4)
    tensor[1, :3] = bad
    save_file({"good": torch.ones(2).to(dtype), "bad": tensor.to(dtype)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"weights '.*' is broken: 3 values are NaN or infinite, in bad\. "):
        read_tensors(tmp_path / "w.safetensors", "weights")


def test_infinities_of_both_signs_do_not_cancel() -> None:
    with pytest.raises(ValueError, match="2 values"):
        check_finite({"w": torch.tensor([math.inf, -math.inf, 1.0])}, "it")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float8_e4m3fn, torch.int8, torch.bool])
def test_all_other_numbers_are_taken(dtype: torch.dtype) -> None:
    """Also where their sum overflows, and those that can be no NaN."""
    largest = torch.finfo(dtype).max if dtype.is_floating_point else 1
    check_finite({"w": torch.full((64,), largest).to(dtype)}, "it")
    check_finite({"w": torch.ones(3, device="meta")}, "it")


def broken(file: Path) -> str:
    """Put one NaN into a file; the name of the tensor."""
    state = load_file(file)
    name = next(name for name, tensor in sorted(state.items()) if tensor.is_floating_point() and tensor.numel() > 1)
    state[name].view(-1)[0] = math.nan
    save_file(state, file)
    return name


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_model_with_nan_is_refused(tiny_flux: Path, tmp_path: Path, part: str) -> None:
    """Today's black picture: the message names the part and the weight."""
    folder = tmp_path / "model"
    for file in (one for one in tiny_flux.rglob("*") if one.is_file()):
        (folder / file.relative_to(tiny_flux)).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.relative_to(tiny_flux)).write_bytes(file.read_bytes())
    broken(next((folder / part).glob("*.safetensors")))
    with pytest.raises(ValueError, match=rf"policy\.model: the {part} of '.*model' is broken: 1 values are NaN"):
        tiny_policy(folder)


def test_a_trained_transformer_with_nan_is_refused(tiny_flux: Path, tmp_path: Path) -> None:
    policy = tiny_policy(tiny_flux)
    policy.transformer.save_pretrained(tmp_path)
    name = broken(tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=rf"transformer '.*' is broken: 1 values are NaN or infinite, in {name}"):
        tuning.load_tuned(tiny_policy(tiny_flux), tmp_path)
    section = PolicyConfig(type="uno", model="own", full=FullSettings(path=str(tmp_path)))
    with pytest.raises(ValueError, match="is broken: 1 values are NaN"):
        tuning.attach(tiny_policy(tiny_flux), section, seed=0)


def test_a_lora_beside_a_config_is_no_transformer(tmp_path: Path) -> None:
    """Folders of the hub often hold a config.json of something else."""
    factors = {f"transformer.transformer_blocks.0.attn.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    save_file(factors, tmp_path / "lora.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert isinstance(tuning.read(tmp_path), LoraFile)
