"""Recipes from YAML and overrides: what is read, and what each mistake is told."""

from pathlib import Path

import pytest
import yaml

from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.recipe.loading import (
    RecipeError,
    find_recipe,
    is_server,
    load_any,
    load_recipe,
    recipe_schema,
    run_config,
    save_recipe,
    shipped_recipes,
)
from customized_grpo.recipe.server import ServerConfig
from customized_grpo.recipe.yaml_source import construct, dump
from customized_grpo.registry import BUILTIN

MINIMAL = """\
run: {dir: runs/test}
policy: {type: uno, model: mini, height: 64, width: 64}
data: {type: mini}
rewards:
  clip: {type: clip_t, axis: prompt}
  dino:
    type: dino
    axis: identity
train:
  group_size: 4
  evaluate_every: 0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def refused(path: str | Path, *overrides: str, model: type = Recipe) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, model)
    return str(caught.value)


def test_defaults_and_overrides(file: Path) -> None:
    recipe = load_recipe(
        file, ["train.lr=1e-4", "run.resume=latest", "train.schedule.name=cosine", "train.betas=[0.8, 0.9]"]
    )
    assert recipe.train.group_size == 4
    assert recipe.train.lr == 1e-4
    assert recipe.train.betas == (0.8, 0.9)
    assert recipe.train.schedule.name == "cosine"
    assert recipe.run.resume == "latest"
    assert recipe.advantage.aggregator.model_dump() == {"type": "sars", "gamma": 0.4}


def test_later_overrides_win_and_null_is_null(file: Path) -> None:
    recipe = load_recipe(file, ["run.resume=latest", "run.seed=1", "run.seed=2", "run.resume=null"])
    assert (recipe.run.seed, recipe.run.resume) == (2, None)


def test_options_of_a_default_plugin(file: Path) -> None:
    """The recipe doesn't name an aggregator, so its option is that of the default one."""
    assert load_recipe(file, ["advantage.aggregator.gamma=0.7"]).advantage.aggregator.model_dump() == {
        "type": "sars",
        "gamma": 0.7,
    }
    other = load_recipe(file, ["advantage.aggregator.type=weighted_sum", "advantage.clip=2"])
    assert other.advantage.aggregator.model_dump() == {"type": "weighted_sum"}


def test_an_override_may_add_a_reward(file: Path) -> None:
    recipe = load_recipe(file, ["rewards.more.type=clip_i", "rewards.more.axis=identity", "--rewards.more.weight=0.5"])
    assert list(recipe.rewards) == ["clip", "dino", "more"]
    assert recipe.rewards["more"].model_dump()["weight"] == 0.5


def test_yaml_words_stay_words(file: Path) -> None:
    """Under YAML 1.1 these would be False, a date and a text."""
    file.write_text(MINIMAL.replace("{dir: runs/test}", "{dir: 2026-01-31, precision: no}") + "  lr: 2e-5\n")
    recipe = load_recipe(file)
    assert (recipe.run.precision, recipe.run.dir, recipe.train.lr) == ("no", "2026-01-31", 2e-5)


