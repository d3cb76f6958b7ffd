"""Every place where something is fetched from a hub, walked in one process: prints what each ends in, as JSON.

HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE say which hub is asked; libraries read them when they are imported.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from customized_grpo import registry
from customized_grpo.commands.errors import is_users
from customized_grpo.conditioning.cache import model_identity
from customized_grpo.identity.hashes import FileHashes
from customized_grpo.policies.hub_files import hub_lora, weights_file
from customized_grpo.prepare.download import listing
from customized_grpo.prepare.importers.hub_tables import Wanted, open_table
from customized_grpo.publish.fetched import published_config
from customized_grpo.rewards.clip import Clip
from customized_grpo.rewards.segmenter import Detector, MaskInBox
from customized_grpo.rewards.vision import _preparation
from customized_grpo.scoring.score import load_rewards

REPO = "owner/name"
CPU = torch.device("cpu")
OF_PICTURES = ("dino", "clip_i", "subjects", "structure_diversity")
OF_PROMPTS = ("clip_t", "siglip", "pickscore")


def policy(kind: str) -> Any:
    plugin = registry.resolve("policies", kind)
    section = {"type": kind, "model": REPO, "height": 64, "width": 64}
    config = registry.config_model("policies", plugin).model_validate(section)
    return plugin.load(config, device=CPU, dtype=torch.float32)


def reward(**section: Any) -> Any:
    kind = registry.config_model("rewards", registry.resolve("rewards", section["type"]))
    return load_rewards({"one": kind.model_validate({"axis": "identity", **section})}, device=CPU)  # type: ignore[dict-item]


def processor_of_clip() -> Any:
    from customized_grpo.rewards.clip import ClipConfig

    return Clip(ClipConfig(type="clip_t", model="mini"), CPU, processor=REPO)


def processor_of_dino(kind: str) -> Any:
    class Config:
        model_type = kind

    return _preparation(Config, REPO, None)


DOORS: dict[str, Callable[[], Any]] = {
    **{f"policy {kind}": partial(policy, kind) for kind in registry.BUILTIN["policies"]},
    **{f"reward {kind}": partial(reward, type=kind, model=REPO) for kind in OF_PICTURES},
    **{f"reward {kind}": partial(reward, type=kind, model=REPO, axis="prompt") for kind in OF_PROMPTS},
    "checkpoint of hpsv3": partial(reward, type="hpsv3", checkpoint=REPO, axis="prompt"),
    "processor of clip": processor_of_clip,
    "processor of dinov2": partial(processor_of_dino, "dinov2"),
    "processor of dinov3": partial(processor_of_dino, "dinov3_vit"),
    "detector": lambda: Detector(REPO, None, 0.3, device=CPU),
    "sam": lambda: MaskInBox(REPO, None, device=CPU),
    "weights": lambda: weights_file(REPO, "policy.x", default="a.safetensors", revision=None, offline=False),
    "lora": lambda: hub_lora(REPO, names=["a.safetensors"], beside={}, revision=None, offline=False),
    "recipe of a lora": lambda: published_config(REPO),
    "identity of a policy": lambda: model_identity(REPO, None, FileHashes()),
    "download": lambda: listing(REPO),
    "table": lambda: open_table(REPO, Wanted(split=None, config=None, revision=None, streaming=False)),
}  # fmt: skip


def walked() -> dict[str, dict[str, Any]]:
    said = {}
    for name, door in DOORS.items():
        try:
            door()
        except Exception as error:
            said[name] = {"kind": type(error).__name__, "text": str(error), "users": is_users(error)}
        else:
            said[name] = {"kind": "", "text": "it opened", "users": False}
    return said


if __name__ == "__main__":
    with mock.patch("time.sleep"):  # the hub's client waits half a minute for each file of a hub that is not there
        Path(sys.argv[1]).write_text(json.dumps(walked()))
