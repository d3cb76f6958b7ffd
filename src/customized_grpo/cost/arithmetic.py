"""Arithmetic of a transformer's forward and backward, counted from shapes, to scale measured seconds by.

A linear layer of i inputs and o outputs takes 2 i o per token; attention of q queries over k keys of width D takes
4 q k D. Norms, activations and what is computed once per sample are left out: 0.2 % of FLUX.1-dev.
"""

from dataclasses import dataclass

from customized_grpo import registry
from customized_grpo.memory.estimate import Tokens, outside, passing, width_of
from customized_grpo.memory.footprint import shapes, tokens_of, trained_of
from customized_grpo.memory.parameters import Trained
from customized_grpo.memory.skeleton import Skeleton
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.sections import PolicySpec

_SDPA_BACKWARD = 2.5
"""Products of an attention's backward pass per product of its forward: four, and the scores once more, for two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Floating-point operations of one sample in one forward of the transformer."""

    linear: float
    attention: float
    adapter: float
    """By the trained LoRA."""
    own: float = 0.0
    """Those of ``linear`` whose weights are trained themselves."""

    @property
    def forward(self) -> float:
        """Without gradient."""
        return self.linear + self.attention + self.adapter

    @property
    def replay(self) -> float:
        """Forward and backward, with nothing computed again."""
        backward = self.linear + _SDPA_BACKWARD * self.attention + 2 * self.adapter + self.own
        return self.forward + backward


def arithmetic_of(policy: PolicySpec, n: int) -> Arithmetic:
    """The arithmetic of a policy's section, with one reference and the longest prompt.

    Args:
        policy: the section.
        n: samples of a forward, of which each takes its share of what passes once for all.

    Raises:
        UnknownModelError: its shapes are not known offline, or it doesn't say its latent shape.
    """
    kind: type[Policy] = registry.resolve("policies", policy.type)
    transformer, shape = shapes(policy.source(), kind.encoders).transformer, policy.latent_shape()
    assert shape is not None, "a model of known shapes has a policy that says its latent shape"
    return count(transformer, trained_of(policy, kind, transformer), tokens_of(policy, shape[0]), n)


def count(transformer: Skeleton, trained: Trained, tokens: Tokens, n: int) -> Arithmetic:
    """The arithmetic of one of n samples of a forward."""
    tuned = {one.name for one in trained.layers}
    linear = attention = adapter = own = 0.0
    every = [(layer.name, layer, here + tokens.once / n) for layer, here in outside(transformer, tokens)]
    for name, block in transformer.blocks:
        of = tokens.of_block(name)
        every += [(f"{name}.{layer.name}", layer, here + of.once / n) for layer, here in passing(block, of)]
        queries = of.image + of.text
        attention += 4 * (queries * (queries + of.once) + of.once**2 / n) * width_of(block)
    for name, layer, passed in every:
        products = 2 * passed * layer.inputs * layer.outputs
        linear += products
        if name in tuned:
            adapter += 2 * passed * trained.rank * (layer.inputs + layer.outputs)
            own += 0 if trained.rank else products
    return Arithmetic(linear=linear, attention=attention, adapter=adapter, own=own)
