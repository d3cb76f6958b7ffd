"""Cached conditioning: bit for bit what ``encode`` gives, one entry for equal inputs and another for changed ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.conditioning import opening as module
from customized_grpo.conditioning.cache import BucketCaches, CacheError, ConditioningCache, model_identity
from customized_grpo.conditioning.opening import Process, open_policy
from customized_grpo.identity.hashes import FileHashes
from customized_grpo.policies.base import Policy, load_policy
from customized_grpo.policies.flux import UNO, UNOConfig
from customized_grpo.recipe.drawn import Buckets
from customized_grpo.types import Conditioning, Example

CPU = torch.device("cpu")
PROMPT = "a red dog"


def spec_of(folder: Path | str, **changes: Any) -> UNOConfig:
    given = {
        "model": str(folder),
        "height": 32,
        "width": 32,
        "max_sequence_length": 16,
        "reference_size": 32,
        "min_references": 0,
    }
    return UNOConfig.model_validate(given | changes)


def mini(**changes: Any) -> UNOConfig:
    return spec_of("mini", height=64, width=64, reference_size=64, **changes)


def example(prompt: str = PROMPT, *references: Image.Image) -> Example:
    return Example(key="one", prompt=prompt, references=references)


class Examples(list[Example]):
    """A list is a data set."""


def same(one: Conditioning, other: Conditioning) -> bool:
    def bits(tensor: Tensor) -> tuple[torch.dtype, Tensor]:
        return tensor.dtype, tensor.contiguous().view(torch.uint8) if tensor.numel() else tensor

    return one.tensors.keys() == other.tensors.keys() and all(
        tensor.shape == other.tensors[name].shape
        and bits(tensor)[0] == bits(other.tensors[name])[0]
        and torch.equal(bits(tensor)[1], bits(other.tensors[name])[1])
        for name, tensor in one.tensors.items()
    )


def quiet(_phase: str, _done: int, _total: int) -> None: ...


def place(rank: int = 0, world: int = 1) -> Process:
    return Process(device=CPU, precision="no", rank=rank, world=world, wait=lambda: None, progress=quiet)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_cached_conditioning_is_a_fresh_one_bit_for_bit(
    precision: Any, count: int, references: tuple[Image.Image, ...], tmp_path: Path
) -> None:
    """On the miniature, with no reference, one, and two of different shapes."""
    spec, one = mini(), example(PROMPT, *references[:count])
    cache = ConditioningCache(tmp_path / "cache", spec, precision)
    policy = load_policy(spec, device=CPU, precision=precision)
    fresh = policy.encode(one.prompt, one.references)
    cache.write(one.prompt, one.references, fresh)
    assert same(cache.read(one, CPU), fresh)
    assert same(cache.read(one, torch.device("cpu", 0)), fresh), "as accelerate calls it in one of several processes"
    assert not same(fresh, policy.encode("a cat", one.references))  # the control
    light = load_policy(spec, device=CPU, precision=precision, parts="encoders")
    assert same(light.encode(one.prompt, one.references), fresh)


def test_policies_in_parts(tiny_flux: Path, references: tuple[Image.Image, ...]) -> None:
    """Encoders without a transformer's weights, and a transformer without encoders, do what the whole does."""
    spec = spec_of(tiny_flux)
    whole, light, blind = (
        load_policy(spec, device=CPU, precision="no", parts=parts) for parts in ("all", "encoders", "all but encoders")
    )
    assert {p.device.type for p in light.transformer.parameters()} == {"meta"}
    assert isinstance(blind, UNO)
    assert blind.pipeline.text_encoder is None
    assert blind.pipeline.text_encoder_2 is None
    cond = light.encode(PROMPT, references)
    assert same(cond, whole.encode(PROMPT, references))
    x = torch.randn(2, *whole.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (policy.velocity(x, torch.tensor(0.7), cond) for policy in (whole, blind))
    assert torch.equal(a, b)
    assert torch.equal(whole.decode(x), blind.decode(x))


def path_of(spec: UNOConfig, folder: Path, one: Example | None = None, precision: Any = "no") -> tuple[str, Path]:
    one = one or example()
    path = ConditioningCache(folder, spec, precision).path(one.prompt, one.references)
    return path.name, path


def test_what_is_another_entry(tiny_flux: Path, references: tuple[Image.Image, ...], tmp_path: Path) -> None:
    base, _ = path_of(spec_of(tiny_flux), tmp_path)
    square, wide = references
    dotted = square.copy()
    dotted.putpixel((0, 0), (255, 0, 255))
    others = [
        path_of(spec_of(tiny_flux, max_sequence_length=12), tmp_path),
        path_of(spec_of(tiny_flux, reference_size=48), tmp_path),
        path_of(spec_of(tiny_flux, height=64), tmp_path),  # position ids depend on it
        path_of(spec_of(tiny_flux), tmp_path, precision="bf16"),
        path_of(mini(), tmp_path),
        *(path_of(spec_of(tiny_flux), tmp_path, one) for one in (
            example("a red dog "), example(PROMPT, square), example(PROMPT, dotted), example(PROMPT, square, wide),
            example(PROMPT, wide, square),
        )),
    ]  # fmt: skip
    names = [base, *(name for name, _ in others)]
    assert len(set(names)) == len(names)


def test_what_is_the_same_entry(tiny_flux: Path, tmp_path: Path) -> None:
    base, _ = path_of(spec_of(tiny_flux), tmp_path)
    for changes in (
        {"lora": {"rank": 8}}, {"gradient_checkpointing": True}, {"guidance": 2.0}, {"attention": "native"},
        {"compile": True}, {"quantization": "4bit"}, {"max_references": 2},
    ):  # fmt: skip
        assert path_of(spec_of(tiny_flux, **changes), tmp_path)[0] == base, changes
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tiny_flux.rglob("*"):
        target = moved / file.relative_to(tiny_flux)
        target.mkdir(parents=True) if file.is_dir() else target.write_bytes(file.read_bytes())
    assert path_of(spec_of(moved), tmp_path)[0] == base
    (moved / "transformer" / "config.json").write_text("{}")  # encode doesn't read it
    assert path_of(spec_of(moved), tmp_path)[0] == base
    weights = moved / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert path_of(spec_of(moved), tmp_path)[0] != base


def test_a_model_that_an_option_names_counts_by_content(tiny_flux: Path, tmp_path: Path) -> None:
    class WithEncoder(UNOConfig):
        encoder: str

    def name(folder: Path) -> str:
        given = {**spec_of(tiny_flux).model_dump(), "encoder": str(folder)}
        return path_of(WithEncoder.model_validate(given), tmp_path / "cache")[0]

    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "model.safetensors").write_bytes(b"weights")
    first = name(tmp_path / "one")
    assert name(tmp_path / "two") == first
    (tmp_path / "two" / "model.safetensors").write_bytes(b"others!")
    assert name(tmp_path / "two") != first


