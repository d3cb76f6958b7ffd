"""What must never happen to a user's machine or secrets; that files stay in their folders is tested where they're read.

See tests/test_imports.py for forbidden imports, and the tests of archives, manifests, checkpoints and reports.
"""

import ast
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.training.trainer import train
from keyed_reward import SECRET
from runs import make_tiny_world, tiny_recipe
from source import TREES


def called(node: ast.Call) -> str:
    """``torch.load`` of ``torch.load(...)``, ``load`` of ``load(...)``."""
    return ast.unparse(node.func)


CALLS = [(module, node) for module, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]

UNSAFE = {
    "torch.load", "torch.jit.load", "torch.package.PackageImporter", "joblib.load", "shelve.open", "marshal.load",
    "marshal.loads", "pickle.load", "pickle.loads", "pd.read_pickle", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "eval", "exec", "os.system", "os.popen", "subprocess.getoutput",
}  # fmt: skip


def keyword(node: ast.Call, name: str) -> Any:
    return next((ast.unparse(one.value) for one in node.keywords if one.arg == name), None)


def test_nothing_is_unpickled_or_evaluated() -> None:
    wrong = [f"{module}:{node.lineno} {called(node)}" for module, node in CALLS if called(node) in UNSAFE]
    assert not wrong
    arrays = [node for _, node in CALLS if called(node) in ("np.load", "numpy.load")]
    assert all(keyword(node, "allow_pickle") == "False" for node in arrays)
    assert not [node for _, node in CALLS if keyword(node, "shell") == "True"]
    assert not [node for _, node in CALLS if keyword(node, "weights_only") == "False"]


@pytest.mark.parametrize("source", ["torch.load(f)", "yaml.load(f, Loader)", "eval(text)", "pickle.loads(b)"])
def test_the_list_finds_them(source: str) -> None:
    (call,) = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    assert called(call) in UNSAFE


def test_no_code_of_a_model_is_run() -> None:
    trusted = [
        f"{module}:{node.lineno}" for module, node in CALLS if keyword(node, "trust_remote_code") not in (None, "False")
    ]
    assert not trusted


def test_weights_are_read_from_safetensors() -> None:
    """Every loader of a model says so, rather than falling back to a pickled file of the same name."""
    quiet = ("Tokenizer", "Processor", "Config")
    own = "build_mini"  # reads what it has written itself
    loaders = [
        (module, node)
        for module, node in CALLS
        if called(node).endswith(".from_pretrained")
        and not module.startswith(own)
        and not any(part in called(node) for part in quiet)
        and "rocessor" not in called(node)
        and "okenizer" not in called(node)
    ]
    assert loaders
    wrong = [f"{m}:{n.lineno}" for m, n in loaders if keyword(n, "use_safetensors") != "True"]
    assert not wrong


def test_a_secret_reaches_no_file_no_log_and_no_tracker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from accelerate import Accelerator

    tracked: list[Any] = []
    monkeypatch.setattr(
        Accelerator, "init_trackers", lambda self, name, config=None, **given: tracked.append((name, config))
    )
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step=None, **given: tracked.append(values))
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    world = make_tiny_world(tmp_path)
    rewards = {
        "keyed": {"type": "keyed_reward:Keyed", "axis": "prompt", "api_key": SECRET},
        "warm": {"type": "runs:Warmth", "axis": "identity"},
    }
    recipe = tiny_recipe(
        world,
        tmp_path / "run",
        rewards=rewards,
        train__steps=1,
        train__group_size=2,
        train__save_samples_every=1,
    )
    run = train(recipe)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.yaml", "pytorch_lora_weights.safetensors", "metrics.jsonl"} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    said = capfd.readouterr()
    assert tracked
    assert "api_key" in str(tracked) + (run / "config.yaml").read_text()
    for text in (said.out, said.err, caplog.text, str(tracked), repr(recipe), str(recipe)):
        assert SECRET not in text
