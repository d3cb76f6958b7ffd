"""Where a model's name leads."""

from pathlib import Path

import pytest

from customized_grpo import paths
from customized_grpo.paths import model_path


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "ASSETS", tmp_path)
    return tmp_path


def test_mini_and_its_judge_are_inside_the_package(assets: Path) -> None:
    (assets / "dino").mkdir()
    (assets / "judges/dino").mkdir(parents=True)
    assert model_path("mini", "dino") == str(assets / "dino")
    assert model_path("mini-judge", "dino") == str(assets / "judges/dino")


@pytest.mark.parametrize("name", ["mini", "mini-judge"])
def test_a_missing_embedded_model_says_how_to_build_it(assets: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"embedded clip model is missing.*make assets"):
        model_path(name, "clip")


@pytest.mark.parametrize("name", ["facebook/dinov2-base", "gpt2"])
def test_hub_ids_pass_through(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_path(name, "dino") == name


def test_a_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_path("my/model", "dino") == "my/model"
    assert model_path("~/my/model", "dino") == str(tmp_path / "my/model")


@pytest.mark.parametrize("name", ["./model", "/nowhere/model", "~/nowhere", "models/dino/base", "models\\dino"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        model_path(name, "dino")


def test_a_file_or_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="is a file"):
        model_path(str(tmp_path / "model.safetensors"), "dino")
    with pytest.raises(ValueError, match="empty"):
        model_path(" ", "dino")


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store", "._a.png", ".hidden", ".ipynb_checkpoints", "~$a.docx", "__MACOSX", "Thumbs.db", "THUMBS.DB",
        "desktop.ini", "$RECYCLE.BIN", "lost+found", "@eaDir", "#recycle", "System Volume Information", "Icon\r",
    ],
)  # fmt: skip
def test_what_systems_leave_in_folders(name: str) -> None:
    assert paths.is_system(name)


@pytest.mark.parametrize("name", ["a.png", "@johnny", "#1", "$", "recycle", "lost", "_a.png", "macosx", "thumbs"])
def test_what_users_call_their_files(name: str) -> None:
    assert not paths.is_system(name)


def test_folders_are_walked_through_links_but_never_in_a_circle(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/b/2.txt", ".c/3.txt", "@eaDir/4.txt", "a/._1.txt", "skipped/5.txt"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/6.txt").write_text("")
    for at, to in (("a/up", "set"), ("other", "other"), ("a/self", "set/a/self"), ("z", "set/a/b")):
        (tmp_path / "set" / at).symlink_to(tmp_path / to)
    found = paths.files_under(tmp_path / "set", lambda folder: folder.name == "skipped")
    names = [path.relative_to(tmp_path / "set").as_posix() for path in found]
    assert names == ["a/1.txt", "a/self", "a/b/2.txt", "other/6.txt", "z/2.txt"]
    assert paths.matching(tmp_path / "set/a", "*.txt") == [tmp_path / "set/a/1.txt"]
    assert list(paths.files_under(tmp_path / "none")) == paths.matching(tmp_path / "none", "*") == []
