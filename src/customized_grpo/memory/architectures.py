"""Names and shapes of the policies' three transformers, so that an estimate needs no diffusers.

Importing diffusers and building a model on the meta device takes seconds. The tests compare every line with what
diffusers builds. D is the width, H that of a head, C channels of a token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any

from customized_grpo.memory.skeleton import Layers, LinearShape, Skeleton


@dataclass(frozen=True, slots=True)
class _RMSNorm:
    name: str
    width: int


@dataclass(frozen=True, slots=True)
class _LayerNorm:
    """Without weights of its own."""

    name: str


_Part = LinearShape | _RMSNorm | _LayerNorm
_Parts = Sequence[_Part]
_SHAPELESS = frozenset({"axes_dims_rope", "rope_theta", "eps", "zero_cond_t", "use_layer3d_rope"})
"""Keys of a configuration that don't affect shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Architecture:
    defaults: Mapping[str, Any]
    """Defaults of diffusers' class for keys that a configuration may omit."""
    parts: Callable[[Any], tuple[_Parts, Sequence[tuple[str, int, _Parts]], _Parts]]
    """From a configuration: layers before the blocks; name, number and layers of each kind of block; layers after."""
    bias: bool
    """True if linear layers have a bias."""


def known_skeleton(transformer: str, config: Mapping[str, Any]) -> Skeleton | None:
    """The skeleton of a transformer of diffusers.

    Args:
        transformer: name of its class.
        config: its configuration; what it leaves out is diffusers' default.

    Returns:
        None where the class is another, or where its configuration has a key that is not known here.
    """
    one = ARCHITECTURES.get(transformer)
    if one is None:
        return None
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    if any(own[key] for key in own.keys() - one.defaults.keys() - _SHAPELESS):
        return None
    settings = SimpleNamespace(**{**one.defaults, **own})
    before, kinds, behind = one.parts(settings)
    blocks = [(f"{name}.{n}", parts) for name, count, parts in kinds for n in range(count)]
    inside = chain.from_iterable(_prefixed(f"{name}.", parts) for name, parts in blocks)
    made = {name: _layers(parts, one.bias) for name, _, parts in kinds}
    return Skeleton(
        whole=_layers([*before, *inside, *behind], one.bias),
        blocks=tuple((name, made[name.rpartition(".")[0]]) for name, _ in blocks),
        config=settings,
    )


def _prefixed(prefix: str, parts: _Parts) -> list[_Part]:
    found: list[_Part] = []
    for part in parts:
        match part:
            case LinearShape(name, inputs, outputs):
                found.append(LinearShape(prefix + name, inputs, outputs))
            case _RMSNorm(name, width):
                found.append(_RMSNorm(prefix + name, width))
            case _LayerNorm(name):
                found.append(_LayerNorm(prefix + name))
    return found


def _layers(parts: _Parts, bias: bool) -> Layers:
    parameters: dict[str, int] = {}
    for part in parts:
        match part:
            case LinearShape(name, inputs, outputs):
                parameters[f"{name}.weight"] = inputs * outputs
                if bias:
                    parameters[f"{name}.bias"] = outputs
            case _RMSNorm(name, width):
                parameters[f"{name}.weight"] = width
    return Layers(
        parameters=parameters,
        linears=tuple(part for part in parts if isinstance(part, LinearShape)),
        layer_norms=tuple(part.name for part in parts if isinstance(part, _LayerNorm)),
    )


def _chain(name: str, *widths: int) -> _Parts:
    """An embedding: ``linear_1`` and ``linear_2``."""
    return [LinearShape(f"{name}.linear_{n}", *widths[n - 1 : n + 1]) for n in (1, 2)]


def _squares(d: int, *names: str) -> _Parts:
    return [LinearShape(f"attn.{name}", d, d) for name in names]


def _norms(head: int, *names: str) -> _Parts:
    return [_RMSNorm(f"attn.{name}", head) for name in names]


def _mlp(name: str, d: int) -> _Parts:
    return [LinearShape(f"{name}.net.0.proj", d, 4 * d), LinearShape(f"{name}.net.2", 4 * d, d)]


def _output(d: int, channels: int) -> _Parts:
    return [
        LinearShape("norm_out.linear", d, 2 * d),
        _LayerNorm("norm_out.norm"),
        LinearShape("proj_out", d, channels),
    ]


_Q_K_V = ("to_q", "to_k", "to_v")
_NORMS, _ADDED_NORMS = ("norm_q", "norm_k"), ("norm_added_q", "norm_added_k")


