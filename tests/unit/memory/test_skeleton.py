"""The shapes that need no diffusers are those that diffusers gives."""

import json

import pytest

import skeletons
from customized_grpo.memory.known_models import MODELS
from customized_grpo.memory.skeleton import known_skeleton, of_config, of_module


def test_the_file_is_what_diffusers_makes() -> None:
    made = skeletons.text()
    assert skeletons.FILE.read_text(encoding="utf-8") == made, "run `make skeletons` and look at what has changed"


@pytest.mark.parametrize("name", ["black-forest-labs/FLUX.1-dev", "Qwen/Qwen-Image-Edit-2511"])
def test_a_known_model_is_the_one_that_diffusers_builds(name: str) -> None:
    known = MODELS[name]
    found = known_skeleton(known.transformer, known.config)
    expected = of_module(skeletons.built(known.transformer, known.config))
    assert found is not None
    assert list(found.whole.parameters.items()) == list(expected.whole.parameters.items())
    assert (found.whole, found.blocks) == (expected.whole, expected.blocks)
    assert found.config.num_layers == expected.config.num_layers


def test_every_known_model_is_in_the_file_whatever_its_configuration_leaves_out() -> None:
    for known in MODELS.values():
        whole = skeletons.configuration(skeletons.built(known.transformer, known.config))
        for config in (
            known.config,
            whole,
            json.loads(json.dumps(whole)),
            whole | {"_diffusers_version": "1"},
        ):
            assert known_skeleton(known.transformer, config) is not None


def test_another_class_or_configuration_is_left_to_diffusers() -> None:
    qwen = "QwenImageTransformer2DModel"
    assert known_skeleton(qwen, {}) is not None
    assert known_skeleton(qwen, {"num_layers": 1}) is None
    assert known_skeleton("SD3Transformer2DModel", {}) is None
    found = of_config(qwen, {"num_layers": 1, "use_additional_t_cond": True})
    assert "time_text_embed.addition_t_embedding.weight" in found.whole.parameters
