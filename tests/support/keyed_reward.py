"""A reward that needs a secret and tells it to its log, as careless plug-ins do."""

import logging
from typing import final

import torch
from pydantic import SecretStr
from torch import Tensor

from customized_grpo.rewards.base import Reward, RewardConfig
from customized_grpo.types import Example

SECRET = "sk-do-not-write-this-down-0123456789"


class KeyedConfig(RewardConfig):
    """A reward that needs a key."""

    api_key: SecretStr


@final
class Keyed(Reward):
    """Fails in its second step, as a judge whose server is gone does."""

    Config = KeyedConfig

    def __init__(self, config: KeyedConfig, *, device: torch.device) -> None:
        assert config.api_key.get_secret_value() == SECRET
        self.config = config

    def __call__(self, example: Example, images: Tensor) -> Tensor:
        logging.getLogger("keyed").warning("asking with %s", self.config)
        return images.float().mean((1, 2, 3))
