"""A rehearsal of the shipped recipes for real policies, on tiny random weights and two gloo processes.

Each is the shipped file, started by the real command, with what ``forced`` overrides and nothing else: its own sampler,
rewards, advantages, objective, optimizer and precision. Three steps with an evaluation of an odd number of examples;
the same again, where rank 0 is killed by -9 behind the checkpoint of step 2; and that one resumed with its guards and
its rewards' transport changed.
"""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import yaml
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from PIL import Image

from customized_grpo.commands.app import app
from customized_grpo.rewards import hpsv3, hpsv3_prompt
from customized_grpo.rewards.judge.scale import DREAMBENCH
from customized_grpo.training import setup, trainer
from dreambench_folder import make_dreambench
from forked import exit_code, forked, two_ranks
from judge_server import JudgeServer, Reply, Request, completion
from runs import environment
from tiny import make_tiny_flux
from tiny_flux2 import make_tiny_flux2
from tiny_flux3 import make_tiny_flux3
from tiny_hpsv3 import save_base, save_checkpoint
from tiny_qwen_image import make_tiny_qwen
from tiny_qwen_image21 import make_tiny_qwen21
from tiny_rewards import example, save_clip, save_dino
from uno_tiny import uno_file

CONFIG = Path(__file__).parents[2] / "config"
STEPS, KILLED_AFTER = 3, 2
FAMILIES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "uno": ("flux", make_tiny_flux),
    "flux-kontext": ("kontext", partial(make_tiny_flux, kontext=True)),
    "flux2-klein": ("klein", partial(make_tiny_flux2, klein=True)),
    "flux3-klein": ("flux3", make_tiny_flux3),
    "qwen-image-edit-plus": ("qwen", make_tiny_qwen),
    "qwen-image-2.1": ("qwen21", make_tiny_qwen21),
}
"""Type of a policy to the folder of its tiny weights, and who makes it."""


def recipes() -> list[str]:
    """Names of all shipped recipes of real policies."""
    files = sorted((CONFIG / "train").glob("*.yaml"))
    return [file.stem for file in files if yaml.safe_load(file.read_text())["policy"]["model"] != "mini"]