def test_files_of_a_model_are_hashed_once(tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def identity() -> dict[str, str]:
        hashes = FileHashes(tmp_path / "hashes.json")
        found = model_identity(str(tiny_flux), None, hashes)
        hashes.save()
        return found

    monkeypatch.setattr("customized_grpo.identity.hashes._GRAIN_NS", -1)  # as if the files had lain there for a while
    first = identity()
    assert "vae/diffusion_pytorch_model.safetensors" in first
    assert not [name for name in first if name.startswith(("transformer/", "scheduler/"))]
    with monkeypatch.context() as patched:
        patched.setattr("customized_grpo.identity.hashes.file_hash", lambda path: pytest.fail(f"{path} is read again"))
        assert identity() == first
    (tmp_path / "hashes.json").write_text("{")
    assert identity() == first


def test_a_hub_id_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {"main": "a" * 40, "v2": "b" * 40}
    repository = tmp_path / "models--org--name"
    for revision, commit in commits.items():
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "model_index.json").write_text("{}")
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    for revision, commit in ((None, commits["main"]), ("v2", commits["v2"])):
        found = model_identity("org/name", revision, FileHashes())
        assert found == {"hub": "org/name", "commit": commit}
    with pytest.raises(ValueError, match="'org/other' can't be looked up"):
        model_identity("org/other", None, FileHashes())