def _flux(c: Any) -> tuple[_Parts, Sequence[tuple[str, int, _Parts]], _Parts]:
    h = c.attention_head_dim
    d = c.num_attention_heads * h
    before = [
        *_chain("time_text_embed.timestep_embedder", 256, d, d),
        *(_chain("time_text_embed.guidance_embedder", 256, d, d) if c.guidance_embeds else []),
        *_chain("time_text_embed.text_embedder", c.pooled_projection_dim, d, d),
        LinearShape("context_embedder", c.joint_attention_dim, d),
        LinearShape("x_embedder", c.in_channels, d),
    ]
    double = [
        LinearShape("norm1.linear", d, 6 * d),
        _LayerNorm("norm1.norm"),
        LinearShape("norm1_context.linear", d, 6 * d),
        _LayerNorm("norm1_context.norm"),
        *_norms(h, *_NORMS),
        *_squares(d, *_Q_K_V, "to_out.0"),
        *_norms(h, *_ADDED_NORMS),
        *_squares(d, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        _LayerNorm("norm2"),
        *_mlp("ff", d),
        _LayerNorm("norm2_context"),
        *_mlp("ff_context", d),
    ]
    single = [
        LinearShape("norm.linear", d, 3 * d),
        _LayerNorm("norm.norm"),
        LinearShape("proj_mlp", d, 4 * d),
        LinearShape("proj_out", 5 * d, d),
        *_norms(h, *_NORMS),
        *_squares(d, *_Q_K_V),
    ]
    kinds = (
        ("transformer_blocks", c.num_layers, double),
        ("single_transformer_blocks", c.num_single_layers, single),
    )
    return before, kinds, _output(d, c.patch_size**2 * (c.out_channels or c.in_channels))


def _flux2(c: Any) -> tuple[_Parts, Sequence[tuple[str, int, _Parts]], _Parts]:
    h = c.attention_head_dim
    d = c.num_attention_heads * h
    hidden, time = int(d * c.mlp_ratio), c.timestep_guidance_channels
    before = [
        *_chain("time_guidance_embed.timestep_embedder", time, d, d),
        *(_chain("time_guidance_embed.guidance_embedder", time, d, d) if c.guidance_embeds else []),
        LinearShape("double_stream_modulation_img.linear", d, 6 * d),
        LinearShape("double_stream_modulation_txt.linear", d, 6 * d),
        LinearShape("single_stream_modulation.linear", d, 3 * d),
        LinearShape("x_embedder", c.in_channels, d),
        LinearShape("context_embedder", c.joint_attention_dim, d),
    ]
    double = [
        _LayerNorm("norm1"),
        _LayerNorm("norm1_context"),
        *_squares(d, *_Q_K_V),
        *_norms(h, *_NORMS),
        *_squares(d, "to_out.0"),
        *_norms(h, *_ADDED_NORMS),
        *_squares(d, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        _LayerNorm("norm2"),
        LinearShape("ff.linear_in", d, 2 * hidden),
        LinearShape("ff.linear_out", hidden, d),
        _LayerNorm("norm2_context"),
        LinearShape("ff_context.linear_in", d, 2 * hidden),
        LinearShape("ff_context.linear_out", hidden, d),
    ]
    single = [
        _LayerNorm("norm"),
        LinearShape("attn.to_qkv_mlp_proj", d, 3 * d + 2 * hidden),
        *_norms(h, *_NORMS),
        LinearShape("attn.to_out", d + hidden, d),
    ]
    kinds = (
        ("transformer_blocks", c.num_layers, double),
        ("single_transformer_blocks", c.num_single_layers, single),
    )
    return before, kinds, _output(d, c.patch_size**2 * (c.out_channels or c.in_channels))


def _qwen_image(c: Any) -> tuple[_Parts, Sequence[tuple[str, int, _Parts]], _Parts]:
    h = c.attention_head_dim
    d = c.num_attention_heads * h
    before = [
        *_chain("time_text_embed.timestep_embedder", 256, d, d),
        _RMSNorm("txt_norm", c.joint_attention_dim),
        LinearShape("img_in", c.in_channels, d),
        LinearShape("txt_in", c.joint_attention_dim, d),
    ]
    block = [
        LinearShape("img_mod.1", d, 6 * d),
        _LayerNorm("img_norm1"),
        *_norms(h, *_NORMS),
        *_squares(d, *_Q_K_V, "add_k_proj", "add_v_proj", "add_q_proj", "to_out.0", "to_add_out"),
        *_norms(h, *_ADDED_NORMS),
        _LayerNorm("img_norm2"),
        *_mlp("img_mlp", d),
        LinearShape("txt_mod.1", d, 6 * d),
        _LayerNorm("txt_norm1"),
        _LayerNorm("txt_norm2"),
        *_mlp("txt_mlp", d),
    ]
    kinds = [("transformer_blocks", c.num_layers, block)]
    return before, kinds, _output(d, c.patch_size**2 * (c.out_channels or c.in_channels))


ARCHITECTURES: Mapping[str, _Architecture] = {
    "FluxTransformer2DModel": _Architecture(
        defaults={
            "patch_size": 1, "in_channels": 64, "out_channels": None, "num_layers": 19, "num_single_layers": 38,
            "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
            "pooled_projection_dim": 768, "guidance_embeds": False,
        },
        parts=_flux,
        bias=True,
    ),
    "Flux2Transformer2DModel": _Architecture(
        defaults={
            "patch_size": 1, "in_channels": 128, "out_channels": None, "num_layers": 8, "num_single_layers": 48,
            "attention_head_dim": 128, "num_attention_heads": 48, "joint_attention_dim": 15360, "mlp_ratio": 3.0,
            "timestep_guidance_channels": 256, "guidance_embeds": True,
        },
        parts=_flux2,
        bias=False,
    ),
    "QwenImageTransformer2DModel": _Architecture(
        defaults={
            "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60, "attention_head_dim": 128,
            "num_attention_heads": 24, "joint_attention_dim": 3584,
        },
        parts=_qwen_image,
        bias=True,
    ),
}  # fmt: skip
