"""Shift rules: the shift of the noise levels from an image's size, as each model was trained and is sampled.

A shift s bends a level t into s t / (1 + (s - 1) t); papers and diffusers give mu = ln s. tokens are those of the image
alone, of 16 x 16 pixels each.
"""

import math

from customized_grpo.recipe.sections import Shift

_TOKENS_PER_UNO_TOKEN = 64


def flux(tokens: int, steps: int) -> Shift:
    """FLUX.1: mu rises with the tokens, from 0.5 at 256 to 1.15 at 4096 (black-forest-labs/flux, ``get_schedule``)."""
    return Shift(math.exp(_line(tokens, (256, 0.5), (4096, 1.15))))


def uno(tokens: int, steps: int) -> Shift:
    """FLUX.1's rule as UNO's released code has it: it divides the latents' area by 16 x 16 instead of 2 x 2.

    So the shift is 1.583 at 512 x 512 instead of 1.878.
    """
    return flux(tokens // _TOKENS_PER_UNO_TOKEN, steps)


def flux2(tokens: int, steps: int) -> Shift:
    """FLUX.2: mu of 10 and of 200 steps are lines in the tokens, and others lie between; above 4300 tokens that of 200.

    (black-forest-labs/flux2, ``compute_empirical_mu``, fitted there.)
    """
    mu_10, mu_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    return Shift(math.exp(mu_200 if tokens > 4300 else _line(steps, (10, mu_10), (200, mu_200))))


def flux3(tokens: int, steps: int) -> Shift:
    """FLUX.3: 6.93 at every size and number of steps (diffusers' ``Flux3SetTimestepsStep``)."""
    return Shift(6.93)


def qwen_image_edit(tokens: int, steps: int) -> Shift:
    """Qwen-Image: mu from 0.5 at 256 tokens to 0.9 at 8192, and a last level of 0.02 (``scheduler_config.json``)."""
    return Shift(math.exp(_line(tokens, (256, 0.5), (8192, 0.9))), terminal=0.02)


def _line(x: int, first: tuple[int, float], second: tuple[int, float]) -> float:
    """The line through two points."""
    return first[1] + (second[1] - first[1]) * (x - first[0]) / (second[0] - first[0])
