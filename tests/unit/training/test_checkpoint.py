"""A checkpoint is complete or absent: atomic writing, verification, fallback, retention, optimizer state."""

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from customized_grpo.policies.adapters import tensor_files
from customized_grpo.policies.adapters.tensor_files import read_tensors, write_tensors
from customized_grpo.training import checkpoint
from customized_grpo.training.checkpoint import (
    LATEST,
    CheckpointError,
    SaveError,
    check,
    flatten_optimizer,
    latest,
    newest,
    restore_optimizer,
    save_checkpoint,
)


def names(folder: Path) -> list[str]:
    """All that lies in the folder, but for the link."""
    return sorted(path.name for path in folder.iterdir() if path.name != LATEST)


def writer(text: str = "weights") -> Callable[[Path], None]:
    def write(aside: Path) -> None:
        (aside / "state").mkdir()
        (aside / "weights.bin").write_text(text)
        (aside / "state" / "trainer.json").write_text("{}")

    return write


def fail(message: str) -> None:
    raise AssertionError(f"warned: {message}")


def test_it_is_complete_with_sizes_and_hashes(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "checkpoints", 50, writer(), keep=3)
    assert path == tmp_path / "checkpoints" / "step-000050"
    assert check(path) == 50
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"weights.bin", "state/trainer.json"}
    assert manifest["files"]["weights.bin"]["bytes"] == len("weights")
    assert latest(tmp_path / "checkpoints", fail) == path


