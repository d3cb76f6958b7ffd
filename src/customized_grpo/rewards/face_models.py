"""Faces of a picture by OpenCV: YuNet finds them, five landmarks align them, an ONNX graph embeds them; all on the CPU.

Dimensions: B faces of a picture, D features, H x W pixels. Sources: YuNet (Wu et al. 2023) in ``cv2.FaceDetectorYN``;
SFace (Zhong et al. 2021) in ``cv2.FaceRecognizerSF``, whose alignment to 112 x 112 is ArcFace's (Deng et al., arXiv
1801.07698).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

Normalization = Literal["sface", "arcface"]

SCALES: Final[Mapping[Normalization, tuple[float, float]]] = {"sface": (0.0, 1.0), "arcface": (127.5, 1.0 / 127.5)}
"""Mean and factor of an embedder's input, (RGB - mean) x factor: of ``FaceRecognizerSF``, and of InsightFace."""
ALIGNED: Final = 112
"""Side of an aligned face in pixels."""
_OVERLAP: Final = 0.3
_CANDIDATES: Final = 5000
"""OpenCV's defaults: intersection over union above which two boxes are one face, and boxes that are looked at."""


@final
class FaceEncoder:
    """Embeddings of all faces in a picture.

    Args:
        model: the embedder's ``.onnx``: an aligned face, (1, 3, 112, 112) in RGB, to (1, D).
        detector: YuNet's ``.onnx``, of March 2023 or later: those before have other outputs.
        normalization: of the embedder's input, see ``SCALES``.
        threshold: lower limit on the confidence of a face.
        sides: longer sides in pixels to which a larger picture is shrunk in turn, until a face is found.

    Raises:
        ValueError: OpenCV isn't installed, or a file isn't there or isn't such a graph.
    """

    def __init__(
        self, model: str, detector: str, *, normalization: Normalization, threshold: float, sides: Sequence[int]
    ) -> None:
        try:
            import cv2
        except ImportError as error:
            raise ValueError(
                "faces are found and compared by OpenCV, which is not installed: pip install 'customized-grpo[face]'"
            ) from error
        self._mean, self._factor = SCALES[normalization]
        self._sides = tuple(sides)
        found, embedder = _file("detector", detector), _file("model", model)
        blank = np.full((ALIGNED, ALIGNED, 3), 128, np.uint8)
        try:
            self._detector = cv2.FaceDetectorYN.create(found, "", (32, 32), threshold, _OVERLAP, _CANDIDATES)
            # Its alignment reads no net, and the detector's file is smaller by far than a second copy of the embedder.
            self._aligner = cv2.FaceRecognizerSF.create(found, "")
            self._found(blank)
        except cv2.error as error:
            raise ValueError(
                f"detector {detector!r} is not a YuNet of March 2023 or later as OpenCV {cv2.__version__} reads it "
                f"({_brief(error)}); {_WHERE}"
            ) from error
        try:
            self._embedder = cv2.dnn.readNetFromONNX(embedder)
            features = self._embedded(blank)
        except cv2.error as error:
            raise ValueError(
                f"model {model!r} is not an embedder of faces of {ALIGNED} x {ALIGNED} pixels that OpenCV "
                f"{cv2.__version__} can run ({_brief(error)}); {_WHERE}"
            ) from error
        finite = bool(np.isfinite(features).all())
        if features.ndim != 2 or features.shape[0] != 1 or not finite:
            raise ValueError(
                f"model {model!r} makes {'' if finite else 'NaN or infinite '}numbers of shape {features.shape} from "
                f"one face; an embedder makes finite ones of shape (1, D). {_WHERE}"
            )
        self._width = features.shape[1]

    def __call__(self, picture: Image.Image) -> Float[Tensor, "b d"]:
        """Embeddings of the faces, float32, the face with the largest box first; no row if there is no face."""
        whole, faces = _bgr(picture), self._searched(picture)
        largest = np.argsort(-faces[:, 2] * faces[:, 3], kind="stable")
        rows = [self._embedded(self._aligner.alignCrop(whole, faces[at : at + 1])) for at in largest]
        return torch.from_numpy(np.concatenate([np.empty((0, self._width), np.float32), *rows]))

    def _searched(self, picture: Image.Image) -> Float[np.ndarray, "b 15"]:
        """Faces in pixels of the picture: box (left, top, width, height), five landmarks (x, y), confidence."""
        width, height = picture.size
        done: set[tuple[int, int]] = set()
        faces = np.empty((0, 15), np.float32)
        for side in self._sides:
            factor = min(1.0, side / max(width, height))
            small = (max(1, round(width * factor)), max(1, round(height * factor)))
            if small in done:
                continue
            done.add(small)
            shown = picture if small == picture.size else picture.resize(small, Image.Resampling.BILINEAR)
            faces = self._found(_bgr(shown))
            if len(faces):
                faces[:, 0:14:2] *= width / small[0]
                faces[:, 1:14:2] *= height / small[1]
                break
        return faces

    def _found(self, bgr: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "b 15"]:
        self._detector.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, faces = self._detector.detect(bgr)
        return np.empty((0, 15), np.float32) if faces is None else np.array(faces, np.float32)

    def _embedded(self, aligned: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "1 *d"]:
        """Features of one aligned face. Alone, because published graphs have a batch of one built in."""
        import cv2

        mean, size = (self._mean,) * 3, (ALIGNED, ALIGNED)
        self._embedder.setInput(cv2.dnn.blobFromImage(aligned, self._factor, size, mean, swapRB=True, crop=False))
        return np.array(self._embedder.forward(), np.float32)  # a copy: the net writes the next one to the same place


_WHERE: Final = "docs/how-to/choose-rewards.md says which files, and where they are"


def _file(key: str, name: str) -> str:
    path = Path(name).expanduser()
    if path.suffix != ".onnx" or not path.is_file():
        raise ValueError(f"{key} {name!r}: give an existing .onnx file of this machine; {_WHERE}")
    with path.open("rb") as opened:
        if opened.read(8) == b"version ":
            raise ValueError(f"{key} {name!r} is a pointer of Git LFS, not the graph; run 'git lfs pull' there")
    return str(path)


def _bgr(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])


def _brief(error: Any) -> str:
    return " ".join(str(error).split())[:300]
