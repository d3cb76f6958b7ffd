"""Import paths that other people's scripts and plug-ins use (docs/reference.md), aliases included."""

import importlib

import customized_grpo.objectives.clipped_surrogate as home
from customized_grpo.policies.adapters import lora

SURFACE = {
    "sampling.dynamics": "Gaussian dance_sde flow_sde cps ode log_prob",
    "sampling.schedule": "shifted_sigmas",
    "advantages.normalize": "normalize",
    "advantages.aggregators": "sars weighted_sum minimum maximum harmonic product",
    "advantages.time_weights": "tdw",
    "objectives.nft": "nft_loss",
    "objectives.awm": "matching_log_prob",
    "training.objective": "clipped_surrogate",
    "policies.lora": "attach",
    "types": "Example Conditioning Trajectory",
    "policies.base": "Policy PolicyConfig",
    "rewards.base": "Reward AsyncReward AsyncGroupReward RewardConfig RewardFailure",
    "data.base": "Dataset DatasetConfig",
    "testing": "check_policy check_reward check_aggregator",
    "paths": "ASSETS",
}


def test_stable_paths_lead_to_their_names() -> None:
    modules = {path: importlib.import_module(f"customized_grpo.{path}") for path in SURFACE}
    lost = [
        f"{path}.{name}" for path, names in SURFACE.items() for name in names.split() if name not in dir(modules[path])
    ]
    assert not lost
    assert vars(modules["training.objective"])["clipped_surrogate"] is home.clipped_surrogate
    assert vars(modules["policies.lora"])["attach"] is lora.attach
