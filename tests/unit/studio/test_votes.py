"""Votes: their tally, and the manifest that ``dpo`` reads."""

import json
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.data.base import supervised
from customized_grpo.data.manifest import ManifestDataset
from customized_grpo.studio.artist import Shown
from customized_grpo.studio.votes import MANIFEST, Choice, Pair, Votes


def pair(a: str, b: str, colours: tuple[str, str] = ("red", "blue")) -> Pair:
    one, other = (Image.new("RGB", (8, 8), colour) for colour in colours)
    reference = Image.new("RGB", (6, 6), "green")
    return Pair((a, b), (one, other), "a dog", (reference,), "dog", Shown(7, balance=0.5))


@pytest.mark.parametrize(("choice", "better"), [("A", "red"), ("B", "blue")])
def test_dpo_reads_what_was_chosen(tmp_path: Path, choice: Choice, better: str) -> None:
    votes = Votes(tmp_path)
    votes.add(pair("base", "run"), choice)
    votes.add(pair("base", "run"), "tie")
    dataset = supervised(ManifestDataset(ManifestDataset.Config(type="manifest", path=str(tmp_path / MANIFEST))), 2)
    assert len(dataset) == 1, "a tie teaches nothing"
    example = dataset[0]
    chosen, rejected = example.targets
    assert chosen.getpixel((0, 0)) == Image.new("RGB", (1, 1), better).getpixel((0, 0))
    assert rejected.getpixel((0, 0)) != chosen.getpixel((0, 0))
    assert (example.prompt, example.subject) == ("a dog", "dog")
    assert example.references[0].getpixel((0, 0)) == (0, 128, 0)
    assert example.extra["seed"] == 7
    assert example.extra["systems"] == (["base", "run"] if choice == "A" else ["run", "base"])


def test_the_tally_counts_wins_whoever_was_on_the_left(tmp_path: Path) -> None:
    votes = Votes(tmp_path)
    assert votes.counts() == []
    for made, choice in ((pair("run", "base"), "A"), (pair("base", "run"), "B"), (pair("base", "run"), "A")):
        votes.add(made, choice)  # type: ignore[arg-type]
    votes.add(pair("run", "base"), "tie")
    votes.add(pair("other", "base"), "A")
    first, second = votes.counts()
    assert (first.systems, first.wins, first.ties) == (("base", "other"), (0, 1), 0)
    assert (second.systems, second.wins, second.ties) == (("base", "run"), (1, 2), 1)
    # Clopper-Pearson of 1 of 3, from its beta quantiles
    assert (second.low, second.high) == pytest.approx((0.00840, 0.90570), abs=1e-4)


def test_a_line_that_was_cut_short_is_no_vote(tmp_path: Path) -> None:
    votes = Votes(tmp_path)
    votes.add(pair("base", "run"), "A")
    with (tmp_path / MANIFEST).open("a") as file:
        file.write(json.dumps({"id": "half"})[:7])
    assert votes.counts()[0].wins == (1, 0)
