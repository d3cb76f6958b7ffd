"""The one resolver: built-in names, entry points, ``module:attr``, and what an unknown name is told."""

import math
import sys
from importlib.metadata import EntryPoint, EntryPoints
from multiprocessing.reduction import ForkingPickler  # what a spawned worker gets its arguments by
from pathlib import Path
from typing import Annotated, get_args

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from customized_grpo import registry
from customized_grpo.registry import BUILTIN, UnknownPluginError

ALL = [(kind, name) for kind, table in BUILTIN.items() for name in table]


class Doubled(BaseModel):
    """A callable section."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: str = "doubled"
    factor: float = 2.0

    def __call__(self, x: float) -> float:
        return x * self.factor


def softmin(a: float, w: float, *, sharpness: Annotated[float, Field(gt=0.0, description="of it")] = 4.0) -> float:
    """The smaller one, softly."""
    return -(a * w) * sharpness


def no_default(a: float, w: float, *, k: float = "abc") -> float:  # type: ignore[assignment]
    return a


def not_finite(a: float, w: float, *, k: float = math.nan) -> float:
    return a


def hidden(a: float, w: float, *, _k: float = 1.0) -> float:
    return a


def shadowing(a: float, w: float, *, model_copy: float = 1.0) -> float:
    return a


def aliased(a: float, w: float, *, k: Annotated[float, Field(alias="kay")] = 1.0) -> float:
    return a


def unreadable(a: "Tensor", w: "Tensor", *, k: "Nothing" = 1) -> float:  # type: ignore[name-defined]
    return k


def as_strings(a: "Tensor", w: "Tensor", *, k: "float" = 1) -> float:  # type: ignore[name-defined]
    return k


def positional(a: float, w: float, sharpness: float = 4.0) -> float:
    return a


def untyped(a: float, w: float, *, sharpness=4.0) -> float:  # type: ignore[no-untyped-def]
    return a


def narrow(a: float) -> float:
    return a


class Optionless:
    """A class without Config."""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """This file under a name that can be imported."""
    name = "registry_plugins_under_test"
    (tmp_path / f"{name}.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_every_builtin_resolves_and_has_options() -> None:
    for kind, name in ALL:
        model = registry.config_model(kind, registry.resolve(kind, name))
        assert "type" in model.model_fields, (kind, name)
        assert model.model_config.get("extra") == "forbid", f"a mistyped option of {name} would be ignored"
        assert model.model_config.get("frozen"), (kind, name)


def test_every_kind_has_builtins() -> None:
    assert set(BUILTIN) == set(get_args(registry.Kind))


@pytest.mark.parametrize(("given", "near"), [("dinno", "'dino'"), ("clipt", "'clip_t'")])
def test_an_unknown_name_lists_what_there_is(given: str, near: str) -> None:
    with pytest.raises(UnknownPluginError, match=f"did you mean {near}") as caught:
        registry.resolve("rewards", given)
    assert "clip_i, clip_t, dino, face, hpsv3" in str(caught.value)
    assert "package.module:Name" in str(caught.value)


def test_no_hint_where_nothing_is_near() -> None:
    with pytest.raises(UnknownPluginError) as caught:
        registry.resolve("rewards", "zzzzzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("target", ["no_such_module_at_all:X", "customized_grpo.registry:Nothing"])
def test_a_target_that_is_not_there(target: str) -> None:
    with pytest.raises(UnknownPluginError, match="can't be loaded") as caught:
        registry.resolve("rewards", target)
    assert isinstance(caught.value.__cause__, ImportError | AttributeError)


def test_a_callable_section_is_its_own_function(module: str) -> None:
    spec = registry.config_model("aggregators", registry.resolve("aggregators", f"{module}:Doubled"))(
        type=f"{module}:Doubled", factor=3
    )
    assert registry.build_function("aggregators", spec)(2.0) == 6.0


def test_a_functions_keyword_only_parameters_are_its_section(module: str) -> None:
    name = f"{module}:softmin"
    section = registry.config_model("aggregators", registry.resolve("aggregators", name))
    assert section.model_json_schema()["properties"]["sharpness"] == {
        "default": 4.0,
        "description": "of it",
        "exclusiveMinimum": 0.0,
        "title": "Sharpness",
        "type": "number",
    }
    spec = section.model_validate({"type": name, "sharpness": 2})
    assert registry.build_function("aggregators", spec)(3.0, 1.0) == -6.0
    for wrong in ({"sharpness": 0.0}, {"sharpnes": 1.0}):
        with pytest.raises(ValidationError):
            section.model_validate({"type": name, **wrong})


def test_only_the_options_annotations_are_read_and_defaults_are_of_their_type(module: str) -> None:
    name = f"{module}:as_strings"
    section = registry.config_model("aggregators", registry.resolve("aggregators", name))(type=name)
    given = registry.build_function("aggregators", section)(None, None)
    assert given == 1.0
    assert isinstance(given, float)


def test_a_functions_section_is_one_class_and_can_be_pickled(module: str) -> None:
    name = f"{module}:softmin"
    model = registry.config_model("aggregators", registry.resolve("aggregators", name))
    assert model is registry.config_model("aggregators", registry.resolve("aggregators", name))
    section = model.model_validate({"type": name, "sharpness": 2})
    assert ForkingPickler.loads(ForkingPickler.dumps(section)) == section


@pytest.mark.parametrize("body", ["1 +", "raise RuntimeError('no licence')", "import nothing_of_that_name"])
def test_a_module_that_breaks_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    (tmp_path / "broken_plugin.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownPluginError, match=r"can't be loaded from 'broken_plugin:f': (SyntaxE|RuntimeE|Module)"):
        registry.resolve("aggregators", "broken_plugin:f")
    with pytest.raises(UnknownPluginError, match=r"in the current folder, or in one of PYTHONPATH"):
        registry.resolve("aggregators", "no_such_module_of_mine:f")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("positional", r"no recipe can set sharpness; make it keyword-only, as in f\(a, w, \*, sharpness"),
        ("untyped", "the option sharpness needs an annotation"),
        ("no_default", "the default of k, 'abc', is not what its annotation allows"),
        ("not_finite", "the default of k is nan, which is not finite"),
        ("hidden", "an option can't be called _k"),
        ("shadowing", "an option can't be called model_copy"),
        ("aliased", "alias"),
        ("unreadable", "the annotation of k can't be an option's: name 'Nothing' is not defined"),
        ("narrow", r"can't be called as f\(a, w\)"),
    ],
)
def test_a_function_that_no_section_can_fill_is_refused(module: str, name: str, said: str) -> None:
    with pytest.raises(UnknownPluginError, match=said):
        registry.config_model("aggregators", registry.resolve("aggregators", f"{module}:{name}"))


def test_a_class_without_config_is_refused(module: str) -> None:
    with pytest.raises(UnknownPluginError, match="no nested pydantic class 'Config'"):
        registry.config_model("rewards", registry.resolve("rewards", f"{module}:Optionless"))
    with pytest.raises(UnknownPluginError, match="a int can't be a plug-in of rewards; give a class"):
        registry.config_model("rewards", 3)


def test_entry_points_are_found_and_cannot_take_a_builtin_name(monkeypatch: pytest.MonkeyPatch) -> None:
    group = "customized_grpo.rewards"
    entries = EntryPoints([EntryPoint("mine", "elsewhere:Mine", group), EntryPoint("dino", "elsewhere:Fake", group)])
    monkeypatch.setattr(registry, "_entry_points", lambda path: {"rewards": entries})
    known = registry.available("rewards")
    assert known["mine"] == "elsewhere:Mine"
    assert known["dino"] == BUILTIN["rewards"]["dino"]
    with pytest.raises(UnknownPluginError, match=r"are called 'dino': .*:Dino, elsewhere:Fake; say which"):
        registry.resolve("rewards", "dino")  # else the one that was installed is ignored (nose-devs/nose#465)
    assert registry.resolve("rewards", BUILTIN["rewards"]["dino"]).__name__ == "Dino"


class Inner(BaseModel):
    depth: int = 1


class Loose(BaseModel):
    """Options of a plain pydantic model, which drops what it doesn't know."""

    type: str
    strength: float = 1.0
    inner: Inner = Inner()


class Open(Loose):
    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize("wrong", [{"strenght": 5}, {"inner": {"dept": 2}}])
def test_a_mistyped_option_of_a_plain_model_is_refused(wrong: dict[str, object]) -> None:
    """pydantic's default is to drop it (unslothai/unsloth#10452)."""
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        registry.read_section(Loose, {"type": "x", **wrong})
    assert registry.read_section(Open, {"type": "x", "strenght": 5}).model_extra == {"strenght": 5}
