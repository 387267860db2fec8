"""Smaller ONNX files: weights stored as float16 or int8, while everything is computed in float32 as before."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["store_weights"]

# operator -> the axis of its weight, its second input, that runs over outputs
OUTPUT_AXIS = {"MatMul": -1, "Gemm": -1, "Conv": 0, "ConvTranspose": 1}

LARGEST_INT8 = 127


def store_weights(model: onnx.ModelProto, kind: str) -> None:
    """Store the weights of all products of `model` as `kind`, in place; whoever loads it widens them once.

    Biases, norms and positions stay float32: they are few, and positions need their digits.

    Args:
        kind: "float16"; "int8", with one scale for each output channel; "float32" leaves all as it is.
    """
    if kind == "float32":
        return
    graph = model.graph
    initializers = {initializer.name: initializer for initializer in graph.initializer}
    widening = []
    stored = set()
    for node in graph.node:
        name = node.input[1] if node.op_type in OUTPUT_AXIS and len(node.input) > 1 else ""
        if name not in initializers or name in stored:
            continue
        weight = numpy_helper.to_array(initializers[name])
        if weight.dtype != np.float32 or weight.ndim < 2:
            continue
        stored.add(name)
        narrow, widened = f"{name}_{kind}", name
        if kind == "float16":
            new = [numpy_helper.from_array(weight.astype(np.float16), narrow)]
        else:
            whole, scale = _as_int8(weight, _output_axis(node))
            widened, scales = f"{name}_whole", f"{name}_scale"
            new = [numpy_helper.from_array(whole, narrow), numpy_helper.from_array(scale, scales)]
            # not DequantizeLinear: onnxruntime would repeat it for every image
            widening.append(helper.make_node("Mul", [widened, scales], [name]))
        widening.insert(0, helper.make_node("Cast", [narrow], [widened], to=onnx.TensorProto.FLOAT))
        graph.initializer.remove(initializers[name])
        graph.initializer.extend(new)
    # in front: a node comes after all that it takes
    nodes = [*widening, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _output_axis(node: onnx.NodeProto) -> int:
    turned = node.op_type == "Gemm" and any(each.name == "transB" and each.i for each in node.attribute)
    return 0 if turned else OUTPUT_AXIS[node.op_type]


def _as_int8(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers of the same shape, and the scale that they are multiples of, one for each slice along `axis`."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    scale = np.abs(weight).max(axis=others, keepdims=True) / np.float32(LARGEST_INT8)
    scale[scale == 0] = 1
    return np.round(weight / scale).astype(np.int8), scale
