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
