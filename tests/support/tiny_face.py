"""ONNX graphs of a few kilobytes with the inputs and outputs of YuNet and of face embedders, and pictures with faces.

A face is a square of smooth colours, which are its person, on grey. The block of 8 x 8 pixels in its middle says where
it is and how large: blue, with a red that grows with the logarithm of the side. The detector reads no more than that.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

CELL = 8
RED = 40.0
"""Red of a block per unit of the logarithm of the face's side in pixels."""
LANDMARKS = ((-0.17, -0.11), (0.17, -0.11), (0.0, 0.09), (-0.14, 0.28), (0.14, 0.28))
"""Eyes, nose and corners of the mouth from a face's middle, in its sides."""
STRIDES = (8, 16, 32)


class Graph:
    """Nodes and weights on the way to a file."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, source: str, *weights: np.ndarray, name: str = "", **attributes: object) -> str:
        """Append a node on one tensor and constants; the name of what it gives."""
        name = name or f"{kind}_{len(self.nodes)}"
        names = [f"{name}_{at}" for at in range(len(weights))]
        self.weights += [numpy_helper.from_array(values, one) for one, values in zip(names, weights, strict=True)]
        self.nodes.append(helper.make_node(kind, [source, *names], [name], **attributes))
        return name

    def save(self, path: Path, given: tuple[str, list[int | str]], outputs: dict[str, list[int | str | None]]) -> Path:
        """Write it."""
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        start = helper.make_tensor_value_info(given[0], TensorProto.FLOAT, given[1])
        graph = helper.make_graph(self.nodes, path.stem, [start], ends, initializer=self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def _dense(rows: Sequence[Sequence[float]], bias: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a convolution of one pixel."""
    return np.array(rows, np.float32)[:, :, None, None], np.array(bias, np.float32)


def save_detector(path: Path, *, fixed: bool = True, strides: Sequence[int] = STRIDES) -> Path:
    """A graph of YuNet's twelve outputs, which finds the blocks at stride 8 and nothing at 16 and 32.

    Args:
        path: the file.
        fixed: whether its input declares 640 x 640, as YuNet of March 2023 does, or any size, as that of May 2026.
        strides: strides of which it has the outputs.
    """
    graph = Graph()
    mean = np.zeros((3, 3, CELL, CELL), np.float32)
    mean[range(3), range(3)] = 1 / CELL**2
    colours = graph.add("Conv", "input", mean, strides=[CELL, CELL])  # blue, green, red; 0 to 255
    for stride in strides:
        steps = {"strides": [stride // CELL] * 2}
        block = _dense([[0.06, -0.06, 0.0]], [-9.0]) if stride == CELL else _dense([[0.0] * 3], [-20.0])
        size = [0.0, 0.0, 1 / RED]
        side = graph.add("Exp", graph.add("Conv", colours, *_dense([size], [-np.log(stride)]), **steps))
        heads = {
            "cls": graph.add("Sigmoid", graph.add("Conv", colours, *block, **steps)),
            "obj": graph.add("Sigmoid", graph.add("Conv", colours, *block, **steps)),
            "bbox": graph.add(
                "Conv",
                colours,
                *_dense([[0.0] * 3, [0.0] * 3, size, size], [0.5, 0.5, -np.log(stride), -np.log(stride)]),
                **steps,
            ),
            "kps": graph.add("Conv", side, *_dense([[part] for place in LANDMARKS for part in place], [0.5] * 10)),
        }
        for name, tensor in heads.items():
            rows = graph.add("Transpose", tensor, perm=[0, 2, 3, 1])
            width = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}[name]
            graph.add("Reshape", rows, np.array([1, -1, width], np.int64), name=f"{name}_{stride}")
    widths = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
    outputs = {f"{name}_{stride}": [1, None, width] for name, width in widths.items() for stride in strides}
    return graph.save(path, ("input", [1, 3, *([640, 640] if fixed else ["height", "width"])]), outputs)


def save_embedder(path: Path, *, seed: int = 0, side: int = 112, span: float = 255.0, scale: float = 1.0) -> Path:
    """A random convolution, tanh and linear layer from one face to 16 features, which depend on the input's range.

    Args:
        path: the file.
        seed: of the weights.
        side: of the face in pixels.
        span: of the input's values, for which tanh is made.
        scale: of the last layer.
    """
    draw = np.random.default_rng(seed)
    filters = draw.normal(size=(8, 3, 16, 16)).astype(np.float32)
    filters -= filters.mean(axis=(1, 2, 3), keepdims=True)
    bias = draw.normal(size=8).astype(np.float32)
    last = (draw.normal(size=(8 * (side // 16) ** 2, 16)) * scale / 20).astype(np.float32)
    graph = Graph()
    bent = graph.add("Tanh", graph.add("Conv", "data", filters / (8 * span), bias, strides=[16, 16]))
    graph.add("MatMul", graph.add("Flatten", bent, axis=1), last, name="fc1")
    return graph.save(path, ("data", [1, 3, side, side]), {"fc1": [1, 16]})


def picture(*faces: tuple[int, int, int, int], size: tuple[int, int] = (256, 192)) -> Image.Image:
    """A grey picture with faces.

    Args:
        faces: of each: person, middle x and y (moved to that of a cell), side in pixels.
        size: width and height.
    """
    image = Image.new("RGB", size, (128, 128, 128))
    for person, x, y, side in faces:
        coarse = np.random.default_rng(person).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        coarse[..., 2] //= 2  # a blue below what the detector takes for a block
        left, top = x // CELL * CELL, y // CELL * CELL
        face = Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)
        image.paste(face, (left + CELL // 2 - side // 2, top + CELL // 2 - side // 2))
        image.paste((round(RED * np.log(side)), 0, 255), (left, top, left + CELL, top + CELL))
    return image
