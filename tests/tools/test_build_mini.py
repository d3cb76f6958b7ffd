"""The builder's parts: tokenizers, packing, cosine targets, resumable training, atomic folders."""

from pathlib import Path

import pytest
import torch
from torch import nn

from build_mini.common import Context, Training, replace_folder, write_card
from build_mini.dino import target_cosines
from build_mini.export import newest_weights
from build_mini.policy import image_ids
from build_mini.pool import pack, unpack
from build_mini.sample import sigma_grid
from build_mini.text import all_prompts, all_scenes, clip_tokenizer, scene_row, t5_tokenizer, token_ids
from customized_grpo.mini.grammar import MAX_TOKENS


@pytest.mark.parametrize(("make", "special"), [(clip_tokenizer, 2), (t5_tokenizer, 1)])
def test_every_word_is_one_token(make, special: int, tmp_path: Path) -> None:
    tokenizer = make()
    texts = all_prompts()
    ids = token_ids(tokenizer, texts)
    assert ids.shape == (1152, MAX_TOKENS)
    for text in texts[::37]:
        assert len(tokenizer(text).input_ids) == len(text.split()) + special
    assert len({tuple(row) for row in ids.tolist()}) == 1152
    tokenizer.save_pretrained(tmp_path)
    assert torch.equal(token_ids(type(tokenizer).from_pretrained(tmp_path), texts), ids)


def test_rows_of_the_prompt_table() -> None:
    assert torch.equal(scene_row(*all_scenes().T), torch.arange(1152))


def test_packing_is_reversible_and_flux_ordered() -> None:
    latents = torch.randn(2, 16, 8, 8)
    tokens = pack(latents)
    assert tokens.shape == (2, 16, 64)
    assert torch.equal(unpack(tokens, 4), latents)
    # Token 5 is the second row and column of blocks; its numbers are ordered channel, row, column.
    assert torch.equal(tokens[0, 5].view(16, 2, 2), latents[0, :, 2:4, 2:4])


def test_reference_ids_lie_on_the_diagonal() -> None:
    ids = image_ids()
    assert ids.shape == (32, 3)
    assert torch.equal(ids[16:] - ids[:16], torch.tensor([0.0, 4.0, 4.0]).expand(16, 3))


def test_grid_of_sigmas() -> None:
    assert sigma_grid(10)[0] == 1
    assert sigma_grid(10)[-1] == 0
    assert sigma_grid(10)[5] == pytest.approx(0.75)


def test_targets_prefer_the_subject_then_the_scene() -> None:
    same = torch.zeros(3, dtype=torch.long)
    truth = {name: same.clone() for name in ("cls", "pattern", "ears", "face", "place", "position", "size", "hat")}
    truth |= {"hue": torch.tensor([0.1, 0.1, 0.6]), "pattern_hue": torch.tensor([0.4, 0.4, 0.9])}
    truth["value"] = torch.full((3,), 0.8)
    truth["place"] = torch.tensor([0, 1, 0])
    truth["pattern"] = torch.tensor([0, 0, 1])
    wanted = target_cosines(truth, 0.65)
    assert torch.allclose(wanted.diagonal(), torch.ones(3), atol=1e-6)
    assert torch.allclose(wanted, wanted.T)
    assert wanted[0, 1] > wanted[0, 2]


def _train(work: Path, steps: int, stop: int) -> dict[str, torch.Tensor]:
    """Trains for `steps` planned steps but is stopped after `stop`."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    training = Training(Context(out=work, work=work), "toy", model, steps=steps, lr=0.05)

    def loss_of(step: int) -> torch.Tensor:
        if step == stop:
            training.save()
            raise KeyboardInterrupt
        return model(torch.full((1, 3), float(step))).square().mean()

    try:
        return training.run(loss_of)
    except KeyboardInterrupt:
        return {}


def test_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = _train(tmp_path / "a", 20, stop=99)
    assert _train(tmp_path / "b", 20, stop=11) == {}
    resumed = _train(tmp_path / "b", 20, stop=99)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "asset"
    for text in ("old", "new"):
        with replace_folder(folder) as aside:
            write_card(aside, text, data="d", recipe="r", seconds=60.0, metrics={"m": 0.5})
    assert (folder / "README.md").read_text().startswith("# new")

    def fail() -> None:
        with replace_folder(folder) as aside:
            (aside / "README.md").write_text("half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert (folder / "README.md").read_text().startswith("# new")
    assert [path.name for path in tmp_path.iterdir()] == ["asset"]


def test_export_without_a_policy_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run --stage policy first"):
        newest_weights(Context(out=tmp_path, work=tmp_path))
