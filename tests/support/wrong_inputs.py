"""Wrong inputs, and the message that each gives: the sections of docs/errors.md."""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from customized_grpo.commands.app import app
from tiny import make_tiny_flux
from tiny_rewards import save_clip, save_dino

RECIPE = """\
run: {dir: run, device: cpu, precision: no, threads: 1}
policy: {type: uno, model: flux, height: 32, width: 32, max_sequence_length: 16, lora: {rank: 2}}
data: {type: manifest, path: data/train.jsonl}
sampling: {steps: 3}
rewards:
  clip: {type: clip_t, axis: prompt, model: clip}
  dino: {type: dino, axis: identity, model: dino}
train: {steps: 1, group_size: 2, groups_per_step: 1, evaluate_every: 0}
"""
EVALUATION = """\
run: {dir: evaluation, device: cpu, precision: no}
policy: {type: uno, model: flux, height: 32, width: 32, max_sequence_length: 16}
evaluate: {data: {type: manifest, path: data/train.jsonl}, metrics: {dino: {type: dino, model: dino}}}
"""
ROW = {"id": "bag", "prompt": "a red dog", "references": ["bag.png"]}
FILES = {
    "recipe.yaml": RECIPE,
    "evaluation.yaml": EVALUATION,
    "empty.yaml": "",
    "list.yaml": "- run\n- policy\n",
    "open.yaml": "run: {dir: run\npolicy: {type: uno}\n",
    "tab.yaml": "run:\n\tdir: run\n",
    "twice.yaml": RECIPE + "run: {dir: other}\n",
    "typo.yaml": RECIPE.replace("group_size", "group_sise"),
    "words.yaml": RECIPE.replace("steps: 1,", "steps: many,"),
    "data/train.jsonl": json.dumps(ROW) + "\n",
    "data/empty.jsonl": "",
    "data/lost.jsonl": json.dumps(ROW | {"references": ["lost.png"]}) + "\n",
    "data/broken.jsonl": json.dumps(ROW) + "\n{\n",
    "data/text.png": "not an image",
    "data/zero.png": "",
    "data/none.jsonl": json.dumps(ROW | {"references": []}) + "\n",
    "data/many.jsonl": json.dumps(ROW | {"references": ["bag.png"] * 5}) + "\n",
    "data/thin.jsonl": "\n".join(
        json.dumps(ROW | {"id": f"bag-{i}", "references": [n]}) for i, n in enumerate(("bag.png", "thin.png"))
    ),
    "data/special.jsonl": json.dumps(ROW | {"prompt": "a red dog<|endoftext|>"}) + "\n",
    "data/bad.jsonl": json.dumps(ROW) + '\n{"id": NaN}\n{"id": "a", "id": "b"}\n',
    "taken/notes.txt": "something",
    "adapter.safetensors": "not safetensors",
}


@dataclass(frozen=True)
class Case:
    """A mistake, the command that makes it, and what its message must say."""

    title: str
    command: str
    says: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        return self.command.split("|")


def case(title: str, command: str, *says: str) -> Case:
    return Case(title, command, says)


