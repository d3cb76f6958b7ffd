"""Stage `export`: a complete FLUX.1 folder in diffusers' layout from the parts in the work folder."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from build_mini.common import LOG, Context, replace_folder
from build_mini.policy import PHASES, SHIFT, new_transformer, weights_after
from customized_grpo.identity.hashes import file_hash
from customized_grpo.mini.integrity import MANIFEST


def newest_weights(context: Context) -> Path:
    """Path of the policy's latest weights: those of a finished phase, or a snapshot."""
    for phase in reversed(PHASES):
        done = weights_after(context, phase)
        for path in (done, done.with_stem(f"{done.stem}-snapshot")):
            if path.exists():
                return path
    raise ValueError(f"no policy in {context.work} yet: run --stage policy first")


def newest_vae(context: Context) -> Path:
    """Path of the autoencoder, with the separately trained decoder if finished."""
    final = context.work / "vae-final"
    return final if final.exists() else context.work / "vae"


def export_flux(context: Context) -> None:
    """Writes `out/flux`, which `FluxPipeline.from_pretrained` opens; float16."""
    work, half = context.work, torch.float16
    weights = newest_weights(context)
    transformer = new_transformer()
    transformer.load_state_dict(load_file(weights))
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=AutoencoderKL.from_pretrained(newest_vae(context), dtype=half),
        text_encoder=CLIPTextModel.from_pretrained(work / "text/text_encoder", dtype=half),
        tokenizer=CLIPTokenizer.from_pretrained(work / "text/tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(work / "text/text_encoder_2", dtype=half),
        tokenizer_2=T5Tokenizer.from_pretrained(work / "text/tokenizer_2"),
        transformer=transformer.to(half),
    )
    pipeline.vae.register_to_config(_name_or_path="")  # otherwise the config names a local folder
    with replace_folder(context.out / "flux") as aside:
        pipeline.save_pretrained(aside)
        shutil.copy(newest_vae(context) / "README.md", aside / "vae" / "README.md")
        shutil.copy(work / "text" / "README.md", aside / "text_encoder" / "README.md")
        card = work / "policy-card"
        if card.exists():
            shutil.copytree(card, aside, dirs_exist_ok=True)
    write_manifest(context.out)
    with safe_open(weights, "pt") as file:
        LOG.info("export: %s from %s %s", context.out / "flux", weights.name, file.metadata() or "")


def write_manifest(folder: Path) -> None:
    """Write the sha256 of every file under ``folder``, at the end of a build."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    hashes = {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", encoding="utf-8")
