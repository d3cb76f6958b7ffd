"""What ``generate`` writes for FLUX.1 with UNO's references: base, adapter, and both side by side."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from customized_grpo import registry
from customized_grpo.data.images import load_image
from customized_grpo.policies.adapters.lora import attach, save_adapter, trainable_parameters
from customized_grpo.policies.adapters.tuning import load_tuned
from customized_grpo.policies.base import LoraSettings, load_policy
from customized_grpo.recipe.drawn import guided
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.sampling.draw import ABOUT, draw, generate, side_by_side
from runs import make_tiny_world, tiny_recipe

PROMPT = "a red dog"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ``adapter/`` in it, whose weights are not zero."""
    folder = make_tiny_world(tmp_path_factory.mktemp("world"))
    policy = load_policy(tiny_recipe(folder, folder).policy, device=torch.device("cpu"), precision="no")
    attach(policy, LoraSettings(rank=2), seed=0)
    for parameter in trainable_parameters(policy).values():
        parameter.data = torch.full_like(parameter, 0.05)
    save_adapter(policy, folder / "adapter", {})
    return folder


def drawn(world: Path, file: Path, adapter: str | None, references: int = 1, **changes: Any) -> list[Image.Image]:
    settings: dict[str, Any] = {"steps": 2, "seed": 0, "num": 1, "grid": None, **changes}
    pictures = [load_image(world / f"{i}.png") for i in range(references)]
    recipe = tiny_recipe(world, world / "run", policy__min_references=0)
    files = draw(recipe, adapter, pictures, PROMPT, file, **settings)
    return [load_image(path) for path in files]