GENERATE = "generate|--prompt|a bag|--out|out.png"
CASES = [
    case(
        "A recipe's name mistyped",
        "validate|mini_custmized",
        "no such recipe",
        "did you mean 'mini_customized'?",
    ),
    case("A recipe that isn't there", "train|recipes.yaml", "no such file", "did you mean 'recipe.yaml'?"),
    case("A folder in a recipe's place", "train|taken", "is a folder", "give a recipe's file"),
    case("An empty recipe", "train|empty.yaml", "empty.yaml: is empty"),
    case("A list in a recipe's place", "train|list.yaml", "list.yaml:1:", "a recipe is a mapping"),
    case("YAML that doesn't close", "train|open.yaml", "open.yaml:2:7: is not YAML"),
    case("A tab", "train|tab.yaml", "tab.yaml:2:1: is not YAML", "indent by spaces"),
    case("A key twice", "train|twice.yaml", "twice.yaml:9: run: is given twice, first in line 1"),
    case(
        "A key mistyped",
        "train|typo.yaml",
        "typo.yaml:8: train.group_sise: unknown key; did you mean 'group_size'?",
    ),
    case(
        "A word for a number",
        "train|words.yaml",
        "words.yaml:8: train.steps: given 'many'; allowed: a whole number",
    ),
    case("A key in the wrong section", "train|recipe.yaml|group_size=4", "did you mean 'train.group_size'?"),
    case(
        "true for a number",
        "train|recipe.yaml|train.steps=true",
        "train.steps: given true; allowed: a whole number",
    ),
    case(
        "An attention backend mistyped",
        "validate|recipe.yaml|policy.attention=flsh",
        "policy.attention: given 'flsh'",
        "did you mean 'flash'?",
    ),
    case(
        "Quantised weights in float32",
        "validate|recipe.yaml|policy.quantization=4bit",
        "run.precision=no asks for float32; use run.precision=bf16",
    ),
    case(
        "A cache without a folder",
        "data|cache|recipe.yaml",
        "run.cache: it says where the cache is",
    ),
    case(
        "A value mistyped",
        "train|recipe.yaml|run.device=cudaa",
        "did you mean 'cuda'? allowed: 'auto', 'cpu', 'cuda'",
    ),
    case(
        "A malformed override",
        "train|recipe.yaml|train.steps",
        "override 'train.steps': write it as key.sub=value",
    ),
    case("A section as a value", "train|recipe.yaml|run.dir.name=x", "run.dir is 'run' and no section"),
    case(
        "A group of one",
        "train|recipe.yaml|train.group_size=1",
        "given 1; allowed: a whole number, at least 2",
    ),
    case(
        "One sampler step",
        "train|recipe.yaml|sampling.steps=1",
        "given 1; allowed: a whole number, at least 2",
    ),
    case(
        "No micro-batch",
        "train|recipe.yaml|train.microbatch=0",
        "given 0; allowed: a whole number, at least 1",
    ),
    case(
        "A negative learning rate",
        "train|recipe.yaml|train.lr=-1e-4",
        "given -0.0001; allowed: a number, above 0",
    ),
    case(
        "A plug-in mistyped",
        "train|recipe.yaml|rewards.dino.type=dinno",
        "unknown type 'dinno'",
        "did you mean 'dino'?",
    ),
    case(
        "A plug-in's module that isn't there",
        "train|recipe.yaml|rewards.dino.type=mine:Mine",
        "No module named 'mine'",
    ),
    case(
        "A plug-in without type",
        "train|recipe.yaml|rewards.dino=3",
        "rewards.dino: this section needs a 'type'",
    ),
    case(
        "An option of another plug-in",
        "train|recipe.yaml|advantage.aggregator={type: weighted_sum, gamma: 1}",
        "advantage.aggregator.gamma: unknown key; it belongs to type harmonic, sars; allowed: type",
    ),
    case(
        "A clip of an objective that has none",
        "train|recipe.yaml|objective={type: nft, clip: 0.1}",
        "objective.clip: unknown key; it belongs to type awm, grpo",
    ),
    case(
        "A cache of rollouts whose ratio it would falsify",
        "train|recipe.yaml|sampling.cache={type: first_block}",
        "sampling.cache: objective.type grpo compares its loss's forward with the rollout's",
    ),
    case(
        "An option that would do nothing",
        "train|recipe.yaml|rewards.dino.crop=true",
        "crop: has no effect here",
    ),
    case("A segmenter forgotten", "train|recipe.yaml|rewards.dino.segment=both", "so it needs a segmenter"),
    case(
        "A judge's key in the recipe",
        "train|recipe.yaml|rewards.dino={type: vlm, axis: identity, rubric: prompt_following, key_env: sk-1234}",
        "override 'rewards.dino=…': rewards.dino.key_env: that is not the name of an environment variable",
    ),
    case(
        "A judge whose key isn't set",
        "train|recipe.yaml|rewards.dino={type: vlm, axis: identity, rubric: prompt_following, key_env: NOT_SET}",
        "rewards.dino: the environment variable NOT_SET is not set",
    ),
    case("An unknown axis", "train|recipe.yaml|rewards.dino.axis=identiy", "did you mean 'identity'?"),
    case(
        "An axis that no reward feeds",
        "train|recipe.yaml|rewards.dino.axis=prompt",
        "no reward feeds the axis 'identity'",
    ),
    case("A size that FLUX can't draw", "train|recipe.yaml|policy.height=70", "a multiple of 16: use 64 or 80"),
    case("Evaluation of nothing", "train|recipe.yaml|train.evaluate_every=5", "there is no 'evaluate' section"),
    case(
        "Updates that don't divide a group",
        "train|recipe.yaml|train.updates_per_rollout=3",
        "does not divide",
    ),
    case(
        "A window wider than the steps",
        "validate|recipe.yaml|sampling.plan={type: window, width: 9}",
        "a window of width 9 does not fit",
    ),
    case(
        "A run's folder that is in use",
        "train|recipe.yaml|run.dir=taken",
        "run.dir: taken",
        "run.resume=latest",
    ),
    case("A file in a run's place", "train|recipe.yaml|run.dir=recipe.yaml", "run.dir: recipe.yaml is a file"),
    case("A folder that can't be made", "train|recipe.yaml|run.dir=recipe.yaml/run", "run.dir", "can't be made"),
    case(
        "Nothing to resume",
        "train|recipe.yaml|run.resume=latest",
        "run.resume: run holds no run to go on with",
    ),
    case("A checkpoint that is none", "train|recipe.yaml|run.dir=new|run.resume=taken", "run.resume"),
    case(
        "A manifest that isn't there",
        "train|recipe.yaml|data.path=data/no.jsonl",
        "data/no.jsonl: no such manifest",
    ),
    case("An empty manifest", "train|recipe.yaml|data.path=data/empty.jsonl", "the manifest is empty"),
    case(
        "A damaged manifest",
        "train|recipe.yaml|data.path=data/broken.jsonl",
        "data/broken.jsonl:2: is not JSON",
    ),
    case(
        "A reference that isn't there",
        "train|recipe.yaml|data.path=data/lost.jsonl",
        "lost.jsonl:1:",
        "lost.png",
    ),
    case("A model that isn't there", "train|recipe.yaml|policy.model=./fluks", "'./fluks': no such folder"),
    case("A folder that holds no model", "train|recipe.yaml|policy.model=taken", "has no model_index.json"),
    case(
        "A reward's model that isn't there",
        "train|recipe.yaml|rewards.dino.model=./dyno",
        "'./dyno': no such folder",
    ),
    case(
        "A file of weights that isn't there",
        "train|recipe.yaml|policy.transformer=./flux1-dev.safetensors",
        "policy.transformer: there is no file './flux1-dev.safetensors'",
    ),
    case(
        "A base LoRA that isn't there",
        "train|recipe.yaml|policy.base_lora.path=./dit_lora.safetensors",
        "policy.base_lora: no adapter at './dit_lora.safetensors'",
    ),
    case(
        "A base LoRA that is none",
        "train|recipe.yaml|policy.base_lora.path=adapter.safetensors",
        "policy.base_lora",
        "can't be read",
    ),
    case(
        "No reference",
        "train|recipe.yaml|data.path=data/none.jsonl|run.dir=none",
        "none.jsonl:1:",
        "references",
    ),
    case(
        "Too many references",
        "train|recipe.yaml|data.path=data/many.jsonl|run.dir=many",
        "1 of 1 examples can't be used",
        "many.jsonl:1: 5 references given",
        "takes 1 to 4",
    ),
    case(
        "A reference that is too narrow",
        "train|recipe.yaml|data.path=data/thin.jsonl|run.dir=thin",
        "thin.jsonl:2: ",
        "thin.png: a reference of 1000 x 10 pixels is too narrow",
    ),
    case(
        "A special token in a prompt",
        "validate|recipe.yaml|data.path=data/special.jsonl",
        "special.jsonl:1: prompt holds <|endoftext|>",
    ),
    case(
        "A manifest that is no UTF-8",
        "train|recipe.yaml|data.path=data/gbk.jsonl|run.dir=gbk",
        "gbk.jsonl:1: is not UTF-8 text",
        "iconv -f GBK -t UTF-8",
    ),
    case("A recipe that is no UTF-8", "validate|gbk.yaml", "gbk.yaml:1: is not UTF-8 text"),
    case(
        "Several bad lines",
        "train|recipe.yaml|data.path=data/bad.jsonl|run.dir=bad",
        "2 lines can't be read",
        "bad.jsonl:2: holds NaN",
        "bad.jsonl:3: the key 'id' is there twice",
    ),
    case("A number with two readings", "train|recipe.yaml|train.steps=010", "given 010", "octal"),
    case("An adapter that isn't there", "train|recipe.yaml|policy.lora.path=lost", "no adapter at 'lost'"),
    case("An adapter that is none", "train|recipe.yaml|policy.lora.path=adapter.safetensors", "can't be read"),
    case("A LoRA on no layer", "train|recipe.yaml|policy.lora.targets=[to_x]", "no linear layer matches 'to_x'"),
    case("An evaluation of a lost adapter", "evaluate|evaluation.yaml|lora=lost", "no adapter at 'lost'"),
    case(
        "A training recipe for evaluate",
        "evaluate|recipe.yaml",
        "rewards: unknown key",
        "evaluate: is missing",
    ),
    case(
        "A reference image that isn't there",
        f"{GENERATE}|--lora|run|--reference|lost.png",
        "lost.png: no such file",
    ),
    case(
        "A reference that is no image",
        f"{GENERATE}|--lora|run|--reference|data/text.png",
        "is not an image that Pillow can read",
    ),
    case(
        "An empty reference image",
        f"{GENERATE}|--lora|run|--reference|data/zero.png",
        "zero.png: is empty (0 bytes)",
    ),
    case("An export of nothing", "export|lost|--out|exported", "no adapter at 'lost'"),
    case(
        "An adapter of no run",
        f"{GENERATE}|--lora|taken|--reference|data/bag.png",
        "no config.yaml",
        "--config",
    ),
    case("Neither an adapter nor a recipe", GENERATE, "--lora: missing", "or --config RECIPE"),
    case(
        "A grid that is no image",
        f"{GENERATE}|--config|recipe.yaml|--grid|grid.txt",
        "--grid: given 'grid.txt'; end it in .png",
    ),
    case(
        "A folder of another model",
        "train|recipe.yaml|policy.type=flux2-klein",
        "'flux' holds a FluxPipeline, and policy.type flux2-klein reads a Flux2KleinPipeline or a "
        "Flux2KleinKVPipeline; use policy.type=uno",
    ),
    case("A report of nothing", "report|lost", "lost"),
    case("A score of nothing", "score|nowhere|--reward|dino", "nowhere: there is no such folder or image"),
    case("An option of no reward", "score|data|--reward|dino|dno.model=dino", "did you mean 'dino'?"),
    case("A kind of plug-in that isn't", "plugins|reward", "given 'reward'", "rewards"),
]


