"""Setup of a training run: builds all its parts from a recipe."""

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, tracking
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from customized_grpo import registry
from customized_grpo.advantages.shaping import try_aggregator
from customized_grpo.atomic import held
from customized_grpo.conditioning.opening import Encode, Process
from customized_grpo.console import alive, bars, err, say
from customized_grpo.data.base import Dataset, load_dataset, supervised
from customized_grpo.data.order import groups_a_rank
from customized_grpo.devices import leave_group_of_one, open_device
from customized_grpo.evaluation.costs import METRICS, REWARDS
from customized_grpo.evaluation.metrics import build_metrics
from customized_grpo.evaluation.precheck import look_over
from customized_grpo.identity.hashes import HASHES, FileHashes, meanwhile, short_hash
from customized_grpo.identity.runs import named
from customized_grpo.memory.needs import need_gpu
from customized_grpo.objectives.base import Objective, load_objective
from customized_grpo.policies.adapters import tuning
from customized_grpo.policies.base import Policy
from customized_grpo.policies.identity import base_identity
from customized_grpo.recipe.config import Recipe
from customized_grpo.recipe.drawn import size_of
from customized_grpo.recipe.sections import PolicySpec
from customized_grpo.rewards.base import begin, close
from customized_grpo.sampling.clock import Clock
from customized_grpo.sampling.schedule import sigma_grid
from customized_grpo.scoring.score import load_rewards
from customized_grpo.scoring.scorer import Scorer
from customized_grpo.scoring.trial import ask_first, call_first
from customized_grpo.training import averages, engine, engine_limits
from customized_grpo.training.distributed import gather_rows, together
from customized_grpo.training.encoded import Chosen, load_held_out, open_for_training
from customized_grpo.training.identity import RunIdentity
from customized_grpo.training.optimizers import build_optimizer
from customized_grpo.training.parts import Evaluation, Fixed, Parts
from customized_grpo.training.rules import RewardRules
from customized_grpo.training.tracking import prepare_folder
from customized_grpo.types import Conditioning, Example


def _trackers_are_there(names: Sequence[str]) -> None:
    """Raise for missing trackers, about which accelerate only warns."""
    there = [str(one) for one in tracking.get_available_trackers()]
    if missing := [name for name in names if name not in there]:
        raise ValueError(
            f"run.trackers: {', '.join(missing)} not installed; pip install 'customized-grpo[{','.join(missing)}]', "
            "or leave it out"
        )


