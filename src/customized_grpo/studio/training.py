"""The tab that watches: a run's curves while it trains, and the groups that it saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from customized_grpo.studio.live import curves, group_in, groups, state_of

_SECONDS = 5.0


def build(runs: Mapping[str, Path], tab: gr.Tab) -> gr.Timer:
    """Lay out the tab and connect it; the clock by which it looks again, which stands still until it is opened."""
    names = list(runs)
    name = gr.Dropdown(names, value=names[0], label="Run", visible=len(names) > 1, elem_id="run")
    number = gr.Slider(1, 2, 1, step=1, label="Saved group, the newest last", visible=False, elem_id="group")
    strip = gr.Image(
        label="Reference and samples",
        format="png",
        interactive=False,
        buttons=["fullscreen"],
        visible=False,
        elem_id="strip",
    )
    about = gr.Markdown("", elem_id="about")
    drawn = gr.HTML("", elem_id="curves")
    known = gr.State(())
    clock = gr.Timer(_SECONDS, active=False)

    def look(name: str, known: tuple[Any, ...], number: int) -> tuple[Any, ...]:
        saved = groups(runs[name])
        found = (name, len(saved), *state_of(runs[name]))
        if found == tuple(known):
            return tuple(gr.skip() for _ in range(5))
        stays = bool(known) and known[0] == name and number < known[1]  # on an older group than the newest
        at = int(number) if stays else max(1, len(saved))
        slider = gr.Slider(maximum=max(2, len(saved)), value=at, visible=len(saved) > 1)
        return found, curves(runs[name]), slider, *show(name, at)

    def show(name: str, number: int) -> tuple[Any, str]:
        saved = groups(runs[name])
        if not saved:
            return gr.Image(visible=False), "No group is saved yet (`train.save_samples_every`)."
        group = group_in(saved[min(int(number), len(saved)) - 1])
        lines = [f"Step {group.step}: *{group.prompt}*"]
        lines += [f"{one}: {', '.join(f'{value:.3g}' for value in of)}" for one, of in group.values.items()]
        return gr.Image(str(group.picture), visible=True), "  \n".join(lines)

    outputs = [known, drawn, number, strip, about]
    for event in (tab.select, name.change, clock.tick):
        event(look, [name, known, number], outputs, show_progress="hidden")
    number.release(show, [name, number], [strip, about], show_progress="hidden")
    tab.select(lambda: gr.Timer(active=True), None, clock, show_progress="hidden")
    return clock
