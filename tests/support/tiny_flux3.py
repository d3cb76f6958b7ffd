"""A tiny FLUX.3 [klein] of random weights in the layout of diffusers' modular pipelines, with a real tokenizer."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux3AutoBlocks, Flux3DistilledAutoBlocks, Flux3Transformer2DModel
from PIL import Image
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from customized_grpo.policies.flux3 import Flux3Klein, Flux3KleinConfig
from tiny_flux2 import make_tokenizer

WIDTH = 8
"""Of the text encoder; the transformer reads eight of its layers side by side."""


def _qwen3_vl(rows: int) -> Qwen3VLForConditionalGeneration:
    text = {
        "vocab_size": rows, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 32,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
    }  # fmt: skip
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))


def make_tiny_flux3(folder: Path, *, distilled: bool = False) -> Path:
    """Write such a folder: 1 + 2 blocks of width 32."""
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: dict[str, Any] = {
            "text_encoder": _qwen3_vl(len(tokenizer)),
            "transformer": Flux3Transformer2DModel(
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=8 * WIDTH,
                timestep_channels=16,
                axes_dims_rope=(4, 4, 4, 4),
                flow_map=distilled,
            ),
            "vae": AutoencoderKLFlux2(
                block_out_channels=(8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                latent_channels=32,
                norm_num_groups=4,
                sample_size=64,
            ),
        }
        parts["vae"].bn.running_mean.normal_()
        parts["vae"].bn.running_var.uniform_(0.5, 2.0)
    parts["tokenizer"] = tokenizer
    form = "Distilled" if distilled else ""
    index: dict[str, Any] = {
        "_blocks_class_name": f"Flux3{form}AutoBlocks",
        "_class_name": f"Flux3{form}ModularPipeline",
        "_diffusers_version": "0.42.1",
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = "diffusers" if name in ("transformer", "vae") else "transformers"
        kind = "AutoProcessor" if name == "tokenizer" else type(part).__name__
        place = {"pretrained_model_name_or_path": "black-forest-labs/nowhere", "subfolder": name, "revision": None}
        index[name] = [library, kind, {"type_hint": [library, kind], "variant": None, **place}]
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    return folder


def tiny_flux3(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Flux3Klein:
    """The policy of such a folder: 64 x 48 pixels (12 tokens)."""
    config = Flux3KleinConfig.model_validate({"model": str(folder), "height": 64, "width": 48, **changes})
    return Flux3Klein.load(config, device=torch.device("cpu"), dtype=dtype)


def stock_flux3(folder: Path) -> Any:
    """diffusers' blocks on such a folder's parts, without the prompt upsampler."""
    policy = tiny_flux3(folder)
    parts, tokenizer = policy._pipeline, policy._pipeline.tokenizer
    blocks = (Flux3DistilledAutoBlocks if parts.transformer.config.flow_map else Flux3AutoBlocks)()
    blocks.sub_blocks.pop("prompt_upsampler")
    pipeline = blocks.init_pipeline()
    processor: Any = SimpleNamespace(apply_chat_template=tokenizer.apply_chat_template, tokenizer=tokenizer)
    models = {name: part for name, part in parts.components.items() if name != "tokenizer"}
    pipeline.update_components(**models)
    pipeline.tokenizer = processor
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_flux3(pipeline: Any, prompt: str, start: Tensor, references: Sequence[Image.Image]) -> tuple[Tensor, Any]:
    """Tokens after three steps of the pipeline's own schedule at 64 x 48 pixels, and images (n, h, w, 3) in [0, 1]."""
    n, _, c = start.shape
    found = pipeline(
        prompt=prompt,
        **({"image": list(references)} if references else {}),
        latents=start.transpose(1, 2).reshape(n, c, 4, 3),
        height=64,
        width=48,
        num_inference_steps=3,
        num_images_per_prompt=n,
        output_type="np",
        output=["latents", "images"],
    )
    return found["latents"].flatten(2).transpose(1, 2), found["images"]
