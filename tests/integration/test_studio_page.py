"""The studio in a real headless browser, on a balanced run of the miniature: every control, and what goes wrong."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.studio import saved
from customized_grpo.training.setup import build
from customized_grpo.training.trainer import Trainer
from runs import tiny_recipe
from studio import Server, Watched, browser

MINIATURE = (
    "run.threads=1",
    "policy.lora={rank: 4, balance: true}",
    "train.steps=1",
    "train.lr=0.05",
    "train.groups_per_step=1",
    "train.updates_per_rollout=1",
    "train.group_size=4",
    "train.microbatch=4",
    "train.evaluate_every=0",
    "train.save_samples_every=1",
    "train.schedule={name: constant}",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    return Trainer(build(load_recipe("mini_nft", [*MINIATURE, f"run.dir={folder}"]))).run()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(chromium: Any, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("studio"), str(run))
    yield made
    assert made.stop() == 0, made.log.read_text()
    assert "Traceback" not in made.log.read_text(), made.log.read_text()
    assert made.asked_elsewhere() == [], "nothing is reported, and nothing fetched"


@pytest.fixture
def shown(chromium: Any, server: Server) -> Iterator[Watched]:
    context = chromium.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    made = Watched(context, server.url)
    yield made
    context.close()
    assert made.complaints == []


def set_slider(page: Any, name: str, value: str) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(value)
    field.press("Enter")
    page.wait_for_function(f"document.querySelector('#{name} input[type=range]').value === '{value}'")


def test_base_and_tuned_side_by_side_by_every_control(shown: Watched, run: Path) -> None:
    page = shown.page
    shown.draw(2)
    base, tuned = shown.sources()
    assert base != tuned
    rows = page.locator("#scores tr").all_inner_texts()
    assert rows[0].split() == ["clip", "dino"]
    assert [row.split("\t")[0] for row in rows[1:]] == ["base · seed 0", "mine · seed 0"]
    assert all(float(cell) > 0 for row in rows[1:] for cell in row.split("\t")[1:])

    set_slider(page, "balance", "1")
    shown.draw(2)
    leaning = shown.sources()
    assert leaning[0] == base, "the base has no balance"
    assert leaning[1] != tuned
    set_slider(page, "strength", "0")
    shown.draw(2)
    assert shown.sources() == [base, base], "an adapter of strength 0 is the base"
    page.click("#strength button")  # back to 1
    page.click("#balance button")
    page.locator("#seed input").fill("5")
    set_slider(page, "pictures", "3")
    page.click("text=More")
    page.locator("#systems input").first.uncheck()
    set_slider(page, "steps", "2")
    page.locator("#prompt textarea").fill("a big cone wearing a red hat in the snow")
    shown.draw(3)
    captions = page.locator("#scores tr td:first-child").all_inner_texts()
    assert captions == ["mine · seed 5", "mine · seed 6", "mine · seed 7"]

    page.locator("#results .grid-container button").nth(1).click()
    page.click("#keep")
    page.wait_for_selector("#fetch:visible")
    with page.expect_download() as download:
        page.click("#fetch")
    found = saved.recipe_in(Path(download.value.path()))
    assert (found["seed"], found["steps"], found["system"], found["balance"]) == (6, 2, "mine", 0.0)
    assert found["prompt"] == "a big cone wearing a red hat in the snow"
    assert (run / "studio" / "pictures" / download.value.suggested_filename).is_file()

    page.locator("#examples button.thumbnail-item, #examples .grid-container button").nth(2).click()
    page.wait_for_function("!document.querySelector('#prompt textarea').value.includes('red hat in the snow')")
    assert page.locator("#preview img").count() == 1


def test_what_is_no_picture_is_told_and_nothing_is_drawn_by_it(shown: Watched, tmp_path: Path) -> None:
    page = shown.page
    bad = {
        "notes.png": (b"not a picture", "is not an image that Pillow can read"),
        "photo.jpg": (b"\x00\x00\x00\x18ftypheic" + b"\x00" * 16, "is damaged or truncated"),
        "empty.png": (b"", "is empty"),
        "page.png": (b"<!doctype html><title>404</title>", "is an HTML page"),
    }
    for name, (content, reason) in bad.items():
        (tmp_path / name).write_bytes(content)
        page.locator("#references button[aria-label='Clear']").click()
        page.locator("#references input[type=file]").set_input_files(tmp_path / name)
        page.wait_for_function(f"document.querySelector('#wrong')?.innerText.includes({json.dumps(reason)})")
        page.click("#go")
        page.wait_for_selector(f".toast-body:has-text({json.dumps(name)})")
        page.locator(".toast-close").first.click()
        assert shown.sources() == []
    page.locator("#references button[aria-label='Clear']").click()
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "good.png")
    page.locator("#references input[type=file]").set_input_files(tmp_path / "good.png")
    page.wait_for_selector("#preview img")
    assert not page.locator("#wrong").is_visible()
    shown.draw(2)


def test_a_prompt_that_is_too_long_or_empty_is_told(shown: Watched) -> None:
    page = shown.page
    field = page.locator("#prompt textarea")
    field.fill("   ")
    page.click("#go")
    page.wait_for_selector(".toast-body:has-text('The prompt is empty')")
    page.locator(".toast-close").first.click()
    field.fill("cone " * 2000)
    assert len(field.input_value()) == 4000, "what is pasted ends there"
    shown.draw(2)
    toast = page.locator(".toast-body").all_inner_texts()
    assert any("tokens, and the model's tokenizer_2 reads 16: its end is cut off" in text for text in toast), toast


def test_what_is_stopped_keeps_what_was_drawn(shown: Watched) -> None:
    page = shown.page
    set_slider(page, "pictures", "8")
    page.click("text=More")
    set_slider(page, "steps", "100")
    page.click("#go")
    page.wait_for_function("document.querySelectorAll('#results .grid-container img').length >= 2")
    page.click("#stop")
    page.wait_for_selector("#said:has-text('Stopped')")
    page.wait_for_timeout(1000)
    drawn = len(shown.sources())
    assert 2 <= drawn < 16
    page.click("#keep")
    page.wait_for_selector("#fetch:visible")
    assert len(shown.sources()) == drawn, "nothing comes after it"


def test_two_people_at_once_get_their_own(chromium: Any, server: Server) -> None:
    contexts = [chromium.new_context() for _ in range(2)]
    pages = [Watched(context, server.url) for context in contexts]
    for seed, one in zip(("21", "22"), pages, strict=True):
        one.page.locator("#seed input").fill(seed)
    for one in pages:
        one.watch()
        one.page.click("#go")
    for seed, one in zip(("21", "22"), pages, strict=True):
        one.wait_for(2)
        assert one.page.locator("#scores tr td:first-child").all_inner_texts() == [
            f"base · seed {seed}",
            f"mine · seed {seed}",
        ]
    assert pages[0].sources() != pages[1].sources()
    for context, one in zip(contexts, pages, strict=True):
        context.close()
        assert one.complaints == []


def test_votes_are_blind_and_dpo_can_learn_from_them(shown: Watched, run: Path) -> None:
    page = shown.page
    page.get_by_role("tab", name="Compare blind").click()
    for choice in ("#better-a", "#better-b", "#tie"):
        page.click("#pair")
        page.wait_for_selector(f"{choice}:not([disabled])")
        text = page.locator("#tally").inner_text() + page.locator("#revealed").inner_text()
        assert "A was" not in text, "nobody is told before the vote"
        page.click(choice)
        page.wait_for_function("document.querySelector('#revealed').innerText.includes('A was')")
    page.wait_for_function("document.querySelector('#tally').innerText.includes('base : mine')")
    manifest = run / "studio" / "votes" / "manifest.jsonl"
    assert len(manifest.read_text().splitlines()) == 2
    result = CliRunner().invoke(app, ["data", "check", str(manifest)])
    assert result.exit_code == 0, result.output


def test_curves_grow_while_the_run_trains(shown: Watched, run: Path) -> None:
    page = shown.page
    page.get_by_role("tab", name="Training").click()
    page.wait_for_selector("#curves svg")
    assert "step 1 of 1" in page.locator("#curves").inner_text()
    page.wait_for_selector("#strip img")
    assert "clip:" in page.locator("#about").inner_text()
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line | {"step": 2}) + "\n")
    page.wait_for_function("document.querySelector('#curves').innerText.includes('step 2')")


def test_two_runs_side_by_side(chromium: Any, run: Path, tmp_path: Path) -> None:
    other = Trainer(build(load_recipe("mini_nft", [*MINIATURE, "run.seed=7", f"run.dir={tmp_path / 'other'}"]))).run()
    server = Server(tmp_path / "studio", str(run), str(other))
    context = chromium.new_context()
    made = Watched(context, server.url)
    made.draw(3)
    assert len(set(made.sources())) == 3
    captions = made.page.locator("#scores tr td:first-child").all_inner_texts()
    assert captions == ["base · seed 0", "mine · seed 0", "other · seed 0"]
    context.close()
    assert server.stop() == 0
    assert made.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_the_keyboard(chromium: Any, server: Server, scheme: str) -> None:
    context = chromium.new_context(
        viewport={"width": 390, "height": 800}, is_mobile=True, has_touch=True, color_scheme=scheme
    )
    made = Watched(context, server.url)
    page = made.page
    page.locator("#prompt textarea").focus()
    page.keyboard.press("Tab")
    for _ in range(30):
        if page.evaluate("document.activeElement.closest('#go') !== null"):
            break
        page.keyboard.press("Tab")
    made.watch()
    page.keyboard.press("Enter")
    made.wait_for(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is wider than the phone"
    luminance = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(luminance[:3]) < 200) == (scheme == "dark")
    context.close()
    assert made.complaints == []


def test_a_server_that_stops_in_the_middle_is_noticed(chromium: Any, tiny_world: Path, tmp_path: Path) -> None:
    """By the page, which says so, and by the process, which ends at once and in order."""
    folder = Trainer(build(tiny_recipe(tiny_world, tmp_path / "run", train__steps=1))).run()
    server = Server(tmp_path / "studio", str(folder), slow_s=2.0)
    context = chromium.new_context()
    made = Watched(context, server.url)
    set_slider(made.page, "pictures", "8")
    made.page.click("#go")
    made.page.wait_for_selector("text=draws seed 1")
    began = time.monotonic()
    assert server.stop() == 0, server.log.read_text()
    assert time.monotonic() - began < 20
    made.page.wait_for_selector("#stopped:visible")
    context.close()
    assert "Traceback" not in server.log.read_text(), server.log.read_text()
