"""The training loop: rollout, rewards, advantages, replay, update. ``Trainer.step`` is one GRPO step.

Dimensions: G group size, K trained steps, R rewards, Q axes, P ranks.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from customized_grpo.advantages.rules import best_and_worst
from customized_grpo.advantages.shaping import Advantages, advantages_of
from customized_grpo.advantages.time_weights import leaning
from customized_grpo.data import order
from customized_grpo.objectives.base import Draw, rows_at
from customized_grpo.policies import balance
from customized_grpo.recipe.config import Recipe
from customized_grpo.scoring.scorer import Pending
from customized_grpo.training import autotune, engine, pictures, validation
from customized_grpo.training import metrics as explain
from customized_grpo.training.distributed import any_rank, check_ranks, largest, mean_metrics
from customized_grpo.training.engine import clip_and_step, micro_batch
from customized_grpo.training.faults import DivergedError as DivergedError
from customized_grpo.training.faults import SignalWarnings, check_replay, explained
from customized_grpo.training.interrupt import StopRequest
from customized_grpo.training.parts import Parts
from customized_grpo.training.progress import Kind
from customized_grpo.training.replay import micro_batches, num_micro_batches
from customized_grpo.training.resample import resample
from customized_grpo.training.rollouts import Rollouts
from customized_grpo.training.setup import build
from customized_grpo.training.state import restore, save
from customized_grpo.training.tracking import RunLog, is_every
from customized_grpo.types import Rollout


def train(recipe: Recipe) -> Path:
    """Train a recipe, or resume its run.

    Returns:
        The run's folder.

    Raises:
        ValueError: the run's folder, the data or the checkpoint don't fit the recipe; the message says what to do.
        DivergedError, MemoryFullError, DiskError, SaveError: see there; the last checkpoint stays.
    """
    with explained(recipe, Path(recipe.run.dir)), ExitStack() as until_end:
        return Trainer(build(recipe, until_end)).run()


@final
class Trainer:
    """One training run on one rank."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.stop = StopRequest()
        self.signal_warnings = SignalWarnings(list(parts.recipe.rewards), parts.objective.ratio_clip)
        self.each: Callable[[str, Sequence[Any]], Iterable[Any]] = lambda _, groups: groups
        self.rollouts = Rollouts(parts, self.begun, self.shares())

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.parts.recipe

    def run(self) -> Path:
        """Train to the last step, or to the end of the step in which a signal came."""
        parts = self.parts
        with engine.finishing(parts.accelerator, parts.policies()), parts.scorer:
            start = restore(parts, untrained=partial(validation.renew_base, parts))
            check_ranks(parts.accelerator, parts.parameters, start)
            log = RunLog(parts.accelerator, parts.folder, self.recipe, start)
            self.each = log.shown.each
            with log, self.stop.listening():
                self.loop(start, log)
        return parts.folder

    def loop(self, start: int, log: RunLog) -> None:
        """Step, check, evaluate, log and save, until the last step or a signal."""
        parts, settings, timed, tell = self.parts, self.recipe.train, log.shown.timed, log.shown.tell
        for notice in validation.notices(parts, start):
            log.say(notice)
        if validation.is_due(parts, start):
            owed = validation.is_owed(parts, start)
            kind: Kind = "evaluation" if owed else "kept evaluation"  # one that was finished keeps its rows
            evaluated = timed(kind, validation.evaluate, parts, start, tell)
            if owed:
                log.write(start, evaluated, f"evaluated after step {start}")
                validation.warn(parts, start, log.say)
        if pictures.is_owed(parts, start):
            timed("samples", pictures.draw_fixed, parts, start)
            log.show(start, pictures.captioned(parts, start))
        for step in range(start, settings.steps):
            metrics = timed("step", self.step, step)
            done, last = step + 1, step + 1 == settings.steps
            stopping = any_rank(parts.accelerator, self.stop.signal is not None) and not last
            saving = last or stopping or is_every(settings.checkpoint_every, done)
            if settings.check_ranks_every and (saving or is_every(settings.check_ranks_every, done)):
                check_ranks(parts.accelerator, parts.parameters, done)
            evaluating = validation.is_due(parts, done) and not stopping
            if evaluating:
                metrics |= timed("evaluation", validation.evaluate, parts, done, tell)
            if pictures.is_due(parts, done) and not stopping:
                metrics |= timed("samples", pictures.draw_fixed, parts, done)
            if done == 1 and self.recipe.rewards:  # constants, so they are logged once
                metrics |= explain.weights(parts.time_weights, parts.objective.sensitivity, self.recipe.axes)
            log.write(done, metrics, explain.headline(metrics, self.recipe.axes))
            log.show(done, pictures.captioned(parts, done))
            news = parts.state.drain_news() + parts.scorer.tally.drain_news()
            for text in news + self.signal_warnings.of_step(metrics):
                log.say(f"step {done}: {text}")
            if evaluating:
                validation.warn(parts, done, log.say)
            if saving:
                timed("checkpoint", save, parts, done)
            if stopping:
                log.say(self.stop.obeyed(done, parts.folder))
                return
        validation.write_summary(parts)

    def step(self, step: int) -> dict[str, float]:
        """One GRPO step: sample this rank's groups, score them, take their advantages, and update the adapter."""
        if self.recipe.objective.targets:
            return self.supervised(step)
        parts, clock, shares = self.parts, self.parts.clock, self.shares()
        rules = self.recipe.advantage.rules
        groups, pending = self.rollouts.of(step)
        if not rules.choose:  # while remote rewards are under way
            groups = autotune.with_average(parts, groups, shares)
        with clock.phase("score"):
            rewards = [scores.result() for scores in pending]
        begin, sample = partial(self.begin, step), partial(self.sample, step)
        replaced = resample(parts, step, self.assignments(step), groups, rewards, begin, sample)
        sampled = groups[0]
        scaled = [parts.rules.scaled(one, len(g.example.references)) for one, g in zip(rewards, groups, strict=True)]
        advantages = [self.advantages_of(*pair) for pair in zip(scaled, groups, strict=True)]
        advantages = parts.rules.over_groups(parts.accelerator, scaled, advantages)
        metrics = explain.groups(list(self.recipe.rewards), parts.reward_axes, rewards, advantages, self.recipe.axes)
        metrics |= parts.rules.metrics(scaled, advantages) | replaced
        trained, groups = self.kept(advantages, groups)
        if rules.choose:
            groups = autotune.with_compared(parts, groups, shares)
        for update, samples in enumerate(shares):
            metrics |= self.update(groups, trained, samples, first=update == 0)
        if parts.old is not None:
            parts.old.follow(parts.parameters, parts.schedule.last_epoch)
        metrics |= parts.rollout_metrics() | parts.scorer.drain() | clock.drain()
        names, axes = list(self.recipe.rewards), self.recipe.axes
        pictures.save_sampled(
            parts, step + 1, sampled, partial(explain.of_samples, names, rewards[0], advantages[0], axes)
        )
        return mean_metrics(parts.accelerator, metrics)

    def supervised(self, step: int) -> dict[str, float]:
        """One supervised step: pictures of the data in place of samples, and an update that no reward weighs."""
        parts, (samples,) = self.parts, self.shares()
        groups = [self.sample(step, *one) for one in self.each("read", self.assignments(step))]
        alike = [Advantages.alike(len(group.images), len(group.progress)) for group in groups]
        pictures.save_sampled(parts, step + 1, groups[0], dict)
        return mean_metrics(parts.accelerator, self.update(groups, alike, samples, first=True) | parts.clock.drain())

    def assignments(self, step: int) -> list[tuple[int, int]]:
        """(global index of the group in this step, index of its example) of this rank's groups."""
        accelerator, per_step = self.parts.accelerator, self.recipe.train.groups_per_step
        mine = order.indices(
            step,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            groups_per_step=per_step,
            size=len(self.parts.dataset),
            seed=self.recipe.run.seed,
        )
        first = accelerator.process_index * len(mine)
        return [(first + offset, index) for offset, index in enumerate(mine)]

    def begun(self, step: int) -> list[tuple[Rollout, Pending]]:
        """This rank's groups of a step, and their scores."""
        return [self.begin(step, *one) for one in self.each("sampled", self.assignments(step))]

    def begin(self, step: int, group: int, index: int) -> tuple[Rollout, Pending]:
        """One group and its scores; those over the network are under way while the next group is sampled."""
        rollout = self.sample(step, group, index)
        with self.parts.clock.phase("score"):
            return rollout, self.parts.scorer.submit(rollout.example, rollout.images)

    def sample(self, step: int, group: int, index: int) -> Rollout:
        """One group, with what the objective has to record."""
        parts = self.parts
        with parts.clock.phase("encode"):
            example = parts.dataset[index]
            cond = parts.encode(example)
            if parts.policy.gate is not None:
                cond = balance.at(cond, balance.drawn(self.recipe.run.seed, step, group), parts.policy.device)
        with parts.clock.phase("rollout"):
            batch = autotune.rollout_batch(parts, cond)
        draw = Draw(self.recipe.run.seed, step, group)
        return parts.objective_of(example).sample(example, cond, draw, clock=parts.clock, batch=batch)

    def advantages_of(self, scaled: Tensor, group: Rollout) -> Advantages:
        """A[g, k] of a group from its rewards after ``scale``, with the time weights of its own levels."""
        specs = self.recipe.rewards.values()
        return advantages_of(
            self.parts.rules.gated(scaled),
            self.weights_of(group),
            axis_of=self.parts.reward_axes,
            weight_of=[float(spec.weight) for spec in specs],
            aggregator=self.parts.aggregator,
            clip=self.recipe.advantage.clip,
            min_valid=self.recipe.advantage.min_valid,
            left_out=self.parts.rules.leaves_out(scaled),
        )

    def weights_of(self, group: Rollout) -> Tensor:
        """w[k, q]: the time weights at a group's own levels; with a balanced adapter they lean to one axis by its b."""
        rows = rows_at(self.parts.time_weights, group.progress.cpu())
        b = group.cond.tensors.get(balance.BALANCE)
        return rows if b is None else leaning(rows, float(b), reach=self.recipe.advantage.reach)

    def kept(self, advantages: list[Advantages], groups: list[Rollout]) -> tuple[list[Advantages], list[Rollout]]:
        """The samples of each group that are trained on: all, or by ``advantage.rules.keep`` its best and worst."""
        keep = self.recipe.advantage.rules.keep
        if keep is None:
            return advantages, groups
        chosen = [best_and_worst(one.joined, best=keep.best, worst=keep.worst) for one in advantages]
        return (
            [one.select(samples) for one, samples in zip(advantages, chosen, strict=True)],
            [group.select(samples) for group, samples in zip(groups, chosen, strict=True)],
        )

    def shares(self) -> list[range]:
        """Samples of each group per update of a rollout: equal, contiguous shares."""
        size = self.recipe.samples_per_update
        return [range(first, first + size) for first in range(0, size * self.recipe.train.updates_per_rollout, size)]

    def update(
        self, groups: Sequence[Rollout], advantages: Sequence[Advantages], samples: range, *, first: bool
    ) -> dict[str, float]:
        """One optimizer update over the given samples of every group; the loss is a mean over all ranks' pairs."""
        parts, settings, accelerator = self.parts, self.recipe.train, self.parts.accelerator
        device, size = accelerator.device, self.recipe.pairs_per_backward
        count = settings.groups_per_step * len(samples) * len(groups[0].progress)
        remaining = num_micro_batches(groups, len(samples), size)
        on_policy = autotune.is_on_policy(parts, first=first)
        details: list[Mapping[str, Tensor]] = []
        signs: list[Tensor] = []
        losses: list[Tensor] = []
        with parts.clock.phase("replay"):
            for group, one in self.each("replayed", list(zip(groups, advantages, strict=True))):
                objective = parts.objective_of(group.example)
                # weight 0 leaves a pair out; an advantage of 0 is a judgement, which off policy may have a gradient
                weight = objective.level_weights(group) * one.compared[:, None].to(device) * one.weight
                for pairs in micro_batches([group], [one.advantage.to(device)], samples, size, [weight]):
                    remaining -= 1
                    share = len(pairs.advantage) / count
                    with micro_batch(accelerator, parts.policy.transformer, last=not remaining) as backward:
                        found = objective.loss(pairs, on_policy=on_policy)
                        # gradients are averaged over the ranks, and ``count`` is already over all of them
                        total = found.loss + objective.kl * found.penalty
                        backward(total * share * accelerator.num_processes)
                    details.append(found.details)
                    signs.append(pairs.advantage)
                    losses.append(torch.stack([found.loss.detach(), found.penalty.detach()]) * share)
        with parts.clock.phase("optimizer"):
            loss_sum, kl_sum = torch.stack(losses).sum(0).tolist()  # read once: each read waits for the GPU
            of_pairs = {name: torch.cat([one[name] for one in details]) for name in details[0]}
            metrics = parts.objective.metrics(of_pairs, torch.cat(signs), first=first)
            if first and self.recipe.objective.compares:
                metrics["ratio/max_abs_log_first"] = largest(accelerator, metrics["ratio/max_abs_log"])
                if parts.behind is None or not parts.schedule.last_epoch:  # else an update lies between the two
                    check_replay(metrics["ratio/max_abs_log_first"], settings.ratio_guard)
            metrics |= {
                "loss/surrogate": loss_sum * accelerator.num_processes,
                "loss/kl": kl_sum * accelerator.num_processes,
            }
            return metrics | self.optimize()

    def optimize(self) -> dict[str, float]:
        """Clip and step, unless the gradient is not finite on some rank."""
        parts, settings = self.parts, self.recipe.train
        norm = clip_and_step(parts.accelerator, parts.optimizer, parts.parameters, settings.max_grad_norm)
        if not math.isfinite(norm):
            parts.state.skipped += 1
            if parts.state.skipped > settings.max_skipped:
                raise DivergedError(
                    f"the gradient's norm is {norm}, {parts.state.skipped} time(s) so far (train.max_skipped="
                    f"{settings.max_skipped}); nothing was updated. Resume with a higher train.max_skipped to go "
                    "on past it, or look at the last step's rewards and start a new run with a lower train.lr"
                )
            return {"grad/norm": norm, "grad/max_skipped": float(parts.state.skipped)}
        parts.schedule.step()
        if parts.ema is not None:
            parts.ema.step(parts.parameters.values())
        lr = parts.schedule.get_last_lr()[0]
        return {"grad/norm": norm, "grad/max_skipped": float(parts.state.skipped), "lr": lr}
