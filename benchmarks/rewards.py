"""Every local reward on 12 images: in one batch against one at a time. Prints the differences and the ratio of times.

    PYTHONPATH=src:tests python benchmarks/rewards.py [--real] [--out benchmarks/results/rewards.json]

Weights are random (nothing is downloaded): without ``--real`` the tests' tiny ones, with it DINOv2-base, DINO ViT-S/16
and CLIP ViT-B/32 at their true sizes, on 512 px images. HPSv3 stays tiny: its trunk has 8 billion weights.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

import tiny_hpsv3
from customized_grpo import registry
from customized_grpo.rewards.base import Reward
from customized_grpo.types import Example
from golden import save_golden_clip, save_golden_dino, save_golden_dinov2
from tiny_rewards import example, pictures
from tiny_segmenter import save_detector, save_sam

GROUP, REPEATS = 12, 3
RESULTS = Path(__file__).parent / "results" / "rewards.json"


def dinov2_base(folder: Path) -> Path:
    save_golden_dinov2(folder)
    Dinov2Model(Dinov2Config(image_size=518, patch_size=14)).save_pretrained(folder)
    return preprocess(folder, shortest=256)


def dino_vits16(folder: Path) -> Path:
    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def clip_b32(folder: Path) -> Path:
    save_golden_clip(folder)
    tiny = CLIPModel.from_pretrained(folder).config.text_config
    config = CLIPConfig()
    config.text_config.vocab_size, config.text_config.eos_token_id = tiny.vocab_size, tiny.eos_token_id
    config.text_config.bos_token_id = tiny.bos_token_id
    CLIPModel(config).save_pretrained(folder)
    return preprocess(folder, shortest=224)


def preprocess(folder: Path, shortest: int) -> Path:
    """Full-size preparation in the place of the tiny one."""
    from transformers import BitImageProcessorPil

    BitImageProcessorPil(size={"shortest_edge": shortest}).save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessorPil, SiglipModel

    shared = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shared, "vocab_size": 4, "max_position_embeddings": 6, "projection_size": 24}
    vision = {**shared, "image_size": 32, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "dog": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def hpsv3(folder: Path) -> Path:
    tiny_hpsv3.save_checkpoint(tiny_hpsv3.save_base(folder) / "HPSv3.safetensors")
    return folder


def head(folder: Path, width: int) -> str:
    from safetensors.torch import save_file

    sizes = [width, 1024, 128, 64, 16, 1]
    weights = {}
    for at, place in enumerate((0, 2, 4, 6, 7)):
        weights[f"layers.{place}.weight"] = torch.randn(sizes[at + 1], sizes[at]) / sizes[at] ** 0.5
        weights[f"layers.{place}.bias"] = torch.zeros(sizes[at + 1])
    save_file(weights, folder / "head.safetensors")
    return str(folder / "head.safetensors")


def build(name: str, folder: Path, **options: Any) -> Reward:
    reward_class = registry.resolve("rewards", name)
    config = reward_class.Config.model_validate({"type": name, "axis": "identity", "model": str(folder), **options})
    reward: Reward = reward_class(config, device=torch.device("cpu"))
    return reward


def seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def line(label: str, reward: Reward, one: Example, images: torch.Tensor) -> dict[str, Any]:
    def singly() -> torch.Tensor:
        return torch.cat([reward(one, image[None]) for image in images])

    batch, alone = reward(one, images), singly()  # also warms up
    difference = float((batch - alone).abs().max())
    together, apart = seconds(lambda: reward(one, images)), seconds(singly)
    sys.stdout.write(
        f"{label:28s} {difference:10.1e} {float(batch.std()):10.3f} {together * 1e3:10.1f} {apart * 1e3:10.1f} "
        f"{apart / together:8.2f}\n"
    )
    sys.stdout.flush()
    return {
        "reward": label,
        "largest difference": difference,
        "spread": float(batch.std()),
        "batch ms": round(together * 1e3, 2),
        "singly ms": round(apart * 1e3, 2),
        "ratio": round(apart / together, 3),
    }


def keep(file: Path, kind: str, rows: list[dict[str, Any]], side: int) -> None:
    """Put this run's rows in the place of the file's former ones of the same kind."""
    found = json.loads(file.read_text()) if file.exists() else {}
    found[kind] = {
        "images": GROUP,
        "side": side,
        "threads": 1,
        "repeats": REPEATS,
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
        "rewards": rows,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", action="store_true", help="architectures of true size on 512 px images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON of both kinds of runs")
    arguments = parser.parse_args()
    real = arguments.real
    torch.set_num_threads(1)
    side = 512 if real else 64
    one = example(2, prompt="a dog")
    if real:
        one = replace(one, references=tuple(image.resize((side, side)) for image in one.references))
    masks = tuple(Image.new("L", reference.size) for reference in one.references)
    for mask in masks:
        mask.paste(255, (5, 5, mask.width // 2, mask.height // 2))
    one = replace(one, masks=masks, subject="dog")
    images = pictures(GROUP, 3, side, side)
    sys.stdout.write(
        f"{GROUP} images of {side} px, {'true sizes' if real else 'tiny models'}, CPU, 1 thread, median of {REPEATS}\n"
        f"{'reward':28s} {'difference':>10s} {'spread':>10s} {'batch ms':>10s} {'singly ms':>10s} {'ratio':>8s}\n"
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:

        def place(name: str) -> Path:
            (Path(scratch) / name).mkdir()
            return Path(scratch) / name

        def add(label: str, reward: Reward, one: Example, images: torch.Tensor) -> None:
            rows.append(line(label, reward, one, images))

        dinov2 = (dinov2_base if real else save_golden_dinov2)(place("dinov2"))
        clip = (clip_b32 if real else save_golden_clip)(place("clip"))
        add("dino (DINOv2)", build("dino", dinov2), one, images)
        add("dino, segment: reference", build("dino", dinov2, segment="reference", crop=True), one, images)
        add("dino, copy_penalty", build("dino", dinov2, copy_penalty=0.5), one, images)
        dino = (dino_vits16 if real else save_golden_dino)(place("dino"))
        add("dino (DINO ViT)", build("dino", dino), one, images)
        add("clip_t", build("clip_t", clip), one, images)
        add("clip_i", build("clip_i", clip), one, images)
        add("pickscore", build("pickscore", clip, processor=str(clip)), one, images)
        add("aesthetic", build("aesthetic", clip, head=head(clip, 512 if real else 24)), one, images)
        if real:
            keep(arguments.out, "real", rows, side)
            return
        finder = {"detector": str(save_detector(place("detector"))), "sam": str(save_sam(place("sam")))}
        both = build("dino", dinov2, segment="both", segmenter={**finder, "threshold": 0.05})
        add("dino, segment: both", both, one, images)
        add("siglip", build("siglip", siglip(place("siglip"))), one, images)
        preference = hpsv3(place("hpsv3"))
        options = {"checkpoint": str(preference), "dtype": "float32"}
        add("hpsv3, batches of 4", build("hpsv3", preference, **options), one, images)
        add("hpsv3, batches of 12", build("hpsv3", preference, **options, batch_size=12), one, images)
        keep(arguments.out, "tiny", rows, side)


if __name__ == "__main__":
    main()
