"""Stage `oracle`: the held-out attribute oracle, supervised, on rendered and on decoded pictures."""

import json
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from build_mini.common import LOG, Context, Training, replace_folder, save_tensors, write_card
from build_mini.gallery import SLOTS, load_gallery
from build_mini.pictures import as_input
from customized_grpo.mini.oracle import CHOICES, HUES, IDENTITY, PROMPT, Oracle, correct

STEPS: Final = 1_600
BATCH: Final = 64


def attribute_loss(outputs: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of choices, squared error of hues (on the circle) and of the value; summed."""
    loss = torch.zeros(())
    for name in CHOICES:
        loss = loss + F.cross_entropy(outputs[name].float(), truth[name])
    for name in HUES:
        angle = truth[name] * 2 * torch.pi
        loss = loss + 2 * (outputs[name].float() - torch.stack([angle.sin(), angle.cos()], 1)).square().sum(1).mean()
    return loss + 20 * (outputs["value"].float()[:, 0] - truth["value"]).square().mean()


def train_oracle(context: Context) -> None:
    """Trains, measures and writes `out/oracle`."""
    done = context.work / "oracle-done"
    if done.exists():
        LOG.info("oracle: done already")
        return
    torch.manual_seed(context.seed + 77)
    oracle = Oracle()
    training = Training(context, "oracle-training", oracle, steps=STEPS, lr=2e-3, ema=0.99, weight_decay=1e-3)
    gallery = load_gallery(context, "train")

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(gallery), (BATCH,), generator=generator)
        slots = torch.randint(len(SLOTS), (BATCH,), generator=generator)
        x = as_input(gallery.images[rows, slots])
        x = x + 0.05 * torch.rand((), generator=generator) * torch.randn(x.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = oracle.outputs(x)
        return attribute_loss(outputs, {k: v[rows, slots] for k, v in gallery.truth.items()})

    oracle.load_state_dict(training.run(loss_of))
    oracle.eval()
    metrics = measure_oracle(context, oracle)
    LOG.info("oracle: %s", metrics)
    with replace_folder(context.out / "oracle") as aside:
        save_tensors(aside / "model.safetensors", {k: v.half() for k, v in oracle.state_dict().items()})
        (aside / "config.json").write_text(json.dumps({"widths": oracle.widths}) + "\n")
        write_card(
            aside,
            "Attribute oracle of the miniature world (held-out judge)",
            data=f"{len(gallery)} training subjects in two prompted scenes and a reference scene, and decoded by "
            "the miniature autoencoder with noisy latents",
            recipe=f"{training.steps} steps of {BATCH}, AdamW 2e-3 cosine, averaged weights; figures on unseen "
            "subjects and unseen combinations",
            seconds=training.seconds,
            metrics=metrics,
        )
    done.touch()


def measure_oracle(context: Context, oracle: Oracle) -> dict[str, float]:
    """Accuracy of each attribute on unseen subjects, rendered and decoded."""
    gallery = load_gallery(context, "test")
    metrics: dict[str, float] = {}
    for slot in ("prompted", "decoded"):
        column = SLOTS.index(slot)
        right = correct(oracle(gallery.images[:, column]), {k: v[:, column] for k, v in gallery.truth.items()})
        metrics |= {f"{slot}/{name}": float(value.mean()) for name, value in right.items()}
        for group, names in (("identity", IDENTITY), ("prompt", PROMPT)):
            metrics[f"{slot}/{group}_all"] = float(torch.stack([right[n] for n in names]).min(0).values.mean())
    return metrics