def test_every_problem_is_listed_with_its_line(file: Path) -> None:
    file.write_text(MINIMAL.replace("group_size: 4", "group_sise: 4\n  lr: fast").replace("type: dino", "type: dinno"))
    lines = refused(file, "run.device=cudaa", "train.stps=3").splitlines()
    assert len(lines) == 5
    expected = [
        "override 'run.device=cudaa': run.device: given 'cudaa'; did you mean 'cuda'? allowed: 'auto', 'cpu', 'cuda'",
        f"{file}:7: rewards.dino.type: unknown type 'dinno' of rewards; did you mean 'dino'?",
        f"{file}:10: train.group_sise: unknown key; did you mean 'group_size'? allowed: steps, group_size,",
        f"{file}:11: train.lr: given 'fast'; allowed: a number, above 0",
        "override 'train.stps=3': train.stps: unknown key; did you mean 'steps'?",
    ]
    for start in expected:
        assert any(line.startswith(start) for line in lines), (start, lines)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.lora.rnk=3", "policy.lora.rnk: unknown key; did you mean 'rank'?"),
        ("advantage.aggregator.gama=1", "advantage.aggregator.gama: unknown key; did you mean 'gamma'?"),
        (
            "advantage.aggregator={type: weighted_sum, gamma: 1}",
            "unknown key; it belongs to type harmonic, sars; allowed: type; to change the type,",
        ),
        (
            "objective={type: nft, clip: 0.1}",
            "objective.clip: unknown key; it belongs to type awm, grpo; allowed: type",
        ),
        ("objective={weighting: huber}", "objective.weighting: unknown key; it belongs to type awm; allowed: type, kl"),
        ("group_size=3", "group_size: unknown key; did you mean 'train.group_size'?"),
        ("train.steps=true", "train.steps: given true; allowed: a whole number, at least 1"),
        ("train.steps=1.5", "train.steps: given 1.5; allowed: a whole number, at least 1"),
        ("train.lr=.inf", "train.lr: given Infinity; allowed: a number, above 0 and at most 1"),
        (
            "train.group_size=1",
            "train.group_size: given 1; allowed: a whole number, at least 2 (G; a group of one",
        ),
        ("train.betas=[1]", "train.betas"),
        ("train=[1, 2]", "train: given [1, 2]; allowed: a section with the keys steps, group_size"),
        (
            "sampling.plan=fraction",
            "sampling.plan: this section needs a 'type' (one of: all, branch, fraction, window)",
        ),
        ("sampling.dynamics.noise=1", "sampling.dynamics.noise: unknown key; allowed: type, eta"),
        ("policy.height=70", "policy.height: given 70; this model needs a multiple of 16: use 64 or 80"),
        ("rewards.dino.axis=identty", "rewards.dino.axis: given 'identty'; did you mean 'identity'?"),
        ("rewards.dino.axis=prompt", "rewards: no reward feeds the axis 'identity'"),
        ("train.updates_per_rollout=3", "train.updates_per_rollout: 3 does not divide train.group_size 4"),
        ("train.evaluate_every=5", "train.evaluate_every: it is set but there is no 'evaluate' section"),
        ("run.dir.name=x", "run.dir is 'runs/test' and no section, so it has no key 'name'"),
        ("train.steps", "write it as key.sub=value"),
        ("=3", "write it as key.sub=value"),
        ("train..steps=3", "write it as key.sub=value"),
        ("train.betas=[1, 2", "the value:1:"),
        ("train.lr=1e5", "train.lr: given 100000.0; allowed: a number, above 0 and at most 1"),
        ("train.betas=[0.9, 9.99]", "train.betas.1: given 9.99; allowed: a number, at least 0 and below 1"),
        (
            "train.schedule={name: constant_with_warmup, warmup_steps: 5000}",
            "train.schedule.warmup_steps: given 5000, but the run has 1000 updates",
        ),
        ("rewards.identity={type: clip_t, axis: prompt}", "rewards.identity: the name means something else"),
        ("rewards.key={type: clip_t, axis: prompt}", "rewards.key: the name means something else"),
        (
            "policy={type: 'customized_grpo.rewards.clip:ClipT', model: mini}",
            "must derive from customized_grpo.recipe.sections.PolicySpec, but it is one of rewards",
        ),
    ],
)
def test_a_wrong_override(file: Path, override: str, message: str) -> None:
    told = refused(file, override)
    assert message in told
    assert "override" in told or ":" in told


def test_the_line_of_a_file_is_named_where_the_file_is_wrong(file: Path) -> None:
    file.write_text(MINIMAL.replace("axis: identity", "axis: identty"))
    assert refused(file).startswith(f"{file}:8: rewards.dino.axis: given 'identty'")
    assert refused(file, "rewards.dino.axis=x").startswith(
        "override 'rewards.dino.axis=x': rewards.dino.axis: given 'x'"
    )


def test_a_missing_key_of_an_added_section_names_the_override(file: Path) -> None:
    told = refused(file, "evaluate.limit=3")
    known = ", ".join(sorted(BUILTIN["datasets"]))
    place = "override 'evaluate.limit=3': evaluate.data: is missing"
    assert f"{place}; give a section with a 'type', one of: {known}" in told