def make_world(folder: Path) -> Path:
    """Tiny weights of every family and reward, data for training, and data that is held out."""
    for name, make in FAMILIES.values():
        make(folder / name)
    uno_file(folder)
    (folder / "hpsv3").mkdir()
    save_base(folder / "hpsv3")
    save_checkpoint(folder / "HPSv3.safetensors")
    save_dino(folder / "dino")
    save_clip(folder / "clip")
    make_dreambench(folder / "dreambench")
    for split, count in (("train", 5), ("held-out", 3)):
        lines = []
        for number in range(count):
            one = example(1, key=f"{split}-{number}", prompt=("a red dog", "a blue cat", "a dog")[number % 3])
            name, picture = f"{split}-{number}.png", one.references[0].resize((64, 80))
            mask = Image.new("L", picture.size)
            mask.paste(255, (10, 10, 50, 60))
            mask.save(folder / f"mask-{name}")
            picture.rotate(60 * number + 10 * (split == "train")).save(folder / name)
            row = {"id": one.key, "prompt": one.prompt, "references": [name], "masks": [f"mask-{name}"]}
            lines.append(json.dumps(row | {"subject": "dog"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def shipped(name: str, folder: Path) -> Path:
    """The recipe's file; the section ``evaluate`` that it proposes in a comment is uncommented, as it says."""
    text = (CONFIG / "train" / f"{name}.yaml").read_text()
    file = folder / f"{name}.yaml"
    file.write_text(re.sub(r"(?ms)^# evaluate:.*\Z", lambda found: re.sub(r"(?m)^# ?", "", found[0]), text))
    return file


def forced(file: Path, world: Path, run: Path, servers: dict[str, str]) -> list[str]:
    """Overrides that tiny weights, two processes and three steps need: paths, sizes, addresses, numbers of steps."""
    recipe = yaml.safe_load(file.read_text())
    policy = recipe["policy"]
    size = 64
    changes: dict[str, Any] = {
        "run.dir": run,
        "policy.model": world / FAMILIES[policy["type"]][0],
        "policy.height": size,
        "policy.width": size,
        "policy.reference_size": size,
        "data.path": world / "train.jsonl",
        "train.steps": STEPS,
        "train.groups_per_step": 2,
        "train.checkpoint_every": 1,
        "train.evaluate_every": STEPS,
    }
    if "cache" in recipe["run"]:
        changes["run.cache"] = run.parent / "cache"
    if "base_lora" in policy:
        changes["policy.base_lora.path"] = world / "dit_lora.safetensors"
    if not policy["type"].startswith("qwen"):
        changes["policy.max_sequence_length"] = 64  # of the tiny T5; FLUX.2's 512 would be mostly padding
    if "evaluate" in recipe:
        changes |= {"evaluate.data.path": world / "dreambench", "evaluate.limit": 3, "evaluate.batch": 1}
    else:
        held_out = {"type": "manifest", "path": str(world / "held-out.jsonl")}
        metrics = {
            "clip_i": {"type": "clip_i", "axis": "identity", "model": "?"},
            "clip_t": {"type": "clip_t", "axis": "prompt", "model": "?"},
        }
        recipe["evaluate"] = {"data": held_out, "metrics": metrics, "batch": 1, "steps": 5}
        changes["evaluate"] = recipe["evaluate"]
    for kind, sections in (("rewards", recipe["rewards"]), ("evaluate.metrics", recipe["evaluate"]["metrics"])):
        for key, section in sections.items():
            for option, value in _tiny(section, world, run, servers).items():
                changes[f"{kind}.{key}.{option}"] = value
    return [f"{key}={_text(value)}" for key, value in changes.items()]


def _tiny(section: dict[str, Any], world: Path, run: Path, servers: dict[str, str]) -> dict[str, Any]:
    """What a reward or metric has to be told to run on tiny weights."""
    match section["type"]:
        case "hpsv3":
            return {"model": world / "hpsv3", "checkpoint": world / "HPSv3.safetensors"}
        case "dino":
            return {"model": world / "dino"}
        case "clip_i" | "clip_t":
            return {"model": world / "clip"}
        case "vlm":
            return {"base_url": servers["vlm"], "cache": run.with_suffix(".sqlite")}
        case "remote":
            return {"urls": [servers["remote"]]}
    raise ValueError(f"no tiny weights for {section['type']!r} yet; add them to tests/support/rehearsal.py")


def changed(file: Path) -> list[str]:
    """Overrides of a resumed run: guards, and how rewards over the network are reached."""
    recipe = yaml.safe_load(file.read_text())
    rewards = recipe["rewards"].items()
    transport = {"vlm": "budget_requests=160000", "remote": "wait_s=60"}
    guards = ["train.max_skipped=3", "advantage.max_failed_share=0.5"]
    if recipe["objective"].get("type", "grpo") == "grpo":
        guards.append("train.ratio_guard=0.01")
    reached = [(name, transport[section["type"]]) for name, section in rewards if section["type"] in transport]
    return guards + [f"rewards.{name}.{new}" for name, new in reached]


def _text(value: Any) -> str:
    if isinstance(value, dict | list):
        return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
    return str(value)


@contextmanager
def small_constants() -> Iterator[None]:
    """HPSv3's picture and instruction, which no recipe sets: its tiny tokenizer has a token for every byte."""
    end = hpsv3_prompt.INSTRUCTION[-160:]
    with mock.patch.object(hpsv3, "_PIXELS", 16 * 28 * 28), mock.patch.object(hpsv3_prompt, "INSTRUCTION", end):
        yield


def train(file: Path, engine: str, overrides: Sequence[str], killed: bool) -> None:
    """The command ``train`` on this rank, under one of ``config/accelerate``."""
    if engine == "fsdp2":
        _fully_sharded()
    save = trainer.save

    def save_and_die(parts: setup.Parts, done: int) -> None:
        save(parts, done)
        if killed and done == KILLED_AFTER and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(trainer, "save", save_and_die):
        code = app(["train", str(file), *overrides], standalone_mode=False)
    if code:
        raise RuntimeError(f"the command ended with {code}")


def _fully_sharded() -> None:
    """FSDP2 as accelerate reads it from ``config/accelerate/fsdp2.yaml``; it is on for GPUs only, so it is told."""
    arguments = ["--config_file", str(CONFIG / "accelerate" / "fsdp2.yaml"), "-m", "customized_grpo"]
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.device_count", return_value=8),
    ):
        given, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
        sharding = {key: str(value) for key, value in prepare_multi_gpu_env(given).items() if key.startswith("FSDP_")}
    os.environ.update(sharding)
    plugin = FullyShardedDataParallelPlugin()
    Accelerator(cpu=True, fsdp_plugin=plugin)
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP


def rehearse(case: str, world: Path, folder: Path) -> None:
    """All of one case, ``<recipe>@<engine>``: ``whole`` and ``killed`` in a folder, where two logs say what ranks did.

    Raises:
        RuntimeError: a rank failed; the message is what both wrote.
    """
    name, _, engine = case.partition("@")
    file = shipped(name, folder)
    with ExitStack() as until_end, small_constants(), mock.patch.dict(os.environ, OPENAI_API_KEY="sk-rehearsal"):
        kinds = {section["type"] for section in yaml.safe_load(file.read_text())["rewards"].values()}
        servers = {}
        if "vlm" in kinds:
            servers["vlm"] = until_end.enter_context(judge(folder))
        if "remote" in kinds:
            servers["remote"] = until_end.enter_context(reward_server(folder, world))
        whole, killed = (forced(file, world, folder / run, servers) for run in ("whole", "killed"))
        two_ranks(folder, partial(train, file, engine, whole, killed=False))
        try:
            two_ranks(folder, partial(train, file, engine, killed, killed=True))
        except RuntimeError as error:
            if not str(error).startswith(f"rank 0: {int(signal.SIGKILL)}\n"):
                raise
        else:
            raise AssertionError("rank 0 was to be killed")
        two_ranks(folder, partial(train, file, engine, [*killed, "run.resume=latest", *changed(file)], killed=False))


def judged(request: Request) -> Reply:
    """A judge of firm taste: in words where JSON isn't asked for, and with vLLM's log-probabilities."""
    liked = zlib.crc32(request.image.tobytes()) / 2**32 * DREAMBENCH.best
    low = min(int(liked), DREAMBENCH.best - 1)
    odds = {str(low): low + 1 - liked, str(low + 1): liked - low}
    best = max(odds, key=lambda digit: odds[digit])
    if "response_format" not in request.body:
        return completion(f"I have compared the two.\nScore: {best}")
    shares = {digit: math.log(max(share, 1e-9)) for digit, share in odds.items()}
    alternatives = [{"token": digit, "logprob": share, "bytes": None} for digit, share in shares.items()]
    pieces = ('{"score": ', best, "}")
    content = [{"token": one, "logprob": -0.1, "bytes": None, "top_logprobs": alternatives} for one in pieces]
    return completion("".join(pieces), logprobs={"content": content, "refusal": None})


@contextmanager
def judge(folder: Path) -> Iterator[str]:
    """A judge's endpoint in a process of its own."""
    said = folder / "judge.url"

    def serve() -> None:
        with JudgeServer(judged) as server:
            said.with_suffix(".new").write_text(server.url)
            said.with_suffix(".new").rename(said)
            signal.pause()

    pid = forked(folder / "judge.log", serve)
    try:
        while not said.is_file():
            time.sleep(0.01)
        yield said.read_text()
    finally:
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)


@contextmanager
def reward_server(folder: Path, world: Path) -> Iterator[str]:
    """The shipped reward server in a process of its own; it is waited for."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    tiny = [f"rewards.hpsv3.{key}={value}" for key, value in _tiny({"type": "hpsv3"}, world, folder, {}).items()]
    arguments = ["serve", "hpsv3", f"port={port}", "device=cpu", *tiny]
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "customized_grpo", *arguments], env=environment(), stdout=file, stderr=file
        )
    try:
        while server.poll() is None:
            try:
                if httpx2.get(f"{url}/health", trust_env=False).status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(0.1)
        assert server.poll() is None, log.read_text()
        yield url
    finally:
        server.terminate()
        server.wait(60)