def prepare(folder: Path) -> None:
    """Everything that the commands find, in ``folder``."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    Image.new("RGB", (80, 80), "red").save(folder / "data" / "bag.png")
    Image.new("RGB", (1000, 10), "red").save(folder / "data" / "thin.png")
    chinese = json.dumps(ROW | {"prompt": "一只小狗坐在雪地里"}, ensure_ascii=False)
    (folder / "data" / "gbk.jsonl").write_bytes(chinese.encode("gbk"))
    (folder / "gbk.yaml").write_bytes(f"# 我的配方\n{RECIPE}".encode("gbk"))
    make_tiny_flux(folder / "flux")
    save_dino(folder / "dino")
    save_clip(folder / "clip")


def message(arguments: list[str]) -> tuple[int, str]:
    """Exit code, and what is said on stderr."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb"})
    return done.exit_code, done.stderr or repr(done.exception)


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    """A folder with everything in it, in which the commands run; libraries' logs would name it."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        prepare(Path(name))
        logging.disable()
        try:
            yield Path(name)
        finally:
            logging.disable(logging.NOTSET)


def _complaints(wrong: Case, code: int, text: str) -> Iterator[str]:
    if code != 2:
        yield f"exit code {code}"
    if not text.startswith("error: ") or "Traceback" in text:
        yield "no message"
    yield from (f"does not say {part!r}" for part in wrong.says if part not in text)


def sections() -> str:
    """Every case with its command and its message; an AssertionError where one is not as it should be."""
    lines, complaints = [], []
    with _workplace() as folder:
        for wrong in CASES:
            code, text = message(wrong.arguments)
            complaints += [f"{wrong.title}: {one}: {text}" for one in _complaints(wrong, code, text)]
            words = [f"'{part}'" if set(part) & set(" {[") else part for part in wrong.arguments]
            command = " ".join(["customized-grpo", *words])
            lines += [f"## {wrong.title}", "", "```console", f"$ {command}", text.strip(), "```", ""]
        assert not (folder / "run" / "metrics.jsonl").exists(), "a wrong input trained"
    assert not complaints, "\n".join(complaints)
    assert len({wrong.title for wrong in CASES}) == len(CASES)
    return "\n".join(lines)
