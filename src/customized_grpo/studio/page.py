"""The studio's page in Gradio: its tabs and its looks. It loads nothing from elsewhere."""

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from customized_grpo.recipe.config import Recipe
from customized_grpo.studio import blind, drawing, training
from customized_grpo.studio.artist import Artist
from customized_grpo.studio.parts import Studio
from customized_grpo.studio.server import MAX_UPLOAD_MB

_CSS, _JS = ((Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("studio.css", "studio.js"))
_SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")


def mount(app: FastAPI, studio: Studio) -> FastAPI:
    """Put the page at the root of an application."""
    app.add_api_route("/alive", lambda: {})  # the page asks for it
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="stone", font=_SYSTEM, font_mono=("ui-monospace", "monospace")
    )
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        _blocks(studio),
        path="/",
        allowed_paths=[str(folder.resolve()) for folder in studio.shown_folders()],
        max_file_size=f"{MAX_UPLOAD_MB}mb",
        ssr_mode=False,
        footer_links=[],
        enable_monitoring=False,
        theme=theme,
        css=_CSS,
        head=f"<script>{_JS}</script>",
    )
    return mounted


def _blocks(studio: Studio) -> Any:
    artist = studio.artist
    with gr.Blocks(title="Customized-GRPO studio", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(_headline(artist), elem_id="headline")
        with gr.Tab("Draw", id="draw") as draw:
            drawn = drawing.build(studio)
        if artist.runs:
            with gr.Tab("Training", id="training") as watch:
                clock = training.build(artist.runs, watch)
            with gr.Tab("Compare blind", id="blind") as compare:
                blind.build(studio, drawn)
            for tab in (draw, compare):
                tab.select(lambda: gr.Timer(active=False), None, clock, show_progress="hidden")
    page.queue(default_concurrency_limit=1)
    return page


def _headline(artist: Artist) -> str:
    recipe = artist.recipe
    about = [f"{recipe.policy.type} · {recipe.policy.model}", f"{recipe.policy.width} x {recipe.policy.height}"]
    if isinstance(recipe, Recipe):
        about += [f"rewards: {', '.join(recipe.rewards) or 'none'}"]
    about += [str(artist.device)]
    names = ", ".join(artist.runs) or "the base alone: no run was given"
    return f"# {names}\n{' · '.join(about)}"
