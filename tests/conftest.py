"""Settings of every test: offline, one thread, and the shapes of the package checked at run time.

The import hook makes jaxtyping annotations (``Float[Tensor, "g q"]``) into assertions. It has to come
before the first import of the package, hence here and not in a fixture. Nothing is seeded: randomness in the
package is a function of its arguments, and a test that needs a generator makes one.
"""

import gc
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from jaxtyping import install_import_hook

assert not [name for name in sys.modules if name.startswith("customized_grpo")], "the hook comes too late"
install_import_hook("customized_grpo", "shape_checks.checked")
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector, and a fork's copy on write, need not look at it again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` on a machine without one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
