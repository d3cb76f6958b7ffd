"""Alias of ``policies.adapters.lora``, kept for tests of third-party policies that attach an adapter by it."""

from customized_grpo.policies.adapters.lora import attach as attach
