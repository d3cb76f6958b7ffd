"""`python -m build_mini`: builds the miniature checkpoints, stage by stage, resumable."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from rich.logging import RichHandler

from build_mini.clip import train_clip_judge, train_clip_reward
from build_mini.common import LOG, Context
from build_mini.dino import train_dino_judge, train_dino_reward
from build_mini.export import export_flux
from build_mini.gallery import make_gallery
from build_mini.gate import gate
from build_mini.oracle import train_oracle
from build_mini.policy import train_policy
from build_mini.pool import draw_pictures, make_pool
from build_mini.text import train_text
from build_mini.vae import train_decoder, train_vae
from customized_grpo.paths import ASSETS

STAGES: Final[dict[str, Callable[[Context], None]]] = {
    "vae": train_vae,
    "text": train_text,
    "pictures": draw_pictures,
    "pool": make_pool,
    "policy": train_policy,
    "gallery": make_gallery,
    "dino": train_dino_reward,
    "clip": train_clip_reward,
    "oracle": train_oracle,
    "judge-dino": train_dino_judge,
    "judge-clip": train_clip_judge,
    "decoder": train_decoder,
    "gate": gate,
    "export": export_flux,
}


def main() -> None:
    """Parses the command line and runs the requested stages."""
    parser = argparse.ArgumentParser(prog="python -m build_mini", description=__doc__)
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--out", type=Path, default=ASSETS, help="output folder of the assets")
    parser.add_argument("--work", type=Path, default=Path("runs/mini-build"), help="state of an unfinished build")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all training steps, for a quick trial")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[RichHandler(show_path=False)])
    context = Context(out=arguments.out, work=arguments.work, seed=arguments.seed, scale=arguments.scale)
    for name, stage in STAGES.items():
        if arguments.stage in (name, "all"):
            LOG.info("stage %s", name)
            stage(context)


if __name__ == "__main__":
    main()
