"""``customized-grpo export``: the command around ``policies.export``. Heavy imports are inside."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from customized_grpo.commands.arguments import Balance
from customized_grpo.console import hush_libraries, say
from customized_grpo.registry import did_you_mean


def export(
    adapter: Annotated[str, typer.Argument(metavar="RUN", help="a run, a checkpoint, or an adapter's folder or file")],
    folder: Annotated[Path, typer.Option("--out", help="a new folder")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="diffusers or uno: a LoRA file; model: a pipeline with all LoRAs fused in; original: its "
            "transformer in Black Forest Labs' format",
        ),
    ] = "diffusers",
    with_base: Annotated[
        bool,
        typer.Option("--with-base", help="one LoRA of policy.base_lora and the adapter, for the stock base"),
    ] = False,
    balance: Balance = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="recipe that says the policy, for LoRAs of other tools too; by default the run's own config.yaml"
        ),
    ] = None,
) -> None:
    """Write a trained adapter as a LoRA file of diffusers or of UNO, or fused into its model."""
    from customized_grpo.policies.export import Format
    from customized_grpo.policies.export import export as run
    from customized_grpo.recipe.loading import load_any, run_config

    forms: tuple[Format, ...] = get_args(Format)
    chosen = next((one for one in forms if one == form), None)
    if chosen is None:
        hint = did_you_mean(form, list(forms))
        raise ValueError(f"--format: given {form!r};{hint} allowed: {', '.join(forms)}")
    whole = chosen in ("model", "original")
    if with_base and whole:
        raise ValueError(f"--with-base: --format {form} holds the base's LoRA anyway; leave it out")
    needed = with_base or whole
    named = config is not None or needed  # a LoRA of another tool's names is read by the model that --config says
    recipe = load_any(config if config is not None else run_config(adapter)) if named else None
    hush_libraries()
    written = run(adapter, folder, chosen, with_base=with_base, recipe=recipe, balance=balance)
    say(str(written))
