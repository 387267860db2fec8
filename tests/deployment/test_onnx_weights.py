"""Weights in int8 and the optimizations of onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from hrmedseg_onnx.model import INPUT, OUTPUT
from nnunet_hrmedseg.deployment.onnx_weights import store_weights


def logits_of(model: onnx.ModelProto, image: np.ndarray, level: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: image})[0]


@pytest.mark.slow
def test_optimization_does_not_change_int8_weights(pictures):
    """Some releases of onnxruntime set negative weights to 0 in a DequantizeLinear before a Reshape: issue 28491."""
    model = onnx.load(pictures.folder / "fold_0.onnx")
    store_weights(model, "int8")
    assert any(initializer.data_type == onnx.TensorProto.INT8 for initializer in model.graph.initializer)
    assert "DequantizeLinear" not in {node.op_type for node in model.graph.node}
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 48)).astype(np.float32)
    plain, optimized = (logits_of(model, image, level) for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"))
    np.testing.assert_allclose(optimized, plain, atol=1e-4)


def test_arranged_weight_gives_the_product_of_the_original():
    """Torch leaves large weights behind a Reshape and a Transpose in the graph; they would be stored as float32."""
    random = np.random.default_rng(0)
    weight, image = random.normal(size=(8, 6)).astype(np.float32), random.normal(size=(2, 5, 6)).astype(np.float32)
    helper = onnx.helper
    nodes = [
        helper.make_node("Reshape", ["weight", "shape"], ["heads"]),
        helper.make_node("Transpose", ["heads"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", [INPUT, "turned"], [OUTPUT]),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in (INPUT, OUTPUT)]
    ends[0].type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in image.shape)
    constants = [onnx.numpy_helper.from_array(weight, "weight")]
    constants.append(onnx.numpy_helper.from_array(np.array([2, -1, 6]), "shape"))
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    store_weights(model, "int8")
    assert {node.op_type for node in model.graph.node} == {"Cast", "Mul", "MatMul"}
    expected = image @ weight.reshape(2, 4, 6).transpose(0, 2, 1)
    np.testing.assert_allclose(logits_of(model, image, "ORT_ENABLE_ALL"), expected, atol=0.05)