def test_values_of_keys_and_tokens_are_not_repeated(file: Path) -> None:
    told = refused(file, "run.api_token=[hunter2]", "run.seed=-1")
    assert "run.api_token: unknown key" in told
    assert "override 'run.api_token=…': run.api_token" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": is empty"),
        ("# nothing\n", ": is empty"),
        ("- a\n- b\n", ':1: given ["a", "b"]; a recipe is a mapping'),
        ("run: {dir: x\npolicy: 3\n", ":2:"),
        (
            "run:\n\tdir: x\n",
            ":2:1: is not YAML: found character '\\t' that cannot start any token; indent by spaces",
        ),
        ("run: {dir: a}\nrun: {dir: b}\n", ":2: run: is given twice, first in line 1"),
        ("run:\n  dir: a\n  dir: b\n", ":3: run.dir: is given twice, first in line 2"),
        ("1: {dir: a}\n", ":1: the key '1' is not text"),
        ("run: &a [*a]\n", "holds itself"),
        ("run: !!python/object:os.system x\n", ":1:6: is not YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "is not YAML: but found another document"),
    ],
)
def test_a_file_that_is_no_recipe(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    told = refused(file)
    assert told.startswith(str(file))
    assert message in told


def test_a_file_that_is_no_text(file: Path) -> None:
    file.write_bytes(b"run: \xff\xfe")
    assert "is not UTF-8 text" in refused(file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_recipe_of_any_unicode(file: Path, encoding: str) -> None:
    text = file.read_text(encoding="utf-8")
    file.write_bytes(text.encode(encoding))
    assert load_recipe(file)
    file.write_bytes(f"# 一只狗在雪地里的照片\n{text}".encode("gbk"))
    assert "recipe.yaml:1: is not UTF-8 text" in refused(file)
    assert "iconv -f GBK -t UTF-8" in refused(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("Y", "Y"), ("12:30", "12:30"), ("1:30.5", "1:30.5"), ("010", "010"),
        ("0o17", "0o17"),
        ("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"), ("1e-4", 1e-4), ("1e5", 1e5), ("-.5", -0.5), ("1.", 1.0),
        ("1_000", "1_000"), ("0x1F", 31), ("+3", 3), ("0", 0), ("~", None), ("true", True),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    _, data = construct(f"a: {text}")
    assert data == {"a": value}
    assert type(data["a"]) is type(value)
    again = dump({"a": text, "b": value})
    assert construct(again)[1] == {"a": text, "b": value}
    assert yaml.safe_load(again) == {"a": text, "b": value}


def test_a_number_with_two_readings_is_refused(file: Path) -> None:
    assert "train.steps: given 010, which some readers take for octal" in refused(file, "train.steps=010")
    assert "train.ratio_guard: given 012" in refused(file, "train.ratio_guard=012")
    assert load_recipe(file, ["run.dir=010"]).run.dir == "010"


@pytest.mark.parametrize(("text", "words"), [("[" * 5000, "too deeply"), ("9" * 6000, "thousands of digits")])
def test_yaml_that_breaks_its_reader(file: Path, text: str, words: str) -> None:
    file.write_text(f"run: {text}")
    assert words in refused(file)
    assert words in refused("mini_customized", f"run.dir={text}")


def test_missing_files_and_folders(tmp_path: Path, file: Path) -> None:
    assert "did you mean" in refused(tmp_path / "recipes.yaml")
    assert "is a folder; give a recipe's file, one of: recipe.yaml" in refused(tmp_path)
    told = refused("mini_custmized")
    assert "did you mean 'mini_customized'?" in told
    assert "mini_naive_1to1.5" in told


def test_shipped_recipes_are_found_by_name_and_are_valid() -> None:
    names = shipped_recipes()
    assert {
        "mini_customized",
        "mini_naive_1to1",
        "mini_naive_1to1.5",
        "mini_sars_only",
        "mini_tdw_only",
        "mini",
        "hpsv3",
    } <= set(names)
    assert {path.parent.name for path in names.values()} == {"train", "eval", "serve"}
    assert find_recipe("mini_naive_1to1.5") == find_recipe("mini_naive_1to1.5.yaml") == names["mini_naive_1to1.5"]
    for name, path in names.items():
        kind = {"eval": EvaluateRecipe, "serve": ServerConfig, "train": Recipe}[path.parent.name]
        assert is_server(name) == (kind is ServerConfig)
        assert isinstance(load_recipe(name, [], ServerConfig) if is_server(name) else load_any(name), kind)


def test_the_ablation_recipes_differ_in_the_advantage_alone() -> None:
    full = load_recipe("mini_customized").model_dump(exclude={"run"})
    for name in ("mini_naive_1to1", "mini_naive_1to1.5", "mini_sars_only", "mini_tdw_only"):
        other = load_recipe(name).model_dump(exclude={"run"})
        assert other.pop("advantage") != full["advantage"]
        assert other == {key: value for key, value in full.items() if key != "advantage"}


def test_the_naive_recipe_on_flux_differs_in_the_advantage_alone() -> None:
    full, naive = (load_recipe(name).model_dump(exclude={"run"}) for name in ("uno_customized_grpo", "uno_naive_grpo"))
    assert naive.pop("advantage") != full.pop("advantage")
    assert naive == full


def test_the_fast_recipe_on_flux_is_the_full_one_with_the_miniatures_plan() -> None:
    full, fast, mini = (
        load_recipe(name).model_dump(exclude={"run"})
        for name in ("uno_customized_grpo", "uno_customized_grpo_fast", "mini_customized")
    )
    for key in ("steps", "dynamics", "plan"):
        assert fast["sampling"].pop(key) == mini["sampling"][key]
        del full["sampling"][key]
    assert fast["samples"].pop("steps") == load_recipe("uno_customized_grpo").picture_steps
    del full["samples"]["steps"]
    assert fast["objective"].pop("step_weighting") == mini["objective"]["step_weighting"]
    del full["objective"]["step_weighting"]
    assert fast == full


def test_paper_verbatim_has_the_published_numbers() -> None:
    recipe = load_recipe("paper_verbatim")
    sampling, train, policy = recipe.sampling, recipe.train, recipe.policy
    assert (sampling.steps, sampling.dynamics.eta, sampling.shift, sampling.plan.fraction) == (
        25,
        0.4,
        3.0,
        0.6,
    )
    assert sampling.shared_noise
    assert (train.group_size, train.groups_per_step, train.updates_per_rollout) == (12, 1, 3)
    assert (train.lr, train.weight_decay, train.max_grad_norm) == (2e-5, 1.1e-4, 1.0)
    assert (recipe.objective.clip, recipe.objective.kl, recipe.objective.step_weighting) == (
        1e-4,
        0.0,
        "none",
    )
    assert (recipe.advantage.aggregator.gamma, recipe.advantage.clip) == (0.4, 5.0)
    assert (policy.lora.rank, policy.lora.alpha, policy.lora.targets, policy.lora.qkv) == (
        512,
        None,
        ("uno",),
        "shared",
    )
    assert (policy.base_lora.path, policy.base_lora.mode, policy.guidance) == (
        "bytedance-research/UNO",
        "fuse",
        3.5,
    )
    assert {spec.type: spec.axis for spec in recipe.rewards.values()} == {
        "hpsv3": "prompt",
        "dino": "identity",
    }


@pytest.mark.parametrize("shift", ["0", "-1.0", "fluxx"])
def test_a_wrong_shift_says_what_is_allowed(shift: str) -> None:
    told = refused("mini_customized", f"sampling.shift={shift}")
    assert "sampling.shift: given" in told
    assert "dynamic" in told


def test_a_saved_recipe_loads_back_equal(tmp_path: Path) -> None:
    for name, file in shipped_recipes().items():
        if file.parent.name == "serve":
            continue
        recipe = load_any(name)
        save_recipe(recipe, tmp_path / "deep" / "config.yaml")
        assert load_any(tmp_path / "deep" / "config.yaml") == recipe
        assert (
            yaml.safe_load((tmp_path / "deep" / "config.yaml").read_text())["run"]["precision"] == recipe.run.precision
        )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["config.yaml"]


def test_the_run_of_an_adapter(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000002"
    checkpoint.mkdir(parents=True)
    with pytest.raises(RecipeError, match="--config"):
        run_config(checkpoint)
    (tmp_path / "run" / "config.yaml").write_text(MINIMAL)
    for part in (checkpoint, tmp_path / "run"):
        assert run_config(part) == (tmp_path / "run" / "config.yaml").resolve()
    with pytest.raises(RecipeError, match="no such file or folder"):
        run_config(tmp_path / "absent")


def test_the_schema_holds_the_plugins_options() -> None:
    schema = recipe_schema()
    definitions = schema["$defs"]
    assert definitions["aggregators.sars"]["properties"]["type"] == {"const": "sars"}
    assert "gamma" in definitions["aggregators.sars"]["properties"]
    assert "x-plugin" not in str(schema)

    def references(node: object) -> set[str]:
        if isinstance(node, dict):
            here = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return here.union(*map(references, node.values()))
        return set().union(*map(references, node)) if isinstance(node, list) else set()

    assert references(schema) <= {f"#/$defs/{name}" for name in definitions}
    assert len(references(schema)) > 20


def test_a_time_is_no_number_in_sixties(file: Path) -> None:
    assert "train.steps: given '1:30'" in refused(file, "train.steps=1:30")
    assert load_recipe(file, ["run.dir=2026_11_28"]).run.dir == "2026_11_28"


def test_the_home_folder_is_meant_by_a_tilde(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell replaces it in a file or behind an '=', and a folder called '~' was made (choosehappy/HistoQC#198)."""
    monkeypatch.setenv("HOME", "/home/me")
    recipe = load_recipe(file, ["run.dir=~/runs/x", "run.cache=~/cache", "run.resume=~/runs/x/checkpoints/step-000001"])
    assert recipe.run.dir == "/home/me/runs/x"
    assert recipe.run.cache == "/home/me/cache"
    assert recipe.run.resume == "/home/me/runs/x/checkpoints/step-000001"


@pytest.mark.parametrize(
    "value", ["$HOME/runs", "${SCRATCH}/runs", "/data/$USER/runs", "runs/$SLURM_JOB_ID", "runs/exp-${ID}"]
)
def test_a_variable_of_a_shell_is_refused(file: Path, value: str) -> None:
    told = refused(file, f"run.dir={value}")
    assert "is replaced by a shell, not in a recipe" in told
    assert "$" in told
    assert "replaced by a shell" in refused(file, "data={type: manifest, path: $DATA/manifest.jsonl}")


def test_a_dollar_in_other_texts_is_none_of_a_variable(file: Path) -> None:
    assert load_recipe(file, ["run.dir=runs/5$"]).run.dir == "runs/5$"
    assert load_recipe(file, ["run.dir=a b $HOME/c"]).run.dir == "a b $HOME/c"


@pytest.mark.parametrize("override", ["run.dir=runs/exp #3", "train.steps=5 # five", "run.dir=#3"])
def test_a_comment_in_an_override_is_refused(file: Path, override: str) -> None:
    """YAML would drop it: the run was written to 'runs/exp'."""
    assert "would be a comment; put the value in quotes" in refused(file, override)


def test_a_sharp_that_is_no_comment_is_read(file: Path) -> None:
    assert load_recipe(file, ["run.dir=runs/exp#3"]).run.dir == "runs/exp#3"
    assert load_recipe(file, ["run.dir='runs/exp #3'"]).run.dir == "runs/exp #3"


def paid(example: object, images: list[object], *, api_key: str = "", key_env: str = "", note: str = "") -> list[float]:
    """A reward whose author takes its secret as a plain option."""
    return [0.0 for _ in images]


@pytest.mark.parametrize(
    "option",
    [
        "api_key: correct-horse-battery",
        "note: sk-abcdefghijklmnopqrstuv",
        "note: hf_abcdefghijklmnopqrstuvwxyz",
        "key_env: sk-abcdefghijklmnopqrstuv",
    ],
)
def test_a_secret_as_a_plain_option_is_refused_and_not_repeated(file: Path, option: str) -> None:
    """It went into config.yaml, every checkpoint and the trackers (kohya-ss/sd-scripts#1123)."""
    section = f"{{type: '{__name__}:paid', axis: prompt, {option}}}"
    file.write_text(MINIMAL.replace("{type: clip_t, axis: prompt}", section))
    told = refused(file)
    assert "looks like a secret" in told
    assert option.split(": ")[1] not in told


def test_the_name_of_a_variable_is_no_secret(file: Path) -> None:
    file.write_text(
        MINIMAL.replace(
            "{type: clip_t, axis: prompt}", f"{{type: '{__name__}:paid', axis: prompt, key_env: MY_API_KEY}}"
        )
    )
    assert load_recipe(file).rewards["clip"].model_dump()["key_env"] == "MY_API_KEY"


@pytest.mark.parametrize(
    "override",
    [
        "rewards.r={type: remote, axis: prompt, urls: ['http://me:hunter22@host:8000'], reward: clip}",
        "policy.model='https://me:hunter22@huggingface.co/x/y'",
        "policy.model=['https://me:hunter22@huggingface.co/x/y']",
    ],
)
def test_an_address_with_a_login_is_refused_and_not_repeated(file: Path, override: str) -> None:
    assert "hunter22" not in refused(file, override)
