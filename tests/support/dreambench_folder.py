"""A small copy of DreamBench's folder with drawn photos, and where the real one is."""

from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(__file__).parents[3] / "shared" / "data" / "dreambench"
"""DreamBench at 512 px; it is never part of the repository, and tests of it skip where it is absent."""
CLASSES = {"backpack": "backpack", "can": "can", "berry_bowl": "bowl", "cat": "cat", "dog": "dog"}
CHOSEN = {"backpack": "02", "can": "01", "berry_bowl": "02", "cat": "04", "dog": "02"}
_SCENES = [f"'a {{0}} {{1}} in place {number}'.format(unique_token, class_token)," for number in range(10)]
_ATTRIBUTES = [
    f"'a {word} {{0}} {{1}}'.format(unique_token, class_token)" for word in ("red", "old", "big", "wet", "new")
]


def prompts_and_classes() -> str:
    """The form of the real file, with two lists of 20 prompts."""

    def listed(more: str) -> str:
        own = [f"'a {{0}} {{1}} {more} {number}'.format(unique_token, class_token)," for number in range(5)]
        return "prompt_list = [\n" + "\n".join([*_SCENES, *own, ",\n".join(_ATTRIBUTES)]) + "\n]\n"

    table = "".join(f"{subject},{word}\n" for subject, word in CLASSES.items())
    return (
        f"Classes\n\nsubject_name,class\n{table}\nPrompts\n\nObject Prompts\n\n{listed('floating on')}\n"
        f"Live Subject Prompts\n\n{listed('wearing hat')}\n"
    )


def make_dreambench(folder: Path, side: int = 40) -> Path:
    """``dataset/<subject>/NN.jpg`` with 5 photos of each of 5 subjects, and the prompts."""
    dataset = folder / "dataset"
    for number, subject in enumerate(CLASSES):
        (dataset / subject).mkdir(parents=True)
        for photo in range(5):
            noise = np.random.default_rng(10 * number + photo).integers(0, 80, (side, side, 3))
            colour = np.array([40 * number, 170 - 30 * number, 20 * photo])
            Image.fromarray((noise + colour).astype(np.uint8)).save(dataset / subject / f"{photo:02d}.jpg")
    (dataset / "prompts_and_classes.txt").write_text(prompts_and_classes(), encoding="utf-8")
    return folder
