"""The cases of ``engine_table`` on one process and on two: ``engine_runs.py WORLD OUT PORT``.

``OUT/one``, ``OUT/ddp`` and ``OUT/fsdp2`` get a run of each case, and ``<case>-again`` the run that was resumed after
its first step. Quantised weights are on bitsandbytes' CPU back end, and blocks are compiled as far as C++.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._dynamo.utils import counters
from two_ranks import fsdp2

from customized_grpo.policies import acceleration
from customized_grpo.training import setup
from customized_grpo.training.engine_limits import Engine
from customized_grpo.training.trainer import Trainer
from engine_table import CASES, COMPILE, Site, cases_of, recipe_of
from forked import exit_code, forked, two_ranks


@contextmanager
def on_cpu() -> Iterator[None]:
    """bitsandbytes' layers on a CPU, which diffusers refuses; and torch.compile without C++."""
    from diffusers.quantizers.bitsandbytes import bnb_quantizer

    real = nn.Module.compile

    def traced(block: nn.Module, **how: Any) -> None:
        if "Single" in type(block).__name__:  # the other kind of block would take as long again
            real(block, backend="aot_eager", **how)

    with ExitStack() as patched:
        for kind in (bnb_quantizer.BnB4BitDiffusersQuantizer, bnb_quantizer.BnB8BitDiffusersQuantizer):
            patched.enter_context(mock.patch.object(kind, "validate_environment"))
            patched.enter_context(mock.patch.object(kind, "update_device_map", lambda _, given: given or {"": "cpu"}))
        patched.enter_context(mock.patch.object(acceleration, "_QUANTIZED_ON", ("cpu",)))
        patched.enter_context(mock.patch("bitsandbytes.nn.modules.has_avx512bf16", return_value=False))
        patched.enter_context(mock.patch.object(nn.Module, "compile", traced))
        yield


def main(site: Site, out: Path, cases: Sequence[str], engine: Engine | None) -> None:
    torch.set_num_threads(1)
    with on_cpu():
        for name in cases:
            if engine == Engine.FSDP2:
                fsdp2()  # for each, because accelerate's plugin remembers the first model's blocks
            before = counters["stats"]["unique_graphs"]
            run(site, out, name, alone=engine is None)
            made = counters["stats"]["unique_graphs"] - before
            assert bool(made) == (COMPILE in CASES[name] and engine is not None), f"{made} graphs were compiled"


def run(site: Site, out: Path, name: str, *, alone: bool) -> None:
    """A case, and its second step again from the first's checkpoint."""
    plain = tuple(one for one in CASES[name] if one != COMPILE)
    # One process shows what two are held to, without the compiler; and a run may go on without it, which is quicker.
    trainer = Trainer(setup.build(recipe_of(plain if alone else CASES[name], site, out / name)))
    trainer.run()
    if alone:
        return
    accelerator = trainer.parts.accelerator
    if accelerator.is_main_process:
        shutil.copytree(out / name, out / f"{name}-again")
        shutil.rmtree(out / f"{name}-again" / "checkpoints" / "step-000002")
    accelerator.wait_for_everyone()
    Trainer(setup.build(recipe_of(plain, site, out / f"{name}-again", run__resume="latest"))).run()


if __name__ == "__main__":
    site, out = Site(Path(sys.argv[1]), int(sys.argv[3])), Path(sys.argv[2])
    every = [name for name in CASES if name in (sys.argv[4:] or CASES)]
    with mock.patch("accelerate.Accelerator.end_training", return_value=None):  # there are several runs
        (out / "one").mkdir()
        pid = forked(out / "one.log", partial(main, site, out / "one", every, None))
        if exit_code(pid):
            sys.exit((out / "one.log").read_text())
        for engine in (Engine.DDP, Engine.FSDP2):
            folder = out / engine.value.lower()
            folder.mkdir()
            two_ranks(folder, partial(main, site, folder, [one for one in every if one in cases_of(engine)], engine))
