"""Smaller ONNX files: weights stored as float16 or int8, with computation in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["store_weights"]

# operator -> axis of the outputs in its weight, which is the second input
OUTPUT_AXIS = {"MatMul": -1, "Gemm": -1, "Conv": 0, "ConvTranspose": 1}

LARGEST_INT8 = 127


def store_weights(model: onnx.ModelProto, kind: str) -> None:
    """Store the weights of all products of a model in another number format, in place.

    They are converted back once when the model is loaded. Biases, norms and positions stay float32: they are few, and
    positions need the precision.

    Args:
        model: the ONNX model.
        kind: "float16"; "int8", with one scale for each output channel; "float32" changes nothing.
    """
    import onnx
    from onnx import helper, numpy_helper

    if kind == "float32":
        return
    graph = model.graph
    _arrange_weights(graph)
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
            # not DequantizeLinear, which onnxruntime would repeat for every image, and which some releases compute
            # wrongly in front of a Reshape (onnxruntime issue 28491)
            widening.append(helper.make_node("Mul", [widened, scales], [name]))
        widening.insert(0, helper.make_node("Cast", [narrow], [widened], to=onnx.TensorProto.FLOAT))
        graph.initializer.remove(initializers[name])
        graph.initializer.extend(new)
    # in front, because a node must follow the nodes that compute its inputs
    nodes = [*widening, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _arrange_weights(graph: onnx.GraphProto) -> None:
    """Replace reshaped and transposed weights by their results, so that products have weights as their inputs."""
    from onnx import helper, numpy_helper

    initializers = {initializer.name: initializer for initializer in graph.initializer}
    for node in list(graph.node):
        if node.op_type not in ("Reshape", "Transpose") or not all(name in initializers for name in node.input):
            continue
        value, *shape = (numpy_helper.to_array(initializers[name]) for name in node.input)
        if node.op_type == "Transpose":
            axes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            arranged = value.transpose(axes.get("perm"))
        elif 0 in shape[0]:  # the size of the same axis of the input, or no size
            continue
        else:
            arranged = value.reshape(shape[0])
        (name,) = node.output
        initializers[name] = numpy_helper.from_array(arranged, name)
        graph.initializer.append(initializers[name])
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _output_axis(node: onnx.NodeProto) -> int:
    transposed = node.op_type == "Gemm" and any(each.name == "transB" and each.i for each in node.attribute)
    return 0 if transposed else OUTPUT_AXIS[node.op_type]


def _as_int8(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 values of the same shape, and their scale for each slice along `axis`."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    scale = np.abs(weight).max(axis=others, keepdims=True) / np.float32(LARGEST_INT8)
    scale[scale == 0] = 1
    return np.round(weight / scale).astype(np.int8), scale
