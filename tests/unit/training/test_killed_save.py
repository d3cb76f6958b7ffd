"""A process that is killed before any one of the file system's operations that a save makes, by a real SIGKILL."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from customized_grpo.policies.adapters.tensor_files import read_tensors, write_tensors
from customized_grpo.training.checkpoint import (
    MANIFEST,
    check,
    latest,
    save_checkpoint,
)

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
"""Audit events of CPython; ``os.fsync`` has none and is counted by a wrapper."""


def writer(value: float) -> Callable[[Path], None]:
    def write(aside: Path) -> None:
        (aside / "state").mkdir()
        write_tensors(aside / "state" / "adapter.safetensors", {"a": torch.full((8,), value)})
        (aside / "state" / "trainer.json").write_text(json.dumps({"value": value}))

    return write


def save(folder: Path, step: int) -> None:
    save_checkpoint(folder, step, writer(float(step)), keep=2)


def dies_before(number: int, what: Callable[[], None]) -> bool:
    """Run it in a process that kills itself before its ``number``-th operation; False if there were fewer."""
    pid = os.fork()
    if pid == 0:
        seen = [0]

        def count() -> None:
            seen[0] += 1
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

        fsync = os.fsync
        os.fsync = lambda descriptor: (count(), fsync(descriptor))[1]
        sys.addaudithook(lambda event, _: count() if event in OPERATIONS else None)
        try:
            what()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def cut_what_was_not_synced(folder: Path) -> None:
    """A machine that goes down with the process: what isn't renamed into place yet is half there."""
    aside = [path for path in folder.glob(".*.tmp") if not path.is_symlink()]  # a link leads to what is in place
    for file in (file for path in aside for file in path.rglob("*")):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damaged(folder: Path) -> None:
    """The newest checkpoint, so that a save of its step finds it in its place."""
    (folder / "step-000003" / "state" / "trainer.json").unlink()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize(("prepare", "step"), [(None, 3), (damaged, 3)], ids=["new", "over a damaged one"])
def test_killed_anywhere_in_a_save(tmp_path: Path, prepare: Callable[[Path], None] | None, step: int) -> None:
    moments = 0
    for number in range(1, 200):
        folder = tmp_path / str(number)
        for done in (1, 2, 3) if prepare else (1, 2):
            save(folder, done)
        if prepare:
            prepare(folder)
        killed = dies_before(number, lambda at=folder: save(at, step))  # type: ignore[misc]
        cut_what_was_not_synced(folder)
        visible = [path for path in folder.glob("step-*") if path.name != f"step-{step:06d}" or prepare is None]
        assert visible
        for path in visible:
            assert read_tensors(path / "state" / "adapter.safetensors")["a"][0] == check(path)
        newest = latest(folder, lambda _: None)
        assert newest.name in ("step-000002", "step-000003")
        save(folder, step)  # what a resumed run does
        assert latest(folder, pytest.fail) == folder / f"step-{step:06d}"
        assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-000002", "step-000003"]
        if not killed:
            break
        moments += 1
    assert moments > 15
    assert not killed


def test_a_half_checkpoint_does_not_load(tmp_path: Path) -> None:
    """The control: what the renaming keeps out would not pass either."""
    save(tmp_path, 1)
    for file in [path for path in (tmp_path / "step-000001").rglob("*") if path.is_file()]:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=MANIFEST if file.name == MANIFEST else "corrupt"):
            check(tmp_path / "step-000001")
        file.write_bytes(content)
    assert check(tmp_path / "step-000001") == 1
