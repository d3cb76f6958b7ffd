"""Folders that one process holds."""

import subprocess
import sys
from pathlib import Path

import pytest

from customized_grpo.atomic import held

OTHER = """
import sys
from pathlib import Path
from customized_grpo.atomic import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_dead_one_forgotten(tmp_path: Path) -> None:
    """Two jobs that resume one run wrote into one log and one folder of checkpoints
    (Lightning-AI/pytorch-lightning#12369)."""
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is writing into"), held(tmp_path):
            pass
        other.kill()
    with held(tmp_path), held(tmp_path.parent):
        assert not list(tmp_path.iterdir())
