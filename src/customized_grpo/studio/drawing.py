"""The tab that draws: references and a prompt in, base and tuned side by side with their scores out."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import gradio as gr

from customized_grpo.evaluation.tables import cell
from customized_grpo.studio import saved
from customized_grpo.studio.artist import Shown
from customized_grpo.studio.parts import (
    MAX_PROMPT,
    ONE_DRAWS,
    Drawn,
    Studio,
    asked,
    picture,
    read_references,
    told,
)

_SEEDS = 2**32


@final
@dataclass(frozen=True, slots=True)
class Inputs:
    """Components that say what is drawn and how, which the blind comparison reads, too."""

    prompt: gr.Textbox
    files: gr.File
    subject: gr.Textbox
    steps: gr.Slider
    strength: gr.Slider
    balance: gr.Slider


def build(studio: Studio) -> Inputs:
    """Lay out the tab and connect it."""
    artist, scores, most = studio.artist, studio.scores, studio.artist.recipe.sampling.steps
    first = studio.examples[0] if studio.examples else None
    with gr.Row(elem_id="desk"):
        with gr.Column(scale=2, min_width=300):
            files = gr.File(
                _files(studio, 0) if first else None,
                file_count="multiple",
                file_types=["image"],
                label="References of the subject",
                height=140,
                elem_id="references",
            )
            preview = gr.Gallery(
                list(first.references) if first else None,
                label="As they are read",
                format="png",
                columns=4,
                fit_columns=False,
                height=130,
                object_fit="contain",
                interactive=False,
                buttons=["fullscreen"],
                elem_id="preview",
            )
            wrong = gr.Markdown(visible=False, elem_id="wrong")
            prompt = gr.Textbox(
                first.prompt if first else "", label="Prompt", lines=2, max_length=MAX_PROMPT, elem_id="prompt"
            )
            with gr.Row():
                seed = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=_SEEDS - 1, min_width=120, elem_id="seed"
                )
                number = gr.Slider(1, 8, 1, step=1, label="Pictures", min_width=140, elem_id="pictures")
            balance = gr.Slider(
                -1, 1, 0, step=0.05, label="Balance", info="-1: the prompt, 1: the identity",
                visible=bool(artist.balanced), elem_id="balance",
            )  # fmt: skip
            strength = gr.Slider(
                0, 2, 1, step=0.05, label="LoRA strength", visible=bool(artist.runs), elem_id="strength"
            )
            with gr.Row(elem_id="buttons"):
                go = gr.Button("Draw", variant="primary", elem_id="go")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
            with gr.Accordion("More", open=False):
                subject = gr.Textbox(
                    first.subject if first else "", label="Class word of the subject", info="some rewards need it"
                )
                steps = gr.Slider(1, max(100, most), most, step=1, label="Steps of the sampler", elem_id="steps")
                systems = gr.CheckboxGroup(
                    list(artist.systems), value=list(artist.systems), label="Drawn by", elem_id="systems"
                )
                ask = gr.Checkbox(
                    False, label=f"Ask {', '.join(scores.asked)}, too", info="a server, which may cost money",
                    visible=bool(scores.asked), elem_id="ask",
                )  # fmt: skip
        with gr.Column(scale=3, min_width=320):
            results = gr.Gallery(
                label="Drawn, each seed in a row",
                show_label=False,
                format="png",
                columns=len(artist.systems),
                object_fit="contain",
                interactive=False,
                buttons=["fullscreen", "download"],
                elem_id="results",
            )
            said = gr.Markdown("", elem_id="said")
            table = gr.Markdown("", elem_id="scores")
            with gr.Row():
                keep = gr.Button("Keep with its recipe", interactive=False, elem_id="keep")
                fetch = gr.DownloadButton("Download it", visible=False, elem_id="fetch")
            kept = gr.Markdown("", elem_id="kept")
    if studio.examples:
        thumbs = gr.Gallery(
            [(one.references[0], one.prompt) for one in studio.examples],
            label="Held-out examples to begin with",
            format="png",
            columns=8,
            height=150,
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="examples",
        )
        thumbs.select(_taker(studio), None, [files, preview, prompt, subject, wrong], show_progress="hidden")
    elif studio.no_data:
        gr.Markdown(f"The run's data can't be read here, so there are no examples to begin with: {studio.no_data}")
    drawn, chosen = gr.State([]), gr.State(0)

    def look(files: Sequence[str] | None) -> tuple[Any, Any]:
        with told():
            found, bad = read_references(files)
        return found, gr.Markdown("\n\n".join(bad), visible=bool(bad))

    def draw(
        prompt: str, files: Sequence[str] | None, subject: str, steps: int, strength: float, balance: float,
        seed: float | None, number: int, systems: Sequence[str], ask: bool,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        with told():
            if seed is None or not 0 <= seed <= _SEEDS - number:
                raise ValueError(f"Seed: given {seed}; allowed: 0 to {_SEEDS - number:,}")
            if not systems:
                raise ValueError("Nothing draws; tick the base or a run under 'Drawn by'")
            order = [one for one in artist.systems if one in systems]
            request = asked(studio, prompt, files, subject)
            made: list[Drawn] = []
            began = time.monotonic()
            for at in range(int(seed), int(seed) + int(number)):
                shown = Shown(at, int(steps), float(strength), float(balance))
                images = []
                for system in order:
                    yield _shown(made, f"{system} draws seed {at} ...")
                    images.append(artist.draw(system, request.prompt, request.references, shown))
                values, problems = scores.of(images, request.prompt, request.references, request.subject, ask=ask)
                made += [
                    Drawn(system, picture(image), request, shown, of)
                    for system, image, of in zip(order, images, values, strict=True)
                ]
                for text in problems:
                    gr.Warning(text, duration=None)
            yield _shown(made, f"Drawn in {time.monotonic() - began:.1f} s")

    def save(made: list[Drawn], at: int) -> tuple[Any, ...]:
        with told():
            if not 0 <= at < len(made):
                raise ValueError("Nothing is drawn yet; draw, and choose a picture")
            one = made[at]
            file = saved.keep(
                one.image, studio.folder / "pictures", artist, one.system, one.asked.prompt, one.asked.references,
                one.shown, one.scores,
            )  # fmt: skip
        line = saved.recipe_in(file)["command"]
        text = f"Kept in `{file}`; its recipe is in it. To draw it again:\n```sh\n{line}\n```"
        return gr.DownloadButton(value=str(file), visible=True), text

    files.change(look, files, [preview, wrong], show_progress="hidden")
    inputs = Inputs(prompt, files, subject, steps, strength, balance)
    given = [prompt, files, subject, steps, strength, balance, seed, number, systems, ask]
    run = gr.on([go.click, prompt.submit], draw, given, [results, table, said, drawn, keep, chosen], **ONE_DRAWS)
    stop.click(lambda: "Stopped.", None, said, cancels=[run], queue=False)
    results.select(_index, None, chosen, show_progress="hidden")
    keep.click(save, [drawn, chosen], [fetch, kept])
    return inputs


def _shown(made: Sequence[Drawn], text: str) -> tuple[Any, ...]:
    """The result so far, of which the last picture is chosen: a drawing may be stopped."""
    pictures = [(one.image, one.caption) for one in made]
    return pictures, _scores(made), text, list(made), gr.Button(interactive=bool(made)), len(made) - 1


def _scores(made: Sequence[Drawn]) -> str:
    """Scores as a table in Markdown, the best of each seed bold; empty without rewards."""
    names = list(made[0].scores) if made else []
    if not names:
        return ""
    lines = [f"| | {' | '.join(map(cell, names))} |", "| --- |" + " ---: |" * len(names)]
    for one in made:
        rivals = [other.scores for other in made if other.shown.seed == one.shown.seed]
        cells = []
        for name in names:
            value, best = one.scores[name], max(scores[name] for scores in rivals)
            text = "–" if math.isnan(value) else f"{value:.3g}"
            cells.append(f"**{text}**" if len(rivals) > 1 and value == best else text)
        lines.append(f"| {cell(one.caption)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _index(event: gr.SelectData) -> int:
    return int(event.index)


def _taker(studio: Studio) -> Any:
    def take(event: gr.SelectData) -> tuple[Any, ...]:
        one = studio.examples[int(event.index)]
        files = _files(studio, int(event.index))
        return files, list(one.references), one.prompt, one.subject, gr.Markdown(visible=False)

    return take


def _files(studio: Studio, index: int) -> list[str]:
    """References of an example as files, as if they had been uploaded."""
    found = []
    for at, reference in enumerate(studio.examples[index].references):
        file = studio.uploads / "examples" / f"{index}-{at}.png"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            reference.save(file)
        found.append(str(file))
    return found
