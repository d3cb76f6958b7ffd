"""The tab that compares: two pictures of one prompt and noise, A or B, without saying whose they are."""

import random
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import gradio as gr

from customized_grpo.evaluation.tables import cell
from customized_grpo.studio.artist import Shown
from customized_grpo.studio.drawing import Inputs
from customized_grpo.studio.parts import ONE_DRAWS, Asked, Studio, asked, picture, told
from customized_grpo.studio.votes import Choice, Pair, Votes

_OWN, _HELD = "my prompt and references", "a held-out example, drawn by lot"


def build(studio: Studio, inputs: Inputs) -> None:
    """Lay out the tab and connect it."""
    artist, votes, lot = studio.artist, Votes(studio.folder / "votes"), random.Random()
    sources = [_OWN, *([_HELD] if studio.dataset is not None else [])]
    source = gr.Radio(sources, value=sources[-1], label="What is drawn", elem_id="source")
    following = gr.Button("Draw a pair", variant="primary", elem_id="pair")
    asked_for = gr.Markdown("", elem_id="asked-for")
    looks: dict[str, Any] = {"format": "png", "interactive": False, "buttons": ["fullscreen"], "min_width": 130}
    reference = gr.Image(label="Reference", elem_id="subject", **looks)
    with gr.Row():
        a = gr.Image(label="A", elem_id="picture-a", **looks)
        b = gr.Image(label="B", elem_id="picture-b", **looks)
    with gr.Row(elem_id="choices"):
        choices: dict[Choice, Any] = {
            "A": gr.Button("A is better", interactive=False, elem_id="better-a", min_width=100),
            "B": gr.Button("B is better", interactive=False, elem_id="better-b", min_width=100),
            "tie": gr.Button("No difference", interactive=False, elem_id="tie", min_width=100),
        }
    said = gr.Markdown("", elem_id="revealed")
    tally = gr.Markdown(tally_of(votes), elem_id="tally")
    pair = gr.State(None)
    buttons = list(choices.values())

    def drawn(
        source: str, prompt: str, files: Sequence[str] | None, subject: str, steps: int, strength: float, balance: float
    ) -> tuple[Any, ...]:
        with told():
            if source == _HELD:
                assert studio.dataset is not None
                held = studio.dataset[lot.randrange(len(studio.dataset))]
                request = Asked(held.prompt, held.references, held.subject)
            else:
                request = asked(studio, prompt, files, subject)
            if not request.references:
                raise ValueError("There is no reference; a vote is about a subject, so give one in the tab 'Draw'")
            systems = lot.choice(list(combinations(artist.systems, 2)))
            systems = systems if lot.random() < 0.5 else systems[::-1]
            shown = Shown(lot.randrange(2**32), int(steps), float(strength), float(balance))
            one, other = (picture(artist.draw(system, request.prompt, request.references, shown)) for system in systems)
        made = Pair((systems[0], systems[1]), (one, other), request.prompt, request.references, request.subject, shown)
        open_now = [gr.Button(interactive=True) for _ in buttons]
        return made, f"*{request.prompt}*", request.references[0], one, other, "", *open_now

    def vote(choice: Choice, made: Pair | None) -> tuple[Any, ...]:
        closed = [gr.Button(interactive=False) for _ in buttons]
        if made is None:  # a second click on the same pair
            return (None, gr.skip(), gr.skip(), *closed)
        votes.add(made, choice)
        return None, f"A was **{made.systems[0]}**, B was **{made.systems[1]}**.", tally_of(votes), *closed

    given = [source, inputs.prompt, inputs.files, inputs.subject, inputs.steps, inputs.strength, inputs.balance]
    following.click(drawn, given, [pair, asked_for, reference, a, b, said, *buttons], **ONE_DRAWS)
    for name, button in choices.items():
        button.click(partial(vote, name), pair, [pair, said, tally, *buttons], show_progress="hidden")


def tally_of(votes: Votes) -> str:
    """The votes as a table in Markdown."""
    counts = votes.counts()
    where = f"kept in `{votes.folder}`, as a manifest that `customized-grpo dpo` learns from."
    if not counts:
        return f"No vote yet. Votes are {where}"
    head = "| systems | wins | ties | share of wins, 95 % |\n| --- | --- | --- | --- |\n"
    lines = [
        f"| {cell(one.systems[0])} : {cell(one.systems[1])} | {one.wins[0]} : {one.wins[1]} | {one.ties} | "
        f"{one.low:.0%} to {one.high:.0%} for {cell(one.systems[0])} |"
        for one in counts
    ]
    table = head + "\n".join(lines)
    return f"{table}\n\nVotes are {where}"
