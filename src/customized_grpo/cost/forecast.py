"""Forecast of a run's time: forwards and backwards of its steps, times their measured or scaled seconds.

Dimensions: G group size, T sampler steps, K trained steps, P processes, n samples in a forward.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from customized_grpo.cost.arithmetic import arithmetic_of
from customized_grpo.cost.cards import Card, card_named
from customized_grpo.cost.measured import measured, miniature
from customized_grpo.evaluation.blocks import block_of
from customized_grpo.evaluation.costs import evaluations, fixed
from customized_grpo.memory.footprint import UnknownModelError
from customized_grpo.memory.geometry import step_geometry
from customized_grpo.memory.scorers import is_elsewhere, scorers_of
from customized_grpo.recipe.config import Evaluate, Recipe
from customized_grpo.recipe.loading import load_recipe
from customized_grpo.recipe.scorers import MetricSpec
from customized_grpo.recipe.sections import PolicySpec

_SMALLEST = 0.02
"""Share of the measured model's arithmetic below which a card waits for its host, so that seconds don't scale."""

_CHEAP = 0.37
"""Share of a forward's least time that is in its cheap operators (docs/roofline.csv, which a test holds it to)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Expected time of a training run."""

    where: str
    """Card or machine of the seconds."""
    group_s: float
    """Seconds of one group with its share of the update."""
    groups: int
    """Groups of a process in a step."""
    world: int
    """P."""
    steps: int
    """Steps that are left."""
    evaluation_s: float | None
    """Seconds of one evaluation without its metrics; None where there is none, or of unknown size."""
    evaluations: int
    fixed_s: float
    """Seconds of all pictures of fixed prompts."""
    source: str
    """Where the seconds were measured."""
    guesses: tuple[str, ...]
    """Reasons for which the seconds are no measurement of this recipe; empty: they are."""
    uncounted: tuple[str, ...]
    """What takes time and is not in the seconds."""

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.groups * self.group_s

    @property
    def run_s(self) -> float:
        """Seconds of the steps and evaluations that are left."""
        return self.steps * self.step_s + self.evaluations * (self.evaluation_s or 0.0) + self.fixed_s


class UnknownTimeError(ValueError):
    """Nothing that was measured says how long a recipe takes."""


