"""A random GroundingDINO and SAM of a few hundred kilobytes, with their processors and a tokenizer of words."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
    SwinConfig,
)

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "dog", "bag", "cat", "red")


def save_detector(folder: Path) -> Path:
    """Boxes are random, and its confidence is about one half."""
    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3"],
    )  # fmt: skip
    text = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=8,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        d_model=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_feature_levels=3,
        max_text_len=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = GroundingDinoForObjectDetection(config)
    with torch.no_grad():
        model.model.decoder.layer_norm.weight *= 0.05  # random features are long, and would all be sure of everything
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(vocab={word: at for at, word in enumerate(WORDS)}).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def save_sam(folder: Path) -> Path:
    """Its masks are random, and neither empty nor full."""
    config = SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8, "window_size": 4, "global_attn_indexes": [0], "mlp_dim": 16,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={
            "hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16, "iou_head_depth": 2,
        },
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        SamModel(config).save_pretrained(folder)
    SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
