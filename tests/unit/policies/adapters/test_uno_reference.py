"""``uno`` against the public UNO code: outputs that it gave on weights made here from seeds (``uno_golden``)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import uno_golden
from customized_grpo.policies.adapters.flux_keys import to_original
from customized_grpo.policies.adapters.lora_reader import read_lora
from customized_grpo.policies.adapters.uno_lora import to_uno
from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.policies.flux_loading import original_keys
from customized_grpo.sampling.schedule import sigma_grid
from frozen_weights import frozen_hash
from tiny import make_tiny_flux
from uno_golden import CASES

GOLDEN: dict[str, Any] = json.loads(Path(uno_golden.__file__).with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A pipeline whose transformer has other weights, and the original's weights and LoRA."""
    folder = tmp_path_factory.mktemp("uno")
    original, lora = uno_golden.write_files(folder)
    model = make_tiny_flux(folder / "model", transformer=uno_golden.transformer())
    return {"model": str(model), "transformer": str(original), "lora": str(lora)}


def load(files: dict[str, str], **changes: Any) -> UNO:
    height, width = (16 * side for side in uno_golden.GRID)
    settings = {"model": files["model"], "transformer": files["transformer"], "guidance": uno_golden.GUIDANCE}
    config = UNOConfig.model_validate({**settings, "height": height, "width": width, **changes})
    return UNO.load(config, device=torch.device("cpu"), dtype=torch.float32)


def velocity(policy: UNO, case: str) -> Tensor:
    x, text, pooled, references = uno_golden.inputs(CASES[case])
    with torch.no_grad():
        return policy.velocity(x, torch.tensor(uno_golden.SIGMA), policy.condition(text, pooled, references))


@pytest.mark.parametrize("mode", ["plain", "fuse", "adapter"])
def test_velocity_is_unos(files: dict[str, str], mode: str) -> None:
    """For 1, 2 and 3 references, rectangular ones too, with and without UNO's LoRA."""
    lora = None if mode == "plain" else {"path": files["lora"], "mode": mode}
    policy = load(files, base_lora=lora)
    for case in CASES:
        given = velocity(policy, case)
        expected = GOLDEN[f"{case}/{'plain' if lora is None else 'lora'}"]
        sample = given.flatten()[:: given.numel() // 16][:16]
        # 1e-5 on the machine that made the golden values; other processors' kernels add in another order
        torch.testing.assert_close(sample, torch.tensor(expected["sample"]), rtol=0, atol=3e-5)
        assert float(given.mean()) == pytest.approx(expected["mean"], abs=1e-5)
        assert float(given.std()) == pytest.approx(expected["std"], abs=1e-5)


def test_the_lora_and_the_case_matter(files: dict[str, str]) -> None:
    """Golden values of another case or without the LoRA would not do."""
    values = torch.tensor([one["sample"] for one in GOLDEN.values()])
    distances = torch.cdist(values, values) + torch.eye(len(values))
    assert distances.min() > 0.1
    half = load(files, base_lora={"path": files["lora"], "mode": "adapter", "scale": 0.5})
    assert abs(float(velocity(half, "one").std()) - GOLDEN["one/lora"]["std"]) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_fused_and_adapter_agree(files: dict[str, str], scale: float) -> None:
    fused, kept = (
        load(files, base_lora={"path": files["lora"], "mode": mode, "scale": scale}) for mode in ("fuse", "adapter")
    )
    for case in CASES:
        torch.testing.assert_close(velocity(fused, case), velocity(kept, case), rtol=0, atol=1e-5)


def test_weights_go_to_the_originals_names_and_back(files: dict[str, str]) -> None:
    policy = load(files)
    original = load_file(files["transformer"])
    again = to_original(policy.transformer.state_dict(), original_keys(policy.transformer))
    assert original.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in original.items())


def test_a_fused_file_is_the_base_with_its_lora(files: dict[str, str], tmp_path: Path) -> None:
    """An already fused file in Black Forest Labs' format, under a prefix that some tools give it."""
    fused = load(files, base_lora={"path": files["lora"], "mode": "fuse"})
    state = to_original(fused.transformer.state_dict(), original_keys(fused.transformer))
    save_file({f"model.diffusion_model.{k}": v for k, v in state.items()}, tmp_path / "fused.safetensors")
    policy = load(files, transformer=str(tmp_path / "fused.safetensors"))
    assert frozen_hash(policy.transformer) == frozen_hash(fused.transformer)


def test_unos_lora_goes_to_modules_and_back(files: dict[str, str]) -> None:
    state = uno_golden.uno_lora_state()
    again = to_uno(read_lora(files["lora"]).update(uno_golden.transformer()))
    assert state.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("rule", "num_tokens", "expected"),
    [  # UNO's get_schedule(25, ...): its second value, with the token count that its pipeline and that FLUX's own gives
        ("uno", 1024, 0.9743549823760986),
        ("dynamic", 1024, 0.9782904386520386),
        ("uno", 4096, 0.9745572805404663),
        ("dynamic", 4096, 0.9869785904884338),
    ],
)
def test_the_schedule_is_unos(rule: str, num_tokens: int, expected: float) -> None:
    section = UNOConfig.model_validate({"model": "mini"})
    assert float(sigma_grid(section, rule, 25, num_tokens)[1]) == pytest.approx(expected, abs=1e-6)


def broken(files: dict[str, str], folder: Path, what: str, change: str) -> str:
    """A copy of a file with one key dropped, renamed or of another shape."""
    state = load_file(files[what])
    name = sorted(state)[0]
    tensor = state[name] if change == "surplus" else state.pop(name)
    if change == "surplus":
        state["double_blocks.9.strange.weight"] = tensor.clone()
    if change == "shape":
        state[name] = torch.zeros(3, 3)
    path = folder / f"{change}.safetensors"
    save_file(state, path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"missing:? (of )?double_blocks\.0\.\S+"),
        ("surplus", r"(surplus|read here): double_blocks\.9\.strange\.weight"),
        ("shape", r"double_blocks\.0.*(shape|don't fit)"),
    ],
)
@pytest.mark.parametrize("what", ["transformer", "lora"])
def test_every_key_must_map(files: dict[str, str], tmp_path: Path, what: str, change: str, message: str) -> None:
    path = broken(files, tmp_path, what, change)
    changes = {"transformer": path} if what == "transformer" else {"base_lora": {"path": path}}
    key = "policy.transformer" if what == "transformer" else "policy.base_lora"
    with pytest.raises(ValueError, match=rf"{key}: .*{message}") as caught:
        load(files, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["transformer", "lora"])
def test_truncated_files_are_refused(files: dict[str, str], tmp_path: Path, what: str) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(Path(files[what]).read_bytes()[:-100])
    changes = {"transformer": str(path)} if what == "transformer" else {"base_lora": {"path": str(path)}}
    with pytest.raises(ValueError, match=r"short\.safetensors.*can't be read.*it is cut off"):
        load(files, **changes)


def test_a_lora_of_another_model_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    state = {name: torch.zeros(2 * t.shape[0], t.shape[1]) for name, t in uno_golden.uno_lora_state().items()}
    for name in state:
        if name.endswith("up.weight"):
            state[name] = torch.zeros(state[name].shape[0], 8)
    save_file(state, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"base_lora.*another width.*64 x 32"):
        load(files, base_lora={"path": str(tmp_path / "wide.safetensors")})