def test_complete_makes_what_is_missing_once(
    tiny_flux: Path, references: tuple[Image.Image, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tiny_flux)
    caches = BucketCaches(tmp_path, Buckets((spec,)), "no")
    cache = caches.of(example())
    data = Examples([example("a dog", references[0]), example("a cat"), example("a dog", references[0])])
    loads, told = [], []

    def load(section: Any, **options: Any) -> Policy:
        loads.append(options["parts"])
        return load_policy(section, **options)

    monkeypatch.setattr(module, "load_policy", load)
    watched = replace(place(), progress=lambda *what: told.append(what))

    jobs = [(data, i) for i in range(3)]
    assert module.complete(caches, jobs, watched) == 2  # two rows are equal
    assert told == [("looking", i, 3) for i in (1, 2, 3)] + [("encoding", i, 2) for i in (1, 2)]
    assert module.complete(caches, jobs, place()) == 0
    assert loads == ["encoders"], "encoders are loaded although nothing is missing"
    path = cache.path(data[1].prompt, ())
    path.write_bytes(path.read_bytes()[:-5])  # a disk that was full
    assert module.complete(caches, jobs, place()) == 1
    assert not [file for file in tmp_path.rglob("*") if file.name.startswith(".")]


def test_processes_share_the_work(tiny_flux: Path, tmp_path: Path) -> None:
    spec, data = spec_of(tiny_flux), Examples([example(f"a dog {i}") for i in range(5)])
    jobs = [(data, i) for i in range(5)]
    caches = BucketCaches(tmp_path, Buckets((spec,)), "no")
    made = [module.complete(caches, jobs, place(rank, 2)) for rank in (1, 0)]
    assert made == [2, 3]
    assert all(caches.of(one).has(one.prompt, ()) for one in data)


def test_open_policy_encodes_or_reads(tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, data = spec_of(tiny_flux), Examples([example("a dog"), example("a cat")])
    _, fresh = open_policy(Buckets((spec,)), None, lambda: pytest.fail("no cache needs no jobs"), place())
    policy, cached = open_policy(Buckets((spec,)), str(tmp_path), lambda: [(data, 0), (data, 1)], place())
    monkeypatch.setattr(UNO, "encode", lambda *_: pytest.fail("encoded again"))
    assert isinstance(policy, UNO)
    assert policy.pipeline.text_encoder_2 is None
    monkeypatch.undo()
    for one in data:
        assert same(cached(one), fresh(one))


def test_a_miss_is_a_clear_error(tiny_flux: Path, tmp_path: Path) -> None:
    cache = ConditioningCache(tmp_path, spec_of(tiny_flux), "no")
    with pytest.raises(CacheError, match=r"there is no entry for the example 'one'.*run.resume=latest"):
        cache.read(example(), CPU)
    path = cache.path(PROMPT, ())
    path.parent.mkdir()
    path.write_bytes(b"broken")
    with pytest.raises(CacheError, match=r"can't be read"):
        cache.read(example(), CPU)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"run.cache: .* is a file; give a folder"):
        ConditioningCache(file, spec_of(tiny_flux), "no")


def test_an_entry_says_what_it_is(tiny_flux: Path, tmp_path: Path) -> None:
    import safetensors

    cache = ConditioningCache(tmp_path, spec_of(tiny_flux), "bf16")
    policy = load_policy(spec_of(tiny_flux), device=CPU, precision="bf16", parts="encoders")
    cache.write(PROMPT, (), policy.encode(PROMPT, ()))
    with safetensors.safe_open(str(cache.path(PROMPT, ())), framework="pt") as opened:
        header = opened.metadata()
    assert header["prompt"] == PROMPT
    assert json.loads(header["about"])["dtype"] == "torch.bfloat16"
    assert header["made_on"].startswith("cpu, ")
