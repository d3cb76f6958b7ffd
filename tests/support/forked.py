"""Processes forked from one that has the libraries loaded, which takes most of a small run's time."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from accelerate.state import AcceleratorState


def forked(log: Path, what: Callable[[], object], **variables: str) -> int:
    """Start a process that does something, with further environment variables.

    Returns:
        Its process id; it exits with 0, or with 1 and a traceback in ``log``.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(variables)
        # torch replaces its pool after a fork at the first such call; two threads that meet in it find none
        torch.set_num_threads(torch.get_num_threads())
        what()
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        sys.__stderr__.flush()  # type: ignore[union-attr]
    finally:
        os._exit(code)


def _afresh(what: Callable[[], object]) -> None:
    """Do something as a process that has asked accelerate for nothing yet: the state of this one is of one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    what()


def exit_code(pid: int) -> int:
    """Of a process once it has ended; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def two_ranks(folder: Path, what: Callable[[], object], slow_rank: dict[str, str] | None = None) -> None:
    """Do something in two processes that find each other as torchrun's do; an error has what both wrote."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(opened.getsockname()[1])}
    ranks = {}
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", **address}
        pid = forked(folder / f"rank-{rank}.log", partial(_afresh, what), **own, **((slow_rank or {}) if rank else {}))
        ranks[pid] = rank
    failed: list[str] = []
    while ranks:
        pid, status = os.wait()
        if status and not failed:
            for other in ranks.keys() - {pid}:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
        failed += [f"rank {ranks[pid]}: {status}"] if status else []
        del ranks[pid]
    if failed:
        said = [(folder / f"rank-{rank}.log").read_text(errors="replace") for rank in range(2)]
        raise RuntimeError("\n".join([*failed, *said]))
