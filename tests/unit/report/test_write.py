import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from customized_grpo.report.folders import read_runs
from customized_grpo.report.write import write_report
from run_folder import evaluation_rows, make_run, write_rows

HOSTILE = '<script>alert("x")</script> & a "ball" $\\frac{1}{2}$'


class Page(HTMLParser):
    """What a browser would load, and whether tags are balanced."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.refs: list[str] = []
        self.images_without_alt = 0
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "xlink:href")]
        if given.get("id"):
            self.ids.append(given["id"] or "")
        self.images_without_alt += tag == "img" and not given.get("alt")
        self.refs += re.findall(r"url\(#([^)]*)\)", " ".join(value or "" for _, value in attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "complete", steps=40, planned=40, n=12)


@pytest.fixture(scope="module")
def page(complete: Path) -> str:
    out = write_report([complete])
    assert out == complete / "report.html"
    return out.read_text(encoding="utf-8")


def test_every_section_is_there(page: str) -> None:
    for section in ("results", "curves", "plane", "pictures", "conflict", "weights", "health", "recipe"):
        assert f'<section id="{section}"' in page
    for text in (
        "Identity accuracy",
        "Random",
        "Largest gains",
        "rollout",
        "aggregator",
        "copy reference",
        "heldout",
    ):
        assert text in page
    assert "data:image/png;base64," in page
    assert page.count("<svg") >= 12


def test_headline_is_the_summary(page: str, complete: Path) -> None:
    summary = json.loads((complete / "evaluation" / "summary.json").read_text())
    rows = {row["name"]: row["metrics"]["identity_accuracy"] for row in summary["rows"]}
    start = page.index('class="headline">')
    text = re.sub(r"<[^>]*>", "", page[start : page.index("</p>", start)]).replace("\u2212", "-")
    difference = summary["differences"][0]["metrics"]["identity_accuracy"]
    assert f"from {rows['base']['mean']:.3f} to {rows['tuned']['mean']:.3f} ({difference['mean']:+.3f};" in text
    assert f"interval {difference['low']:+.3f} to {difference['high']:+.3f}; 12 examples)" in text


def test_nothing_is_loaded_from_outside(page: str) -> None:
    parsed = Page(page)
    assert not parsed.open
    assert all(value.startswith(("#", "data:")) for value in parsed.loaded)
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert not {"script", "iframe", "object", "embed", "form"} & set(parsed.tags)


def test_ids_are_unique_and_references_lead_somewhere(page: str) -> None:
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(parsed.refs) <= set(parsed.ids)
    assert {value[1:] for value in parsed.loaded if value.startswith("#")} <= set(parsed.ids)


def test_colours_of_figures_are_the_page_s_variables(page: str) -> None:
    assert "#0101" not in page
    assert "#0102" not in page
    assert "var(--s0)" in page
    assert "prefers-color-scheme: dark" in page


def test_pictures_and_figures_have_text(page: str) -> None:
    assert Page(page).images_without_alt == 0
    assert len(re.findall(r'<div role="img" aria-label="[^"]{20,}"', page)) == page.count("<svg")


def test_hostile_prompt_recipe_and_folder_are_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / '<img src=x onerror="alert(1)">$x$', steps=20, planned=20, n=3, prompt=HOSTILE)
    with (run / "config.yaml").open("a") as file:
        file.write("# </pre><script>alert(2)</script>\n")
    text = write_report([run, make_run(tmp_path / "b", steps=20, planned=20, n=3)], tmp_path / "out.html").read_text()
    assert "<script" not in text
    shown = re.sub(r"&lt;img\s+src=x\s+onerror=", "", re.sub(r"&quot;|&#34;", "", text))  # as text, which YAML may wrap
    assert "onerror=" not in re.sub(r'"[^"]*"', "", shown)
    assert "&lt;script&gt;alert(" in text
    assert not {"script", "image"} & set(Page(text).tags)
    assert all(value.startswith(("#", "data:")) for value in Page(text).loaded)


def test_a_picture_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=20, planned=20, n=2)
    secret = tmp_path / "secret.png"
    secret.write_bytes(next((run / "evaluation" / "references").glob("*.png")).read_bytes())
    for label in ("step-000000", "step-000020"):
        path = run / "evaluation" / f"{label}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_rows(path.parent, label, [row | {"file": "../../secret.png", "reference": str(secret)} for row in rows])
    text = write_report([run]).read_text()
    assert "data:image/" not in text
    assert "not saved" in text


def test_several_runs_are_overlaid_and_compared(complete: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", steps=40, planned=60, n=12, gain=0.2, seed=1)
    out = write_report([complete, other], tmp_path / "both.html")
    text = out.read_text()
    assert "2 runs compared" in text
    assert "40 of 60 steps" in text
    assert "the paired change from the run's own base" in text
    assert "var(--s1)" in text
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert write_report([complete, other]) == complete.parent / "report.html"


def test_one_line_of_metrics_is_a_report_that_names_what_is_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, planned=10, evaluate=False)
    (run / "config.yaml").unlink()
    text = write_report([run]).read_text()
    for sentence in ("No held-out evaluation yet", "No config.yaml", "No evaluation/summary.json"):
        assert sentence in text
    assert '<section id="plane"' not in text
    assert '<section id="conflict"' in text


def test_a_run_in_progress_is_compared_by_its_last_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=20, planned=60, summary=False, n=16, gain=3.0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "reward/di')
    text = write_report([run]).read_text()
    assert "20 of 60 steps are done" in text
    assert "1 unfinished or damaged line left out" in text
    assert "rose</b> from" in text


def test_an_evaluation_without_training_is_a_report(tmp_path: Path) -> None:
    from customized_grpo.evaluation.tables import summarize

    folder = tmp_path / "eval" / "evaluation"
    rows = {name: evaluation_rows(folder, name, quality, 6) for name, quality in (("base", 0.0), ("tuned", 1.0))}
    for name, measured in rows.items():
        write_rows(folder, name, measured)
    summarize(folder, "heldout", rows)
    text = write_report([tmp_path / "eval"]).read_text()
    assert "No metrics.jsonl" in text
    assert '<section id="plane"' in text
    assert "Random" in text


def test_there_is_a_plane_for_every_metric_of_the_prompt(tmp_path: Path) -> None:
    """The paper's own points are of identity by DINO and HPSv3, which stands last in the recipe."""
    from customized_grpo.evaluation.protocols import PROTOCOLS
    from customized_grpo.evaluation.tables import summarize

    protocol, folder = "dreambench/uno-all-references", tmp_path / "eval" / "evaluation"
    axes = {"dino_vits16": "identity", "clip_t_vitb32": "prompt", "hpsv3": "prompt"}
    rows = {}
    for name, quality in (("base", 0.0), ("tuned", 1.0)):
        rows[name] = [
            row | {"values": {column: row["values"]["prompt_accuracy"] for column in axes}}
            for row in evaluation_rows(folder, name, quality, 6, save=False)
        ]
        write_rows(folder, name, rows[name])
    metrics = {column: {"type": column, "axis": axis} for column, axis in axes.items()}
    recipe = {"evaluate": {"protocol": protocol, "metrics": metrics}}
    (tmp_path / "eval" / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    summarize(folder, protocol, rows, dict(PROTOCOLS[protocol].canonical))
    text = write_report([tmp_path / "eval"]).read_text()
    section = text[text.index('<section id="plane"') :]
    first, second = section[: section.index("</section>")].split("<figure")[1:]
    assert "Path of each run as (dino vits16, clip t vitb32)" in first
    assert "Path of each run as (dino vits16, hpsv3)" in second
    assert "Customized-GRPO" in second
    assert "Customized-GRPO" not in first
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))


