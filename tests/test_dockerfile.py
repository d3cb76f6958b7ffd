"""The Dockerfile without Docker: hadolint, what its lines promise, and that the files which it copies are enough.

``tools/rehearse_image.sh`` builds it, where there is buildah.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from dockerfile import FILE, exec_form, instructions, last, stages

ROOT = Path(__file__).parent.parent


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    given = [line for line in lines if line and not line.startswith(("#", "-r "))]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in given), "an exact version in each line"
    return dict(line.split("==") for line in given)


def test_hadolint_has_nothing_to_say() -> None:
    linter = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert linter is not None, "pip install -r requirements-dev.txt"
    ended = subprocess.run([linter, "--no-color", FILE], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_base_is_one_python_image_by_tag_and_digest() -> None:
    (base,) = [words for name, words in instructions() if name == "ARG"]
    found = re.fullmatch(r"BASE=python:(3\.\d+)\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert found, base
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Programming Language :: Python :: {found[1]}" in project["classifiers"]


def test_the_user_is_not_root_and_is_numeric() -> None:
    for stage in ("train", "rewards"):
        assert int(last(stage, "USER").split(":")[0]) >= 1000
        after = [name for name, _ in stages()[stage]]
        assert "RUN" not in after[len(after) - 1 - after[::-1].index("USER") :], "nothing is installed as the user"


def test_training_is_the_default_target() -> None:
    assert next(reversed(stages())) == "train"
    for stage in ("train", "rewards"):
        assert exec_form(last(stage, "ENTRYPOINT")) == ["customized-grpo"]


def test_what_is_installed_is_pinned_and_what_the_tests_run() -> None:
    """The image's versions are those of requirements.txt, and where the tests have a package, too, theirs."""
    tested = pins("requirements.txt") | pins("requirements-studio.txt") | pins("requirements-dev.txt")
    image = pins("requirements-cuda.txt")
    assert (ROOT / "requirements-cuda.txt").read_text(encoding="utf-8").count("\n-r requirements.txt\n") == 1
    assert not set(image) & set(pins("requirements.txt")), "said once"
    assert {name: version for name, version in image.items() if tested.get(name, version) != version} == {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in ("serve", "judge", "face", "hub", "bitsandbytes"):
        for requirement in project["optional-dependencies"][extra]:
            assert re.split("[>=<]", requirement)[0] in image
    runs = [words for name, words in instructions() if name == "RUN" and "pip install" in words]
    assert len(runs) == 3
    assert all("--no-deps" in words for words in runs), "else pip would take what is not pinned"
    built = {words.split("==")[0]: words.split("==")[1] for words in re.findall(r"\S+==\S+", runs[0])}
    assert built["hatchling"]
    assert {name: version for name, version in built.items() if tested.get(name, version) != version} == {}


def test_what_is_copied_exists_and_is_sent() -> None:
    """Each source of COPY is there and is not ignored, and nothing else is sent."""
    copied = {
        one
        for name, words in instructions()
        if name == "COPY" and not words.startswith("--from")
        for one in words.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert not [one for one in copied if not (ROOT / one).exists()]
    # What pyproject.toml makes the package of.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    needed += [*wheel["packages"], *wheel["force-include"]]
    assert not [one for one in needed if not any(one == c or fnmatch(one, f"{c}/*") for c in copied)]


def test_the_server_of_the_image_lets_other_hosts_in_at_the_port_that_is_asked() -> None:
    name, *changes = exec_form(last("rewards", "CMD"))[1:]
    settings = yaml.safe_load((ROOT / "config" / "serve" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert changes == ["host=0.0.0.0"]
    assert last("rewards", "EXPOSE") == str(settings["port"])
    assert f"http://127.0.0.1:{settings['port']}/health" in exec_form(last("rewards", "HEALTHCHECK"))[-1]


@pytest.mark.gpu
def test_a_machine_with_a_gpu_is_healthy() -> None:
    assert subprocess.run(exec_form(last("train", "HEALTHCHECK"))).returncode == 0