def same(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is None


def test_base_adapter_and_grid(world: Path, tmp_path: Path) -> None:
    adapter, grid = str(world / "adapter"), tmp_path / "grid.png"
    *tuned, sheet = drawn(world, tmp_path / "new" / "t.png", adapter, num=2, grid=grid)
    base = drawn(world, tmp_path / "b.png", None, num=2)
    assert [path.name for path in sorted(tmp_path.rglob("*.png"))] == [
        "b-0.png", "b-1.png", "grid.png", "t-0.png", "t-1.png",
    ]  # fmt: skip
    assert not same(tuned[0], base[0])
    assert not same(base[0], base[1])
    below = 2 * 28  # the prompt, and the row's name
    tiles = [
        sheet.crop((4 + 36 * k, 64 * row + below, 36 + 36 * k, 64 * row + below + 32)) for row in (1, 2) for k in (0, 1)
    ]
    assert all(same(tile, image) for tile, image in zip(tiles, (*base, *tuned), strict=True))


def test_an_image_depends_on_its_seed_and_number_alone(world: Path, tmp_path: Path) -> None:
    one = drawn(world, tmp_path / "a.png", None, seed=3)
    several = drawn(world, tmp_path / "b.png", None, seed=3, num=5)  # more than a batch
    assert len(several) == 5
    close = ImageChops.difference(one[0], several[0]).getextrema()
    assert max(high for _, high in close) <= 1  # a batch of another size, so the last bits may differ
    assert not same(drawn(world, tmp_path / "c.png", None, seed=4)[0], one[0])


def test_a_notebook_draws_what_the_command_draws(world: Path, tmp_path: Path) -> None:
    """``generate`` with a policy of ``load_policy``, as it is and with what a run trained."""
    recipe = tiny_recipe(world, world / "run", policy__min_references=0)
    references = [load_image(world / "0.png")]
    policy = load_policy(recipe)
    for adapter in (None, str(world / "adapter")):
        if adapter is not None:
            load_tuned(policy, adapter)
        images = generate(policy, recipe, PROMPT, references, num=2, seed=1, steps=2)
        written = drawn(world, tmp_path / "a.png", adapter, num=2, seed=1)
        assert [image.size for image in images] == [(32, 32)] * 2
        assert all(same(one, other) for one, other in zip(images, written, strict=True))


def test_a_notebook_says_how_many_images_and_steps(world: Path) -> None:
    recipe = tiny_recipe(world, world / "run", policy__min_references=0)
    policy = load_policy(recipe)
    with pytest.raises(ValueError, match="num: given 0; allowed: at least 1"):
        generate(policy, recipe, PROMPT, num=0)
    with pytest.raises(ValueError, match="at least 1 step"):
        generate(policy, recipe, PROMPT, steps=0)
    assert len(generate(policy, recipe, PROMPT)) == 1


def test_a_recipe_says_device_and_precision_of_its_policy(world: Path) -> None:
    recipe = tiny_recipe(world, world / "run")
    assert load_policy(recipe).dtype == torch.float32
    assert load_policy(recipe, precision="bf16").dtype == torch.bfloat16
    assert load_policy(recipe.policy).dtype == torch.bfloat16
    assert load_policy(recipe, device=torch.device("cpu")).device.type == "cpu"


def test_without_references_the_grid_has_no_row_of_them(world: Path, tmp_path: Path) -> None:
    _, sheet = drawn(world, tmp_path / "a.png", None, references=0, grid=tmp_path / "g.png")
    assert sheet.size == (240, 28 + 28 + 32 + 4), "the prompt's line, the row's name, the image"


def test_a_grid_tells_its_prompt_in_lines_that_fit() -> None:
    rows = {"base": torch.zeros(2, 200, 200, 3, dtype=torch.uint8)}
    plain, one, long = (side_by_side([], rows, prompt) for prompt in ("", PROMPT, " ".join([PROMPT] * 12)))
    assert [sheet.width for sheet in (plain, one, long)] == [418] * 3
    assert one.height == plain.height + 28
    assert long.height >= plain.height + 2 * 28
    assert same(one.crop((0, 28, *one.size)), plain), "the images are below it, as they were"
    assert one.crop((0, 0, one.width, 28)).getextrema()[0][0] < 128, "it is written"
    margin = long.crop((long.width - 6, 0, long.width, long.height - plain.height))
    assert margin.getextrema() == ((255, 255),) * 3, "no line runs out of the picture"


def test_guidance_of_the_command_is_that_of_a_recipe(world: Path, tmp_path: Path) -> None:
    (asked,) = drawn(world, tmp_path / "a.png", None, guidance=9.0)
    recipe = tiny_recipe(world, world / "run", policy__min_references=0, policy__guidance=9.0)
    references = [load_image(world / "0.png")]
    (file,) = draw(recipe, None, references, PROMPT, tmp_path / "b.png", steps=2, seed=0, num=1, grid=None)
    assert same(asked, load_image(file))
    assert guided(recipe.policy, None, "--guidance") is recipe.policy
    with Image.open(tmp_path / "a.png") as picture:
        assert '"guidance": 9.0' in picture.text[ABOUT]  # type: ignore[attr-defined]


def test_guidance_that_has_no_effect_is_refused() -> None:
    few = load_recipe("uno_customized_grpo", ["policy.model=black-forest-labs/FLUX.1-schnell"]).policy
    with pytest.raises(ValueError, match=r"^--guidance: given 3, but .*FLUX\.1-schnell is distilled to few steps"):
        guided(few, 3.0, "--guidance")
    toy = registry.config_model("policies", registry.resolve("policies", "toy_policy:ToyPolicy"))
    with pytest.raises(ValueError, match=r"^--guidance: given 3, but policy.type toy_policy:ToyPolicy has no guidance"):
        guided(toy.model_validate({"type": "toy_policy:ToyPolicy", "model": "x"}), 3.0, "--guidance")  # type: ignore[type-var]


def test_references_in_a_grid_are_whole() -> None:
    """A reference of another shape is padded with white, not cropped or stretched."""
    sheet = side_by_side([Image.new("RGB", (64, 32), "red")], {"base": torch.zeros(1, 32, 32, 3, dtype=torch.uint8)})
    tile = sheet.crop((4, 28, 36, 60))
    assert [tile.getpixel((16, y)) for y in (2, 16, 29)] == [(255, 255, 255), (255, 0, 0), (255, 255, 255)]
    assert [tile.getpixel((x, 16)) for x in (0, 31)] == [(255, 0, 0)] * 2
    assert sheet.crop((4, 92, 36, 124)).getextrema() == ((0, 0),) * 3


def test_a_gpu_that_is_not_there(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = tiny_recipe(world, world / "run", run__device="cuda")
    with pytest.raises(ValueError, match="torch finds no GPU"):
        draw(recipe, None, [], PROMPT, tmp_path / "a.png", steps=1, seed=0, num=1, grid=None)


def test_a_grid_replaces_no_image(world: Path, tmp_path: Path) -> None:
    """It was written over the image of the same name."""
    for grid, num in (("a.png", 1), ("a-1.png", 2)):
        with pytest.raises(ValueError, match=f"--grid: .*{grid} is a file of --out, too"):
            drawn(world, tmp_path / "a.png", None, num=num, grid=tmp_path / grid)


def test_another_size_is_drawn_as_a_recipe_of_that_size_draws_it(world: Path, tmp_path: Path) -> None:
    adapter, size = str(world / "adapter"), {"policy__height": 64, "policy__width": 48}
    (ours,) = drawn(world, tmp_path / "a.png", adapter, height=64, width=48)
    assert ours.size == (48, 64)
    recipe = tiny_recipe(world, world / "run", policy__min_references=0, **size)
    references = [load_image(world / "0.png")]
    (file,) = draw(recipe, adapter, references, PROMPT, tmp_path / "b.png", steps=2, seed=0, num=1, grid=None)
    assert same(ours, load_image(file))
    (taller,) = drawn(world, tmp_path / "c.png", None, height=48)
    assert taller.size == (32, 48)
    with pytest.raises(ValueError, match=r"^--width: given 40; this model needs a multiple of 16: use 32 or 48"):
        drawn(world, tmp_path / "d.png", None, width=40)
