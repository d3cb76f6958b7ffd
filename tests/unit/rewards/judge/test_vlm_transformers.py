"""The judge against a server that is not ours: ``transformers serve`` with a vision-language model of random weights.

The model is a LLaVA of a few kilobytes whose vocabulary has the five score lines as single tokens. Its generation
settings leave it nothing but those and the end, so that what it answers is one of them, by its weights and the images.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from customized_grpo.rewards.base import RewardFailure
from customized_grpo.rewards.judge.vlm import Vlm
from customized_grpo.scoring.scorer import Scorer
from judge_cases import EXAMPLE
from tiny_rewards import pictures

SIDE, PATCH = 28, 14
LINES = [f"Score: {score}" for score in range(5)]
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def save_llava(folder: Path) -> Path:
    """A random LLaVA with processor, tokenizer, chat template and the generation settings above."""
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>", *LINES]
    words = special + [f"word{at}" for at in range(22)]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    tokenizer.add_tokens(LINES)  # not special: they must be in the answer's text
    crop = {"height": SIDE, "width": SIDE}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            image_size=SIDE, patch_size=PATCH, projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096,
            bos_token_id=1, eos_token_id=2, pad_token_id=3,
        ),
        image_token_index=words.index("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():  # of a size at which the images reach the answer
            torch.nn.init.normal_(parameter, std=0.5)
    allowed = {words.index(line) for line in LINES} | {2}
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=3, do_sample=False,
        suppress_tokens=[at for at in range(len(words)) if at not in allowed],
        begin_suppress_tokens=[2],  # something must be said
        exponential_decay_length_penalty=(1, 1e6),  # and then the end
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Base URL and the model's name."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    folder = save_llava(tmp_path_factory.mktemp("llava"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys, torch; torch.set_num_threads(1); sys.argv[0] = 'transformers'\n"
        "from transformers.cli.transformers import main; main()"
    )
    log = (folder / "server.log").open("wb")
    command = [sys.executable, "-c", code, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--device", "cpu"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def judge(url: str, model: str, **options: object) -> Vlm:
    section = {
        "type": "vlm", "axis": "identity", "preset": "vllm", "base_url": url, "model": model,
        "rubric": "concept_preservation", "output": "text", "retries": 0, **options,
    }  # fmt: skip
    return Vlm(Vlm.Config.model_validate(section), device=torch.device("cpu"))


def test_a_random_model_judges_by_what_it_sees(server: tuple[str, str]) -> None:
    images = pictures(8, seed=3)
    reward = judge(*server)
    with Scorer({"cp": reward}, max_failed_share=0.0) as scorer:
        scores = scorer.submit(EXAMPLE, images).result()[:, 0]
    spent = reward._judge._cache.spent()
    reward.close()
    assert set(scores.tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert len(set(scores.tolist())) > 1, "the images reach the model"
    assert spent[0] == len(images)
    assert spent[1] > 0

    again = judge(*server)  # without the first one's memory
    with Scorer({"cp": again}, max_failed_share=0.0) as scorer:
        assert torch.equal(scorer.submit(EXAMPLE, images.flip(0)).result()[:, 0], scores.flip(0))
    again.close()


def test_what_the_server_lacks_is_said(server: tuple[str, str]) -> None:
    url, model = server
    images = pictures(2, seed=3)
    unsure = judge(url, model, expected=True)  # this server ignores logprobs
    short = judge(url, model, answer_tokens=1)
    with Scorer({"unsure": unsure, "short": short}, max_failed_share=1.0) as scorer:
        pending = scorer.submit(EXAMPLE, images)
        assert pending.result().isnan().all()
        assert "gave no log-probabilities" in pending.reasons["unsure"][0]
        assert "raise answer_tokens" in pending.reasons["short"][0]
    for reward in (unsure, short):
        reward.close()
    lost = judge(url, "another/model")
    refused = pytest.raises(RewardFailure, match=r"HTTP 400: .*pinned")
    with Scorer({"cp": lost}, max_failed_share=1.0) as scorer, refused:
        scorer.submit(EXAMPLE, images).result()
    lost.close()
