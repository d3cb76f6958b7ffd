"""``customized-grpo sft`` and ``dpo``: supervised runs of a recipe's policy on its data. Heavy imports are inside."""

from customized_grpo.commands.arguments import Config, Overrides
from customized_grpo.commands.train import run_to_end
from customized_grpo.console import err, say


def sft(config: Config, overrides: Overrides = None) -> None:
    """Fine-tune a recipe's policy on the targets of its data: a warm start before RL (policy.base_lora.path=RUN)."""
    _train(config, overrides, "sft")


def dpo(config: Config, overrides: Overrides = None) -> None:
    """Train a recipe's policy on ranked pictures of its data (chosen, rejected), offline, by Diffusion-DPO."""
    _train(config, overrides, "dpo")


def _train(config: str, overrides: list[str] | None, kind: str) -> None:
    from customized_grpo.recipe.loading import load_supervised

    recipe, aside = load_supervised(config, overrides or [], kind)
    if aside:
        say(f"{kind}: of {config} without {', '.join(aside)}; into {recipe.run.dir}", on=err)
    folder = run_to_end(recipe)
    if recipe.policy.lora is not None:
        say(f"go on from it by RL: customized-grpo train RECIPE policy.base_lora.path={folder}")
