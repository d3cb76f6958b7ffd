"""Stage `text`: the two tokenizers, and tiny T5 and CLIP text encoders trained on the prompts.

The encoders learn to predict class, place, position, size and hat, and are then frozen, as FLUX's are.
"""

import itertools
from collections import Counter
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from build_mini.common import LOG, Context, Training, replace_folder, write_card
from customized_grpo.mini.grammar import MAX_TOKENS, prompt, words
from customized_grpo.mini.world import CLASSES, HATS, PLACES, POSITIONS, SIZES

WIDTH: Final = 64
STEPS: Final = 500
BATCH: Final = 96
_COUNTS: Final = (len(CLASSES), len(PLACES), len(POSITIONS), len(SIZES), len(HATS))


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer with one token per word: byte-pair merges are learnt until every word is one token."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words()]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for symbols in spelled for pair in itertools.pairwise(symbols)):
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        vocabulary.append(left + right)
        spelled = [_merge(symbols, left, right) for symbols in spelled]
    table = {token: index for index, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=table, merges=merges, model_max_length=MAX_TOKENS)


def _merge(symbols: list[str], left: str, right: str) -> list[str]:
    """`symbols` with every neighbouring (left, right) as one symbol."""
    out: list[str] = []
    for symbol in symbols:
        if out and out[-1] == left and symbol == right:
            out[-1] = left + right
        else:
            out.append(symbol)
    return out


def t5_tokenizer() -> T5Tokenizer:
    """A T5 (unigram) tokenizer with one token per word."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -8.0)]
    return T5Tokenizer(
        vocab=[*special, *((f"\u2581{word}", -1.0) for word in words())],
        extra_ids=0,
        model_max_length=MAX_TOKENS,
    )


def all_scenes() -> Tensor:
    """Every prompt's (class, place, position, size, hat), 1152 rows; the row of a scene is `scene_row`."""
    return torch.tensor(list(itertools.product(*map(range, _COUNTS))))


def scene_row(cls: Tensor, place: Tensor, position: Tensor, size: Tensor, hat: Tensor) -> Tensor:
    """The row of `all_scenes` (and of every table made from it) that holds a scene."""
    row = torch.zeros_like(cls)
    for count, value in zip(_COUNTS, (cls, place, position, size, hat), strict=True):
        row = row * count + value
    return row


def all_prompts() -> list[str]:
    """The prompts of `all_scenes`, in order."""
    names = ("cls", "place", "position", "size", "hat")
    return [prompt(**dict(zip(names, row, strict=True))) for row in all_scenes().tolist()]


def token_ids(tokenizer: CLIPTokenizer | T5Tokenizer, texts: list[str]) -> Tensor:
    """Token ids, padded to MAX_TOKENS."""
    return torch.as_tensor(tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids)


def new_text_encoders(clip_vocab: int, clip_eos: int, t5_vocab: int) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Untrained encoders of the miniature's shape."""
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=clip_vocab,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=0,
            eos_token_id=clip_eos,
            pad_token_id=clip_eos,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=t5_vocab,
            d_model=WIDTH,
            d_kv=16,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )
    return clip, t5


class _Reader(nn.Module):
    """Both encoders, with heads that predict the scene from the tokens (T5) and from the pooled vector (CLIP)."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel) -> None:
        super().__init__()
        self.clip, self.t5 = clip, t5
        self.heads = nn.ModuleList(nn.Linear(WIDTH, sum(_COUNTS)) for _ in range(2))

    def forward(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.clip(clip_ids).pooler_output
        tokens = self.t5(t5_ids).last_hidden_state
        return self.heads[0](pooled), self.heads[1](tokens.mean(1))


def _loss(logits: Tensor, scene: Tensor) -> Tensor:
    parts = logits.split(_COUNTS, dim=-1)
    return torch.stack([F.cross_entropy(part, scene[:, i]) for i, part in enumerate(parts)]).mean()


def _right(logits: Tensor, scene: Tensor) -> float:
    """Share of prompts with all attributes predicted correctly."""
    parts = logits.split(_COUNTS, dim=-1)
    return float(torch.stack([part.argmax(-1) == scene[:, i] for i, part in enumerate(parts)]).all(0).float().mean())


def train_text(context: Context) -> None:
    """Trains and writes `work/text/{tokenizer,tokenizer_2,text_encoder,text_encoder_2}`."""
    folder = context.work / "text"
    if folder.exists():
        LOG.info("text: done already")
        return
    torch.manual_seed(context.seed + 1)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    clip, t5 = new_text_encoders(len(tokenizer), int(tokenizer.eos_token_id), len(tokenizer_2))
    reader = _Reader(clip, t5)
    scenes, texts = all_scenes(), all_prompts()
    clip_ids, t5_ids = token_ids(tokenizer, texts), token_ids(tokenizer_2, texts)
    training = Training(context, "text-training", reader, steps=STEPS, lr=2e-3, ema=0.98)

    def loss_of(step: int) -> Tensor:
        rows = torch.randint(len(scenes), (BATCH,), generator=torch.Generator().manual_seed(step))
        pooled, tokens = reader(clip_ids[rows], t5_ids[rows])
        return _loss(pooled, scenes[rows]) + _loss(tokens, scenes[rows])

    reader.load_state_dict(training.run(loss_of))
    reader.eval()
    with torch.no_grad():
        pooled, tokens = reader(clip_ids, t5_ids)
    metrics = {"prompts_read_by_clip": _right(pooled, scenes), "prompts_read_by_t5": _right(tokens, scenes)}
    LOG.info("text: %s", metrics)
    with replace_folder(folder) as aside:
        tokenizer.save_pretrained(aside / "tokenizer")
        tokenizer_2.save_pretrained(aside / "tokenizer_2")
        clip.to(torch.float16).save_pretrained(aside / "text_encoder")
        t5.to(torch.float16).save_pretrained(aside / "text_encoder_2")
        write_card(
            aside,
            "Miniature FLUX text encoders",
            data=f"all {len(texts)} prompts of the grammar",
            recipe=f"{training.steps} steps of {BATCH}; linear heads must recover class, place, position, size and hat",
            seconds=training.seconds,
            metrics=metrics,
        )


@torch.no_grad()
def prompt_table(context: Context) -> tuple[Tensor, Tensor]:
    """Every prompt's T5 tokens (1152, 16, 64) and CLIP vector (1152, 64), by `scene_row`, from `work/text`."""
    folder = context.work / "text"
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer_2 = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).eval()
    texts = all_prompts()
    return (
        t5(token_ids(tokenizer_2, texts)).last_hidden_state,
        clip(token_ids(tokenizer, texts)).pooler_output,
    )