def forecast(recipe: Recipe, card: Card, *, world: int = 1, done: int = 0, examples: int | None = None) -> Forecast:
    """The forecast of a recipe on a card.

    Args:
        recipe: a whole recipe.
        card: each process has one.
        world: P.
        done: steps of the run so far.
        examples: held-out examples of an evaluation; None: unknown.

    Raises:
        UnknownTimeError: the model's shapes or the card's peak are unknown, or the model is too small to scale to.
    """
    table = measured()
    reference, speed = scaled_from(card)
    sized = partial(Sized, load_recipe(table.recipe, []).policy, speed=speed)
    held = recipe.evaluate if recipe.train.evaluate_every else None
    try:
        training, shown = sized(recipe.policy), sized(recipe.evaluated)
        evaluated = training if held is None else shown
    except UnknownModelError as error:
        raise UnknownTimeError(str(error)) from error
    group = _group_s(recipe, training, speed)
    per_evaluation = None
    if held is not None and examples is not None:
        steps = held.steps or recipe.sampling.steps
        per_evaluation = examples * held.images_per_prompt / world * drawn_s(held, steps, evaluated, speed)
    a_picture = recipe.picture_steps
    pictures = fixed(recipe, done)  # all processes draw the same ones
    fixed_s = pictures * (a_picture * shown.forward(1) + speed * table.beside(1, a_picture)) if pictures else 0.0
    guesses = [*other_card(card, reference), *training.guesses, *shown.guesses, *_unmeasured(recipe, world)]
    return Forecast(
        where=f"{world} x {card.name}" if world > 1 else f"one {card.name}",
        group_s=group,
        groups=-(-recipe.train.groups_per_step // world),
        world=world,
        steps=max(0, recipe.train.steps - done),
        evaluation_s=per_evaluation,
        evaluations=evaluations(recipe, done) if per_evaluation is not None else 0,
        fixed_s=fixed_s,
        source=f"{table.model} at 512 x 512 on one {table.card}, torch {table.torch}: {table.source}",
        guesses=tuple(dict.fromkeys(guesses)),
        uncounted=tuple(_uncounted(recipe, table.scored, examples)),
    )


def scaled_from(card: Card) -> tuple[Card, float]:
    """The card that was measured, and how many times its seconds another one takes.

    Raises:
        UnknownTimeError: the other's peak is unknown.
    """
    if card.tflops is None:
        raise UnknownTimeError(f"{card.name} is not in the table of cards, so nothing measured can be scaled to it")
    reference = card_named(measured().card)
    assert reference.tflops is not None, "the measured card is in the table"
    return reference, reference.tflops / card.tflops


def unmeasured_drawing(policy: PolicySpec, precision: str) -> dict[str, bool]:
    """Keys of drawing images whose effect on seconds is measured nowhere, and whether they are given."""
    return {
        "run.precision=no": precision == "no",
        f"policy.quantization={policy.quantization}": policy.quantization != "none",
        f"policy.attention={policy.attention}": bool(policy.attention),
        f"policy.norms={policy.norms}": policy.norms != "float32",
        f"policy.compile={str(policy.compile).lower()}": bool(policy.compile),
    }


def drawn_s(held: Evaluate, steps: int, sized: "Sized", speed: float) -> float:
    """Seconds of one held-out image in ``steps`` steps, in the batches of an evaluation."""
    n = min(held.batch, block_of(held) * held.images_per_prompt)
    return steps * sized.forward(n) / n + speed * measured().beside(1, steps)


class Sized:
    """Seconds of a policy's forwards and replays, scaled from those of the policy that was measured."""

    def __init__(self, reference: PolicySpec, policy: PolicySpec, *, speed: float) -> None:
        self._reference, self._policy, self._speed = reference, policy, speed
        self._share = float(policy.gradient_checkpointing) * (_CHEAP if policy.recompute == "cheap" else 1.0)
        self.guesses: list[str] = []
        together = measured().samples
        more = arithmetic_of(policy, together).forward / arithmetic_of(reference, together).forward
        if more < _SMALLEST:
            raise UnknownTimeError(
                f"the model has {more:.1g} times the arithmetic of {measured().model}, too little to scale"
            )
        if abs(more - 1) > 1e-9:
            self.guesses.append(f"a forward has {more:.3g} times the arithmetic of what was measured")

    def forward(self, n: int) -> float:
        """Seconds of a velocity of n samples, without gradient."""
        found = measured().forward(n)
        if not found.known:
            self.guesses.append(f"a forward of {n} samples was not measured, others were")
        work, of_measured = (arithmetic_of(one, n).forward for one in (self._policy, self._reference))
        return self._speed * self._policy.num_forwards() * work / of_measured * found.value

    def replay(self, n: int) -> float:
        """Seconds of n samples, forward and backward."""
        found = measured().replay(n, self._share)
        if not found.known:
            again = {0.0: "no blocks", 1.0: "all blocks"}.get(self._share, f"{self._share:.0%} of the blocks")
            self.guesses.append(f"a replay of {n} samples with {again} computed again was not measured, others were")
        work, of_measured = (arithmetic_of(one, n).replay for one in (self._policy, self._reference))
        return self._speed * self._policy.num_forwards() * work / of_measured * found.value


def _group_s(recipe: Recipe, sized: Sized, speed: float) -> float:
    """Seconds of one group: its rollout, replays, forwards to compare with, and all beside them."""
    train, g = recipe.train, step_geometry(recipe, world=1, latent_shape=recipe.policy.latent_shape())
    size = recipe.objective.targets or train.group_size
    asked = recipe.sampling.batch
    batch = min(asked, size) if isinstance(asked, int) else size
    shared = g.shared_forwards // g.groups
    each = (g.rollout_forwards // g.groups - shared) // size
    pairs, most = recipe.samples_per_update * len(g.trained), recipe.pairs_per_backward
    compared = (g.reference_forwards + g.compared_forwards) // g.groups
    return (
        shared * _in_parts(sized.forward, 1, 1)
        + each * _computed_share(recipe) * _in_parts(sized.forward, size if each else 0, batch)
        + train.updates_per_rollout * _in_parts(sized.replay, pairs, most)
        + _in_parts(sized.forward, compared, min(most, pairs))
        + speed * measured().beside(size, shared + each + len(g.trained))
    )


def _in_parts(seconds: Callable[[int], float], total: int, most: int) -> float:
    """Seconds of ``total`` samples in batches of at most ``most``."""
    whole, rest = divmod(total, most)
    return (whole * seconds(most) if whole else 0.0) + (seconds(rest) if rest else 0.0)


def _computed_share(recipe: Recipe) -> float:
    """Share of the sampler's steps that a cache leaves to the transformer; of ``first_block`` all, at most."""
    steps = recipe.sampling.steps
    computed = None if recipe.sampling.cache is None else recipe.sampling.cache.computed_steps(steps)
    return 1.0 if computed is None else len(computed) / steps


def other_card(card: Card, reference: Card) -> Iterator[str]:
    """A guess, where the card is not the measured one."""
    if card.model != reference.model:
        yield (
            f"scaled from {reference.name} by the published peaks in bfloat16, {card.tflops:g} and "
            f"{reference.tflops:g} TFLOP/s"
        )


def _unmeasured(recipe: Recipe, world: int) -> Iterator[str]:
    """Keys whose effect on seconds is measured nowhere, and what more there is to guess."""
    policy, mode = recipe.policy, recipe.policy.model_dump().get("base_lora") or {}
    keys: dict[str, object] = {
        **unmeasured_drawing(policy, recipe.run.precision),
        f"policy.recompute={policy.recompute}": policy.recompute != "all",
        "policy.full": policy.full,
        "policy.base_lora.mode=adapter": mode.get("mode") == "adapter",
        "sampling.cache": recipe.sampling.cache,
        "sampling.float8": recipe.sampling.float8,
        "train.staleness=1": recipe.train.staleness,
        "sampling.batch=auto": recipe.sampling.batch == "auto",
        "train.buckets": recipe.train.buckets,
    }
    if unknown := [key for key, given in keys.items() if given]:
        yield f"what {', '.join(unknown)} does to the time was not measured"
    if world > 1:
        yield f"one process was measured, and {world} also wait for each other's gradients"


def _uncounted(recipe: Recipe, scored: tuple[str, ...], examples: int | None) -> Iterator[str]:
    """Rewards and metrics of models that were not measured, and further parts of a run."""
    for name, spec in scorers_of(recipe).items():
        held = spec.held_models() if isinstance(spec, MetricSpec) else None
        if is_elsewhere(spec) or held is None or any(one.model not in scored for one in held):
            yield name
    if recipe.train.evaluate_every and examples is None:
        yield "evaluations, whose examples are not on this machine"
    if recipe.advantage.rules.resample:
        yield "groups that are sampled anew (advantage.rules.resample)"


def forecast_on_cpu(recipe: Recipe, *, world: int = 1, done: int = 0) -> Forecast:
    """The forecast of the embedded recipe, whose group was measured on another machine's CPU.

    Raises:
        UnknownTimeError: it is another recipe, or several processes share the cores.
    """
    record = miniature()
    shipped, threads = load_recipe(record.recipe, []), recipe.run.threads or (os.cpu_count() or 1)
    same = all(_of_a_group(recipe)[key] == value for key, value in _of_a_group(shipped).items())
    if world > 1 or not same:
        raise UnknownTimeError("nothing like it was measured on a CPU; its own first steps will say")
    most = max(record.threads)
    return Forecast(
        where=f"{record.machine}, {min(threads, most)} of them used",
        group_s=record.threads[min(threads, most)],
        groups=recipe.train.groups_per_step,
        world=1,
        steps=max(0, recipe.train.steps - done),
        evaluation_s=None,
        evaluations=0,
        fixed_s=0.0,
        source=f"{record.recipe} on {record.machine}: {record.source}",
        guesses=("this CPU is another one; its own first steps will say",),
        uncounted=("evaluations",) if recipe.train.evaluate_every else (),
    )


def _of_a_group(recipe: Recipe) -> dict[str, object]:
    """All that the seconds of a group depend on."""
    train = recipe.train.model_dump(include={"group_size", "microbatch", "updates_per_rollout", "optimizer", "buckets"})
    parts = {name: dict(recipe)[name] for name in ("policy", "sampling", "rewards", "objective")}
    return {**parts, **train, "precision": recipe.run.precision}
