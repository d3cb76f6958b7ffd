"""Disk cache of ``Policy.encode``'s results, so that text encoders needn't stay in memory, or even be loaded.

An entry is a safetensors file, named by a hash of everything that the conditioning depends on: the policy and its
options, the encoders' files or their commit, the dtype, the prompt, and the pixels of the references. Equal inputs
therefore share one entry, whatever run or data set they come from, and a changed input gets another.
"""

import gc
import json
import platform
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal, final

import safetensors
import safetensors.torch
import torch
from PIL.Image import Image

from customized_grpo.atomic import readable, replacing
from customized_grpo.devices import safetensors_name
from customized_grpo.identity.hashes import FileHashes, pixel_hash
from customized_grpo.identity.parts import elsewhere
from customized_grpo.identity.sections import identified, parts_elsewhere
from customized_grpo.paths import INDICES
from customized_grpo.policies.base import dtype_of
from customized_grpo.recipe.drawn import Buckets, size_of
from customized_grpo.recipe.sections import PolicySpec
from customized_grpo.types import Conditioning, Example
from customized_grpo.web.hub import hub_problem

_FORMAT = 2
"""Version of the format, increased when the meaning of an entry changes."""
_HASHES = "hashes.json"
_NOT_READ = ("transformer", "scheduler")
"""Folders of a pipeline that ``encode`` doesn't use."""


class CacheError(ValueError):
    """An entry is missing or can't be read."""


@final
class ConditioningCache:
    """Entries of one policy section in a folder that other sections may share."""

    def __init__(self, folder: str | Path, spec: PolicySpec, precision: Literal["no", "bf16"]) -> None:
        """Identify the model by hashes of its files, computed once, or by its commit in the hub's cache.

        Args:
            folder: created if missing.
            spec: the recipe's section ``policy``.
            precision: ``run.precision``.

        Raises:
            ValueError: the folder is a file, or the model is missing.
        """
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"run.cache: {self.folder} is a file; give a folder")
        options = spec.model_dump(mode="json", exclude=set(spec.not_encoded) | {"model"})
        hashes = FileHashes(self.folder / _HASHES)
        self.about = {
            "format": _FORMAT,
            "options": identified(options, hashes),
            "model": model_identity(spec.source(), options.get("revision"), hashes),
            "dtype": str(dtype_of(precision)),
        }
        hashes.save()

    def path(self, prompt: str, references: Sequence[Image]) -> Path:
        """Path of the entry of a prompt and its references, existing or not."""
        key = {**self.about, "prompt": prompt, "references": [pixel_hash(image) for image in references]}
        name = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def has(self, prompt: str, references: Sequence[Image]) -> bool:
        """True if there is a complete entry; a truncated file doesn't count."""
        try:
            with safetensors.safe_open(str(self.path(prompt, references)), framework="pt"):
                return True
        except (safetensors.SafetensorError, OSError):
            return False

    def write(self, prompt: str, references: Sequence[Image], cond: Conditioning) -> None:
        """Write a conditioning, complete or not at all."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in cond.tensors.items()}
        made_on = {str(tensor.device.type) for tensor in cond.tensors.values()}
        import diffusers
        import transformers

        versions = {library.__name__: library.__version__ for library in (torch, diffusers, transformers)}
        header = {
            "prompt": prompt,
            "about": json.dumps(self.about, sort_keys=True),
            "made_on": f"{'/'.join(sorted(made_on))}, {platform.machine()}, {json.dumps(versions)}",
        }
        with replacing(self.path(prompt, references)) as aside:
            safetensors.torch.save_file(tensors, aside, metadata=header)
            readable(aside)

    def read(self, example: Example, device: torch.device) -> Conditioning:
        """The conditioning of an example, bit for bit as it was written.

        Raises:
            CacheError: there is no complete entry.
        """
        path = self.path(example.prompt, example.references)
        try:
            return Conditioning(safetensors.torch.load_file(path, device=safetensors_name(device)))
        except (safetensors.SafetensorError, OSError) as error:
            reason = "there is no entry" if not path.exists() else f"{path} can't be read ({error})"
            raise CacheError(
                f"run.cache: {reason} for the example {example.key!r} (prompt {example.prompt[:60]!r}), and the "
                f"encoders are not loaded; was {self.folder} changed while it was used? Start the command again - a "
                "training with run.resume=latest -, which makes what is missing"
            ) from error


@final
class BucketCaches:
    """A folder's caches of a policy's section at every size of its buckets.

    Args:
        folder: ``run.cache``.
        buckets: of the recipe, or of its held-out images.
        precision: ``run.precision``.

    Raises:
        ValueError: as ``ConditioningCache``.
    """

    def __init__(self, folder: str | Path, buckets: Buckets, precision: Literal["no", "bf16"]) -> None:
        self.buckets = buckets
        self._of = {size_of(one): ConditioningCache(folder, one, precision) for one in buckets.sections}

    def of(self, example: Example) -> ConditioningCache:
        """The cache that has the conditioning of an example."""
        return self._of[size_of(self.buckets.of(example.size))]


def release(device: torch.device) -> None:
    """Free the memory of a policy that is no longer referenced."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def model_identity(source: str, revision: str | None, hashes: FileHashes) -> dict[str, str]:
    """Identity of a model's content: the commit of a hub id, or hashes of the files that ``encode`` may read.

    Args:
        source: a folder or a hub id.
        revision: revision of a hub id.
        hashes: remembers them, so that 10 GB are read once.

    Raises:
        ValueError: the hub has no such model, or can't be asked.
    """
    if Path(source).is_dir():
        own = hashes.of_folder(Path(source), lambda part: part.parts[0] not in _NOT_READ and part.suffix != ".md")
        return own | _encoders_elsewhere(Path(source), source, hashes)
    import huggingface_hub
    from httpx2 import HTTPError
    from huggingface_hub.errors import EntryNotFoundError

    for name in (*INDICES, "config.json"):
        try:
            file = huggingface_hub.hf_hub_download(source, name, revision=revision)
        except EntryNotFoundError as error:
            reason = error  # a repository without this file, or a local cache without it that can't be completed
        except (OSError, ValueError, HTTPError) as error:
            raise ValueError(_unreachable(source, error)) from error
        else:
            snapshot = Path(file).parent  # .../snapshots/<commit>/model_index.json
            known = {"hub": source, "commit": snapshot.name}
            return known | _encoders_elsewhere(snapshot, source, hashes)
    raise ValueError(_unreachable(source, reason))


def _encoders_elsewhere(folder: Path, source: str, hashes: FileHashes) -> dict[str, str]:
    """Content of what ``encode`` reads and an index places elsewhere; a hub is asked for it, to know the commit."""
    import huggingface_hub
    from httpx2 import HTTPError

    for name, place in elsewhere(folder, source).items():
        if name not in _NOT_READ and not Path(place.source).is_dir():
            wanted = f"{place.inside}/*.json" if place.inside else "*.json"
            try:
                huggingface_hub.snapshot_download(place.source, revision=place.revision, allow_patterns=wanted)
            except (OSError, ValueError, HTTPError) as error:
                raise ValueError(_unreachable(place.source, error)) from error
    return parts_elsewhere(folder, source, hashes, without=_NOT_READ)


def _unreachable(source: str, error: Exception) -> str:
    return f"policy.model: {source!r} can't be looked up ({hub_problem(error, source)}); or give a folder"