@alive("loading data and models")
def build(recipe: Recipe, until_end: contextlib.ExitStack | None = None) -> Parts:
    """Check the run's folder, then load data and models of a recipe, the heaviest last.

    Args:
        recipe: of the run.
        until_end: closes what is opened here, also where a later part fails, and holds the run's folder against other
            processes; None: nothing is held, and what is open is left to the garbage collector.

    Raises:
        ValueError: the folder is taken, there is no such device, the data set is empty, or a model or file that the
            recipe names is not there.
    """
    run, train = recipe.run, recipe.train
    if run.threads:
        torch.set_num_threads(run.threads)
    folder = Path(run.dir)
    _trackers_are_there(run.trackers)
    accelerator = Accelerator(
        # said also where there is just a CPU: else several processes there are not joined, and each trains alone
        cpu=open_device(run.device).type == "cpu",
        log_with=list(run.trackers) or None,
        project_config=ProjectConfiguration(project_dir=run.dir),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=run.timeout_s))],
    )
    opened = contextlib.ExitStack() if until_end is None else until_end
    opened.callback(leave_group_of_one)
    engine.configure(accelerator, recipe)
    groups_a_rank(train.groups_per_step, accelerator.num_processes)
    device = accelerator.device
    aggregator = registry.build_function("aggregators", recipe.advantage.aggregator)
    try_aggregator(aggregator, len(recipe.axes))
    with together(accelerator, ValueError):
        if accelerator.is_main_process:
            prepare_folder(folder, resuming=run.resume is not None)
            if until_end is not None:
                until_end.enter_context(held(folder))
    with together(accelerator, ValueError):
        dataset, held_out = load_dataset(recipe.data, "data"), load_held_out(recipe)
        need_gpu(recipe)
        if accelerator.is_main_process:
            look_over(recipe, dataset, held_out, download=True)
            ask_judges(recipe, folder)
        rewards = load_rewards(recipe.rewards, device=device)
        opened.callback(close, rewards)
        hashes = FileHashes(folder / HASHES)
        opened.callback(hashes.stop)
        learnt = supervised(dataset, recipe.objective.targets)
        if recipe.rewards:
            call_first(rewards, learnt[0], size_of(recipe.policy))
        fixed = Chosen.of(recipe, learnt, held_out)
        identity = RunIdentity(recipe, learnt, rewards, hashes) if accelerator.is_main_process else None
    # Completing a cache waits for the others on its way, so a rank that fails in it can't tell them: it ends the job.
    agreed = together(accelerator, ValueError) if run.cache is None else contextlib.nullcontext()
    with agreed, bars("conditioning: ") as progress:
        process = Process.of(accelerator, run.precision, progress)
        look = [] if identity is None else [identity.look]
        with meanwhile(partial(base_identity, recipe.policy, hashes), *look):
            policy, encode, encode_held_out = open_for_training(recipe, learnt, held_out, fixed, process)
        if identity is not None:
            identity.look()
        engine_limits.check_weights(engine.engine_of(accelerator), policy.transformer)
        tuning.attach(policy, recipe.policy, run.seed, keep_base=recipe.objective.needs_base)
    parameters = tuning.trainable_parameters(policy)
    optimizer = build_optimizer(list(parameters.values()), train)
    updates = train.steps * train.updates_per_rollout
    schedule = get_scheduler(
        train.schedule.name,
        optimizer,
        num_warmup_steps=train.schedule.warmup_steps,
        num_training_steps=updates,
    )
    policy.transformer, prepared = accelerator.prepare(policy.transformer, optimizer)
    parameters = tuning.trainable_parameters(policy)  # FSDP2 has put shards in their place
    tuning.follow_shards(policy)
    ema = EMAModel(list(parameters.values()), decay=train.ema) if train.ema is not None else None

    evaluation = _evaluation(recipe, held_out, encode_held_out, device, hashes)
    metrics = {} if evaluation is None else evaluation.metrics
    opened.callback(close, metrics)
    with together(accelerator, ValueError):
        name = named(folder) if accelerator.is_main_process else ""
    (name, *_) = gather_rows([name])
    begin(rewards, name, REWARDS)
    begin(metrics, name, METRICS)

    buckets = recipe.buckets()
    objectives = {size_of(one): _objective(recipe, one, policy, device) for one in buckets.sections}
    objective = next(iter(objectives.values()))
    old = None if objective.old_decay is None else averages.OldPolicy(parameters, objective.old_decay)
    behind = averages.Copy(parameters) if train.staleness else None
    scorer = Scorer(
        rewards,
        max_failed_share=recipe.advantage.max_failed_share,
        # A CPU has no time to hide: sampling takes all of its threads.
        background=device if device.type == "cuda" else None,
    )
    opened.callback(scorer.close)
    return Parts(
        recipe=recipe,
        folder=folder,
        accelerator=accelerator,
        policy=policy,
        encode=encode,
        dataset=learnt,
        scorer=scorer,
        rules=RewardRules(recipe),
        reward_axes=[recipe.axes.index(spec.axis) for spec in recipe.rewards.values()],
        objectives=objectives,
        buckets=buckets,
        aggregator=aggregator,
        time_weights=recipe.time_weights(),
        parameters=parameters,
        optimizer=prepared,
        schedule=schedule,
        ema=ema,
        old=old,
        behind=behind,
        evaluation=evaluation,
        fixed=None if fixed is None else Fixed(examples=fixed, encode=encode_held_out, held_out=held_out is not None),
        clock=Clock(device),
        hashes=hashes,
        identity=identity,
        run=name,
    )


def ask_judges(recipe: Recipe, folder: Path) -> None:
    """One question to each judge and reward server, before anything is loaded."""
    if recipe.run.ask_first:
        said = ask_first(recipe.rewards, run=partial(named, folder), place=REWARDS)
        if recipe.evaluate is not None and recipe.train.evaluate_every:
            said += ask_first(recipe.evaluate.metrics, run=partial(named, folder), place=METRICS)
        for line in said:
            say(line, on=err)


def _objective(recipe: Recipe, section: PolicySpec, policy: Policy, device: torch.device) -> Objective:
    """The objective at the size of one bucket, on whose number of tokens the noise levels depend, too."""
    sampling, view = recipe.sampling, policy if section is recipe.policy else policy.resized(section)
    sigmas = sigma_grid(section, sampling.shift, sampling.steps, view.latent_shape[0])
    return load_objective(recipe.at(section), view, sigmas.to(device))


def _evaluation(
    recipe: Recipe, held_out: Dataset | None, encode: Encode, device: torch.device, hashes: FileHashes
) -> Evaluation | None:
    spec = recipe.evaluate
    if spec is None or held_out is None:
        return None
    kept: dict[str, Conditioning] = {}

    def encode_once(example: Example) -> Conditioning:
        """Conditioning of a held-out example, cached on the CPU since it is needed every N steps."""
        key = short_hash([example.prompt, *example.references])  # not the example's: its file may change during a run
        if key not in kept:
            kept[key] = encode(example).to(torch.device("cpu"))
        return kept[key].to(device)

    return Evaluation(
        dataset=held_out,
        metrics=build_metrics(spec.metrics, device),
        encode=encode_once,
        base=base_identity(recipe.evaluated, hashes),
    )
