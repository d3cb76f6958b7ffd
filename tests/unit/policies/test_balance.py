"""A balanced adapter: for every b it is the plain LoRA that its export writes, in every policy's velocity."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.advantages.time_weights import leaning, tdw
from customized_grpo.policies import balance
from customized_grpo.policies.adapters import tuning
from customized_grpo.policies.adapters.lora import attach, save_adapter, trainable_parameters
from customized_grpo.policies.adapters.lora_reader import LoraFile, read_lora
from customized_grpo.policies.adapters.tensor_files import read_metadata
from customized_grpo.policies.adapters.tuning import load_tuned
from customized_grpo.policies.base import LoraSettings, Policy, stack
from customized_grpo.policies.export import export
from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.testing import check_policy
from customized_grpo.types import Conditioning, Example
from pipeline_cases import CASES, PROMPT, maker, noise, pictures, shrink_constants
from tiny import make_tiny_flux

CPU = torch.device("cpu")
BALANCES = (-1.0, -0.4, 0.0, 0.3, 1.0)
FEW = LoraSettings(rank=3, alpha=6, balance=True)
SIGMA = torch.tensor(0.6)
NAMES = ["uno", "klein-base", "klein-kv", "flux3", "qwen-2509", "qwen-2.1"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_constants(monkeypatch)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return maker(lambda: tmp_path_factory.mktemp("models"), uno=make_tiny_flux)


def load(folder: Path, name: str) -> Any:
    if name != "uno":
        return CASES[name].load(folder, torch.float32)
    given = {"model": str(folder), "height": 64, "width": 48, "max_sequence_length": 16, "min_references": 0}
    return UNO.load(UNOConfig.model_validate(given), device=CPU, dtype=torch.float32)


def trained(policy: Policy, settings: LoraSettings = FEW) -> Any:
    """The policy with a balanced adapter in which nothing is zero."""
    attach(policy, settings, seed=0)
    draw = torch.Generator().manual_seed(1)
    for one in trainable_parameters(policy).values():
        one.data = torch.randn(one.shape, generator=draw) * 0.1
    return policy


@torch.no_grad()
def velocity(policy: Any, cond: Conditioning, n: int = 2) -> Tensor:
    found: Tensor = policy.velocity(noise(policy, n), SIGMA, policy.on_grid(cond, torch.tensor([1.0, 0.6, 0.0])))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_balance_is_the_plain_lora_that_is_exported(
    folder_of: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """In the stock format, of twice the rank and exact; 0 is dW_0, which is what other tools find in a checkpoint."""
    folder = folder_of(name)
    policy = trained(load(folder, name))
    save_adapter(policy, tmp_path / "run", {})
    cond = policy.encode(PROMPT, pictures()[:1])
    ours = {b: velocity(policy, balance.at(cond, b, CPU)) for b in BALANCES}
    apart = [float((one - ours[0.0]).abs().max()) for b, one in ours.items() if b]
    assert min(apart) > 1e-3
    for b, expected in ours.items():
        file = export(str(tmp_path / "run"), tmp_path / f"at {b}", "diffusers", with_base=False, recipe=None, balance=b)
        assert {one.rank for one in read_lora(file).factors.values()} == {6 if b else 3}
        assert read_metadata(file)["balance"] == f"{b:g}"
        plain = load(folder, name)
        load_tuned(plain, str(file))
        assert plain.gate is None
        assert float((velocity(plain, cond) - expected).abs().max()) < 2e-5
    assert torch.equal(velocity(policy, cond), ours[0.0]), "a conditioning without one is at 0"
    checkpoint = load(folder, name)
    load_tuned(checkpoint, str(tmp_path / "run"))
    assert float((velocity(checkpoint, cond) - ours[0.0]).abs().max()) < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_several_balances_share_a_batch(folder_of: Callable[[str], Path], name: str) -> None:
    """Each row is what it is alone; kept keys are of their own balance."""
    policy = trained(load(folder_of(name), name))
    cond = policy.encode(PROMPT, pictures()[:1])
    several = [balance.at(cond, b, CPU) for b in (-1.0, 0.5)]
    stacked = stack(policy, several, 2)
    assert stacked is not None
    together = velocity(policy, stacked, 4)
    grid = torch.tensor([1.0, 0.6, 0.0])
    for number, one in enumerate(several):
        rows = noise(policy, 4)[2 * number : 2 * number + 2]
        with torch.no_grad():
            alone = policy.velocity(rows, SIGMA, policy.on_grid(one, grid))
            kept = policy.velocity(rows, SIGMA, policy.prefill(policy.on_grid(one, grid)))
        assert float((together[2 * number : 2 * number + 2] - alone).abs().max()) < 2e-5
        assert torch.equal(alone, kept)


@pytest.mark.parametrize("name", ["uno", "klein-kv", "qwen-2.1"])
def test_conformance(folder_of: Callable[[str], Path], name: str) -> None:
    policy = trained(load(folder_of(name), name))
    check_policy(policy, Example(key="one", prompt=PROMPT, references=pictures()[:1]))


def test_the_first_update_begins_at_the_base(folder_of: Callable[[str], Path]) -> None:
    base = load(folder_of("uno"), "uno")
    cond = base.encode(PROMPT, pictures()[:1])
    expected = velocity(base, cond)
    attach(base, FEW, seed=0)
    for b in BALANCES:
        assert torch.equal(velocity(base, balance.at(cond, b, CPU)), expected)


def test_the_slope_has_the_gradient_of_its_balance(folder_of: Callable[[str], Path]) -> None:
    """That of dW_1 is b times that of dW_0 where both have equal factors, also through recomputed blocks."""
    policy = load(folder_of("uno"), "uno")
    attach(policy, FEW, seed=0)
    cond = policy.encode(PROMPT, pictures()[:1])
    for name, one in trainable_parameters(policy).items():
        if ".lora_A." in name:
            one.data[3:] = one.data[:3]
    policy.transformer.enable_gradient_checkpointing()
    policy.transformer.train()
    loss = policy.velocity(noise(policy, 2), SIGMA, balance.at(cond, -0.4, CPU)).square().mean()
    loss.backward()
    for name, one in trainable_parameters(policy).items():
        if ".lora_B." in name:
            assert one.grad is not None
            torch.testing.assert_close(one.grad[:, 3:], -0.4 * one.grad[:, :3], rtol=1e-3, atol=1e-8)


def test_what_is_not_balanced_is_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    plain = load(folder_of("uno"), "uno")
    attach(plain, LoraSettings(rank=2), seed=0)
    save_adapter(plain, tmp_path / "plain", {})
    with pytest.raises(ValueError, match=r"balance: .*plain.* is of one trade-off.*policy\.lora\.balance=true"):
        tuning.read_all(str(tmp_path / "plain"), 0.5)
    save_adapter(trained(load(folder_of("uno"), "uno")), tmp_path / "run", {})
    with pytest.raises(ValueError, match=r"balance: given 1\.2; allowed: -1"):
        tuning.read_all(str(tmp_path / "run"), 1.2)
    with pytest.raises(ValueError, match="balance: its two updates begin at the base"):
        LoraSettings(balance=True, path=str(tmp_path / "plain"))


def test_a_scale_is_one_of_both_updates(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    policy = trained(load(folder_of("uno"), "uno"))
    save_adapter(policy, tmp_path / "run", {})
    (half,) = tuning.read_all(f"{tmp_path / 'run'}=0.5", -1.0)
    (whole,) = tuning.read_all(str(tmp_path / "run"), -1.0)
    assert (half.scale, whole.scale) == (0.5, 1.0)
    assert isinstance(half.tuned, LoraFile)
    assert isinstance(whole.tuned, LoraFile)
    for name, one in half.tuned.factors.items():
        assert torch.equal(one.a, whole.tuned.factors[name].a)
        assert torch.equal(one.b, whole.tuned.factors[name].b)


@pytest.mark.parametrize("reach", [0.5, 1.0])
def test_weights_lean_and_their_sum_stays(reach: float) -> None:
    rows = tdw(6)
    assert torch.equal(leaning(rows, 0.0, reach=reach), rows)
    for b in (-1.0, -0.3, 0.6, 1.0):
        found = leaning(rows, b, reach=reach)
        torch.testing.assert_close(found.sum(1), rows.sum(1))
        ratio = (found[:, 1] / found[:, 0]) / (rows[:, 1] / rows[:, 0])
        if reach < 1 or abs(b) < 1:
            torch.testing.assert_close(ratio, torch.full((6,), (1 + reach * b) / (1 - reach * b)))
    ends = [leaning(rows, b, reach=1.0) for b in (-1.0, 1.0)]
    assert not ends[0][:, 1].any()
    assert not ends[1][:, 0].any()
    wide = torch.tensor([[0.5, 0.3, 0.2]])
    assert float(leaning(wide, 0.5, reach=1.0)[0, 2]) > 0, "a further axis keeps a share"
    none = torch.tensor([[1.0, 0.0]])
    assert torch.equal(leaning(none, 1.0, reach=1.0), torch.zeros(1, 2)), "nothing to lean to"


def test_groups_draw_balances_of_their_place() -> None:
    found = [balance.drawn(7, step, group) for step in range(50) for group in range(4)]
    assert found == [balance.drawn(7, step, group) for step in range(50) for group in range(4)]
    assert len(set(found)) == 200
    assert -1 <= min(found) < -0.9
    assert 0.9 < max(found) <= 1
    assert abs(sum(found) / 200) < 0.15
