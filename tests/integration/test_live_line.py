"""What a run shows while it goes on: one live line in a terminal, lines of text elsewhere."""

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from customized_grpo.cost.storage import disk
from runs import SLOW, command, environment, make_tiny_world, tiny_dict, tiny_recipe, with_evaluation


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_world(tmp_path_factory.mktemp("world"))


def recipe_file(world: Path, folder: Path) -> Path:
    changes = with_evaluation(world, 2) | {"train__checkpoint_every": 2, "train__save_samples_every": 1}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_dict(world, folder / "run", **changes)))
    return file


def in_a_terminal(arguments: list[str], env: dict[str, str]) -> tuple[int, str]:
    """Exit code of a process whose output goes to a terminal, and all that it wrote there."""
    ours, its = pty.openpty()
    with subprocess.Popen(arguments, env=env, stdin=its, stdout=its, stderr=its, close_fds=True) as process:
        os.close(its)
        written = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # EIO: the process has closed its end
                break
            if not chunk:
                break
            written += chunk
        os.close(ours)
        return process.wait(timeout=60), written.decode(errors="replace")


def test_a_terminal_has_one_live_line_with_groups_rewards_and_what_is_left(world: Path, tmp_path: Path) -> None:
    env = environment(**{SLOW: "0.15", "TERM": "xterm-256color", "COLUMNS": "180", "LINES": "40"})
    code, written = in_a_terminal(command(recipe_file(world, tmp_path)), env)
    assert code == 0, written
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    frames = [frame.strip() for frame in re.split(r"[\r\n]+", plain) if re.match(r"\s*step \d+/4 ", frame)]
    assert len(frames) > 10, "it is drawn again and again, in its place"
    assert "\x1b[2K" in written
    text = "\n".join(frames)
    assert re.search(r"step 0/4 .* evaluation", text)
    assert re.search(r"step [123]/4 .* group 1 of 2 sampled  ", text)
    assert re.search(
        r"step [123]/4 .* group \d of 2 \w+  (at most )?about \d+ seconds? left  prompt [\d.]+  identity", text
    )
    assert re.search(r"  corr -?[\d.e-]+", text)
    assert frames[-1].startswith("step 4/4 ")
    assert "left" not in frames[-1]
    assert re.search(r"^time: unknown before the first steps", plain, re.M)


def test_elsewhere_it_prints_lines_and_writes_what_was_expected(world: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(recipe_file(world, tmp_path)), env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ") and "/" in line.split("  ")[0]]
    assert [line.split("  ")[0] for line in lines] == [f"step {step}/4" for step in range(5)]
    assert "left" not in lines[0]
    assert all(re.search(r"  (at most )?about \d+ seconds? left$", line) for line in lines[1:4])
    assert "left" not in lines[4]
    found = disk(tiny_recipe(world, tmp_path / "run", train__checkpoint_every=2, train__save_samples_every=1))
    run = tmp_path / "run"
    kept = list((run / "checkpoints").glob("step-*"))
    assert found.kept == len(kept) == 2
    for one in kept:
        tensors = [tensor for file in one.rglob("*.safetensors") for tensor in load_file(file).values()]
        counted = sum(tensor.nbytes for tensor in tensors if tensor.ndim)  # but the moments' numbers of steps
        assert counted == found.checkpoint
    pictures = sum(file.stat().st_size for file in (run / "samples").glob("*.png"))
    assert 0 < pictures <= found.samples
