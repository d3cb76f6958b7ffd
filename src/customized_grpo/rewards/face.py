"""Identity of people: 100 x the cosine of face embeddings of the generated image and the references.

One person is compared with the largest face of an image, as users of InsightFace do. R persons are compared with its R
largest faces, each with one at most, in the best assignment (the Hungarian method), as in UMO (arXiv 2509.06818).
Dimensions: G group size, V references, R persons, B faces, D features, H x W pixels.
"""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Literal, final

import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from pydantic import Field
from torch import Tensor

from customized_grpo.recipe.limits import Need
from customized_grpo.recipe.scorers import HeldModel, Lack, ModelRewardSpec
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.face_models import FaceEncoder, Normalization
from customized_grpo.rewards.features import FeatureCache, mean_cosine, require_references, to_pil
from customized_grpo.rewards.matching import assignment
from customized_grpo.rewards.segmenter import views_of_subjects
from customized_grpo.types import Example

_log = logging.getLogger(__name__)


@final
class Face(Reward):
    """Similarity of faces to those of the references, in [-100, 100] before penalties."""

    @final
    class Config(ModelRewardSpec):
        """A reward's section with ``type: face``."""

        model: str = Field(
            min_length=1,
            description="the embedder as .onnx, a file: SFace of opencv_zoo (Apache-2.0), or ArcFace of InsightFace, "
            "whose weights are for non-commercial research only",
        )
        detector: str = Field(
            min_length=1, description="YuNet of March 2023 or later as .onnx, a file: of opencv_zoo (MIT)"
        )
        normalization: Normalization = Field(
            description="what the embedder reads: sface: RGB from 0 to 255; arcface: RGB from -1 to 1",
        )
        threshold: float = Field(default=0.9, gt=0.0, lt=1.0, description="lower limit on the confidence of a face")
        longest_sides: tuple[Annotated[int, Field(ge=32)], ...] = Field(
            default=(640, 320),
            min_length=1,
            description="longer sides in pixels to which a larger picture is shrunk for the detector, in turn until a "
            "face is found; faces are then cut from the picture as it is",
        )
        missing_face: Literal["error", "skip"] = Field(
            default="error",
            description="for an example without a face in any reference: stop the run, or leave its group unscored",
        )
        not_found: Literal["skip", "lowest"] = Field(
            default="skip", description="for a generated image without a face: leave it unscored, or give -100"
        )
        missing: float = Field(
            default=10.0, ge=0.0, description="points off for a person without a face, in an image that has others"
        )
        surplus: float = Field(default=0.0, ge=0.0, description="points off for a face beyond the number of persons")

        def held_models(self) -> Sequence[HeldModel]:
            """Detector and embedder, which stay on the CPU."""
            return tuple(HeldModel(name, images=1, on_cpu=True) for name in (self.detector, self.model))

        def lacks(self) -> list[Lack]:
            """OpenCV."""
            advice = "pip install 'customized-grpo[face]'"
            return [] if find_spec("cv2") else [Lack("the package 'opencv-python-headless' is not installed", advice)]

        def needs(self) -> frozenset[Need]:
            """References."""
            return frozenset({"reference"})

    def __init__(self, config: Config, *, device: torch.device) -> None:
        self._config = config
        self._encode = FaceEncoder(
            config.model,
            config.detector,
            normalization=config.normalization,
            threshold=config.threshold,
            sides=config.longest_sides,
        )
        self._references = FeatureCache(self._largest)
        self._said = False

    def __call__(self, example: Example, images: UInt8[Tensor, "g h w 3"]) -> Float[Tensor, " g"]:
        """Similarity of each image's faces to the persons of the references, see ``paired_similarity``.

        NaN for an image without a face (with ``not_found: lowest`` -100), and for the whole group if no reference has
        one and ``missing_face`` is ``skip``.

        Raises:
            ValueError: the example has no reference, or none with a face.
        """
        require_references(example)
        persons = self._persons(example)
        if not persons:
            return torch.full((len(images),), torch.nan)
        return torch.tensor([self._score(persons, picture) for picture in to_pil(images)])

    def _persons(self, example: Example) -> list[Float[Tensor, "v d"]]:
        """Embeddings of each person's views that show a face; empty if no reference does and that is to be skipped."""
        views = self._references(example.references)
        seen = ~views.isnan().any(dim=-1)
        if not bool(seen.any()):
            if self._config.missing_face == "skip":
                self.reason = "its references show no face (missing_face: skip)"
                return []
            raise ValueError(
                f"example {example.key!r}: the detector finds no face in its {len(views)} references; leave the "
                "example out, or set missing_face: skip in a new run, which leaves its images unscored, or a lower "
                f"threshold than {self._config.threshold}"
            )
        if not bool(seen.all()) and not self._said:
            self._said = True
            _log.warning(
                "%d of the %d references of example %r show no face and are not compared (said once)",
                int((~seen).sum()),
                len(views),
                example.key,
            )
        grouped = views_of_subjects(example.subject, example.extra, len(views))
        each = [views[[at for at in places if seen[at]]] for _, places in grouped]
        return [one for one in each if len(one)]

    def _score(self, persons: Sequence[Float[Tensor, "v d"]], picture: Image) -> float:
        faces = self._encode(picture)
        if not len(faces):
            self.reason = "the detector finds no face in it (not_found: skip)"
            return -100.0 if self._config.not_found == "lowest" else torch.nan
        similarity = torch.stack([mean_cosine(faces, views) for views in persons])
        if not bool(similarity.isfinite().all()):
            self.reason = "the embedding of a face in it is 0 or not finite"
            return torch.nan
        return paired_similarity(similarity, missing=self._config.missing, surplus=self._config.surplus)

    def _largest(self, pictures: Sequence[Image]) -> Float[Tensor, "n d"]:
        """Embedding of the largest face of each picture; NaN where there is none."""
        found = [self._encode(picture) for picture in pictures]
        if not all(bool(one.isfinite().all()) for one in found):
            raise ValueError(
                f"model {self._config.model!r} makes NaN or infinite numbers from the face of a reference; it may read "
                f"another normalization than {self._config.normalization}"
            )
        return torch.stack([one[0] if len(one) else torch.full(one.shape[1:], torch.nan) for one in found])


def paired_similarity(similarity: Float[Tensor, "r b"], *, missing: float, surplus: float) -> float:
    """The highest mean similarity of R persons to the R largest faces, each with one other at most.

    (sum of the pairs' similarities - missing x persons without a face - surplus x faces beyond R) / R. Faces beyond R
    are bystanders, not candidates: an image can't gain by showing many. For one person and ``surplus`` 0 it is the
    plain similarity to the largest face.

    Args:
        similarity: of each person to each face, the largest face first; finite.
        missing: points off, at least 0.
        surplus: points off, at least 0.
    """
    persons, faces = similarity.shape
    worth = similarity[:, :persons].double().numpy()
    pairs = assignment(worth)
    total = sum(float(worth[pair]) for pair in pairs)
    return (total - missing * (persons - len(pairs)) - surplus * max(0, faces - persons)) / persons