def test_a_write_that_dies_leaves_no_checkpoint_and_the_one_before_it(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, 1, writer(), keep=3)

    def dies(aside: Path) -> None:
        writer()(aside)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, dies, keep=3)
    assert not (tmp_path / "step-000002").exists()
    assert latest(tmp_path, fail) == first
    second = save_checkpoint(tmp_path, 2, writer("again"), keep=3)  # over what was left behind
    assert latest(tmp_path, fail) == second
    assert (second / "weights.bin").read_text() == "again"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_still_being_written_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step-000009.tmp").mkdir()
    assert newest(tmp_path) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        latest(tmp_path, fail)


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: corrupt(path / "weights.bin"), "weights.bin is corrupt"),
        (lambda path: (path / "weights.bin").write_text("weight"), "weights.bin is corrupt"),
        (lambda path: (path / "state" / "trainer.json").unlink(), "state/trainer.json is missing"),
        (lambda path: (path / "manifest.json").unlink(), "no readable manifest.json"),
        (lambda path: (path / "manifest.json").write_text('{"step": 2'), "no readable manifest.json"),
        (lambda path: (path / "manifest.json").write_text("[]"), "no readable manifest.json"),
    ],
    ids=["flipped bit", "truncated", "missing file", "no manifest", "half a manifest", "another JSON"],
)
def test_a_damaged_one_is_refused_and_passed_over(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    first, second = (save_checkpoint(tmp_path, step, writer(), keep=3) for step in (1, 2))
    damage(second)
    with pytest.raises(CheckpointError, match=message):
        check(second)
    warnings: list[str] = []
    assert latest(tmp_path, warnings.append) == first
    assert len(warnings) == 1
    assert message in warnings[0]
    assert "step-000002" in warnings[0]


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    corrupt(save_checkpoint(tmp_path, 1, writer(), keep=3) / "weights.bin")
    with pytest.raises(CheckpointError, match=r"run\.resume=null"):
        latest(tmp_path, lambda _: None)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        latest(tmp_path / "nowhere", fail)


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (5, 10, 15, 100):
        save_checkpoint(tmp_path, step, writer(), keep=keep)
    kept = names(tmp_path)
    assert kept == ["step-000015", "step-000100"][-keep:]


def test_the_same_step_is_written_again(tmp_path: Path) -> None:
    corrupt(save_checkpoint(tmp_path, 5, writer("old"), keep=2) / "weights.bin")
    path = save_checkpoint(tmp_path, 5, writer("new"), keep=2)
    assert check(path) == 5
    assert (path / "weights.bin").read_text() == "new"


def train(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for index, weight in enumerate(weights):
            weight.grad = torch.full_like(weight, 0.1 * (step + 1) * (index - 0.5))
        optimizer.step()


def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    names = ["b", "a"]

    def start() -> list[nn.Parameter]:
        return [nn.Parameter(torch.linspace(0, 1, 3)), nn.Parameter(torch.ones(2, 2))]

    whole = start()
    train(torch.optim.AdamW(whole, lr=0.1), whole, range(6))

    part = start()
    optimizer = torch.optim.AdamW(part, lr=0.1)
    train(optimizer, part, range(3))
    write_tensors(tmp_path / "optimizer.safetensors", flatten_optimizer(optimizer, names))
    resumed = [nn.Parameter(weight.detach().clone()) for weight in part]
    optimizer = torch.optim.AdamW(resumed, lr=0.1)
    restore_optimizer(
        optimizer, dict(zip(names, resumed, strict=True)), read_tensors(tmp_path / "optimizer.safetensors")
    )
    train(optimizer, resumed, range(3, 6))
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one, other)

    forgetful = [nn.Parameter(weight.detach().clone()) for weight in part]
    train(torch.optim.AdamW(forgetful, lr=0.1), forgetful, range(3, 6))
    assert not torch.equal(whole[0], forgetful[0])


def test_an_optimizer_that_never_stepped_has_no_state(tmp_path: Path) -> None:
    weights = [nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW(weights)
    write_tensors(tmp_path / "optimizer.safetensors", flatten_optimizer(optimizer, ["a"]))
    restore_optimizer(optimizer, {"a": weights[0]}, read_tensors(tmp_path / "optimizer.safetensors"))
    assert not optimizer.state_dict()["state"]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    one, two = torch.ones(2), torch.zeros(3)
    write_tensors(tmp_path / "1", {"a": one, "b": two})
    write_tensors(tmp_path / "2", {"b": two, "a": one})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_full_disk_leaves_what_was_there_and_no_half(tmp_path: Path) -> None:
    """A disk of 64 KiB, for real."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        first = save_checkpoint(disk / "checkpoints", 1, writer(), keep=2)
        for large in (
            lambda aside: write_tensors(aside / "a.safetensors", {"a": torch.ones(100_000)}),
            lambda aside: (aside / "a.json").write_text("x" * 100_000),
        ):
            with pytest.raises(SaveError, match=r"No space left on device.*run\.resume=latest"):
                save_checkpoint(disk / "checkpoints", 2, large, keep=2)
            assert names(disk / "checkpoints") == ["step-000001"]
            assert check(first) == 1
        assert check(save_checkpoint(disk / "checkpoints", 2, writer(), keep=2)) == 2  # there is room again
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("failing", ["tensors", "json", "manifest", "sync"])
def test_a_disk_that_fills_up_anywhere_leaves_what_was_there_and_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """As a disk of 64 KiB does, for those who may mount none."""
    folder = tmp_path / "checkpoints"

    def write(aside: Path) -> None:
        write_tensors(aside / "a.safetensors", {"a": torch.ones(4)})
        (aside / "a.json").write_text(json.dumps({"a": 1}))

    first = save_checkpoint(folder, 1, write, keep=2)
    write_text, save_file = Path.write_text, tensor_files.save_file
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half_a_text(self: Path, text: str, *given: object, **_: object) -> int:
        if self.name == {"json": "a.json", "manifest": "manifest.json"}[failing]:
            write_text(self, text[: len(text) // 2])
            raise full
        return write_text(self, text)

    def half_a_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
        save_file(tensors, path, metadata)
        path.write_bytes(path.read_bytes()[:-4])
        raise full

    def no_sync(path: Path) -> None:
        raise full

    with monkeypatch.context() as patch:
        match failing:
            case "tensors":
                patch.setattr(tensor_files, "save_file", half_a_file)
            case "sync":
                patch.setattr(checkpoint, "_sync", no_sync)
            case _:
                patch.setattr(Path, "write_text", half_a_text)
        with pytest.raises(SaveError, match=r"No space left on device.*run\.resume=latest"):
            save_checkpoint(folder, 2, write, keep=2)
    assert names(folder) == ["step-000001"]
    assert check(first) == 1
    assert check(save_checkpoint(folder, 2, write, keep=2)) == 2  # there is room again


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, 1, writer(), keep=2)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": ""}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="outside"):
        check(path)


def test_the_order_is_that_of_steps_and_not_of_names_or_times(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, step, writer(), keep=3)
    os.utime(tmp_path / "step-1000000", (1, 1))
    (tmp_path / "step-backup").mkdir()
    assert latest(tmp_path, fail).name == "step-1000000"


def test_latest_leads_to_the_newest_and_is_none_itself(tmp_path: Path) -> None:
    """The quick start named a checkpoint that the demo deletes."""
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, lambda aside: None, keep=1)
    link = tmp_path / LATEST
    assert link.is_symlink()
    assert str(link.readlink()) == "step-000003", "relative, so that a run's folder can be moved"
    assert [path.name for path in sorted(tmp_path.iterdir())] == [LATEST, "step-000003"]
    assert check(link) == 3
    assert newest(tmp_path) == tmp_path / "step-000003"
    link.unlink()
    (link / "state").mkdir(parents=True)  # a copy of the run, made by a tool that follows links
    save_checkpoint(tmp_path, 4, lambda aside: None, keep=1)
    assert str(link.readlink()) == "step-000004"


def test_a_disk_without_links_has_checkpoints_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Any, target_is_directory: bool = False) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refused)
    save_checkpoint(tmp_path, 1, lambda aside: None, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
