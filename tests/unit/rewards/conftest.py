from pathlib import Path

import pytest

from tiny_rewards import save_clip, save_dino
from tiny_segmenter import save_detector, save_sam


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def segmenter_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_detector(tmp_path_factory.mktemp("detector")), save_sam(tmp_path_factory.mktemp("sam"))