@pytest.mark.parametrize("damage", ["[1, 2", "[]", '{"rows": 3}', '{"rows": [1], "differences": []}', "null"])
def test_a_damaged_summary_is_named(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path / "run", steps=2, evaluate=False)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "summary.json").write_text(damage)
    assert "summary.json can&#39;t be read" in write_report([run]).read_text()


@pytest.mark.parametrize("recipe", ["- a\n- b\n", "a: [", "evaluate: 3\ntrain: no\nrewards: []\npolicy: x\n", ""])
def test_an_odd_recipe_does_not_stop_the_report(tmp_path: Path, recipe: str) -> None:
    run = make_run(tmp_path / "run", steps=2, planned=20, evaluate=False)
    (run / "config.yaml").write_text(recipe)
    assert "Synergy and conflict" in write_report([run]).read_text()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        write_report([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"no metrics\.jsonl with a step"):
        write_report([tmp_path / "empty"])
    with pytest.raises(ValueError, match="no run was given"):
        write_report([])
    run = make_run(tmp_path / "run", steps=2, evaluate=False)
    with pytest.raises(ValueError, match="given twice"):
        write_report([run, run])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't be written"):
        write_report([run], tmp_path / "file" / "report.html")


def test_the_same_folder_gives_the_same_page(complete: Path, tmp_path: Path) -> None:
    first, second = (write_report([complete], tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert first == second


def test_random_examples_do_not_depend_on_their_scores(tmp_path: Path) -> None:
    from customized_grpo.report.folders import read_runs
    from customized_grpo.report.gallery import gallery

    axes = {"identity": "identity_accuracy", "prompt": "prompt_accuracy"}
    runs = read_runs(
        [make_run(tmp_path / name, steps=20, planned=20, n=20, gain=gain) for name, gain in (("a", 2.0), ("b", -2.0))]
    )
    better, worse = (gallery(run, axes) for run in runs)
    assert [card.reference for card in better[0].cards] == [card.reference for card in worse[0].cards]
    gains = next(group for group in better if group.title == "Largest gains")
    # Each axis in units of its spread over the shown examples, so that neither decides alone.
    spread = {
        axis: np.std([row["values"][column] for row in runs[0].evaluations["step-000020"]])
        for axis, column in axes.items()
    }
    changes = [
        float(np.mean([(after - before) / spread[axis] for axis, before, after in card.values])) for card in gains.cards
    ]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] > 0
    titles = [group.title for group in better]
    assert titles == ["Random", "Best", "Worst", "Largest gains"] or titles[-1] == "Largest losses"


def test_what_a_mac_leaves_in_a_run_is_no_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=20, planned=20, n=4)
    (run / "evaluation/._base.jsonl").write_bytes(b"\0\5\x16\7")
    assert "._base" not in read_runs([run])[0].evaluations
