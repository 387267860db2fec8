"""Strict reading of Triton's config.pbtxt, with the fields of its model_config.proto that serving/triton uses."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format

__all__ = ["read_config"]

_FIELD = descriptor_pb2.FieldDescriptorProto
_STRING, _INT64, _INT32, _BOOL = _FIELD.TYPE_STRING, _FIELD.TYPE_INT64, _FIELD.TYPE_INT32, _FIELD.TYPE_BOOL
_TENSOR = (("name", _STRING), ("data_type", "DataType"), ("dims", [_INT64]))
_ENUMS = {
    "DataType": ("TYPE_INVALID", "TYPE_UINT8", "TYPE_UINT16", "TYPE_INT16", "TYPE_FP32", "TYPE_STRING"),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}
_MESSAGES = {
    "ModelInput": (*_TENSOR, ("optional", _BOOL)),
    "ModelOutput": _TENSOR,
    "ModelInstanceGroup": (("kind", "Kind"), ("count", _INT32)),
    "ModelParameter": (("string_value", _STRING),),
    "Parameters": (("key", _STRING), ("value", "ModelParameter")),  # a map is a list of such pairs in the text format
    "ModelConfig": (
        ("name", _STRING),
        ("backend", _STRING),
        ("max_batch_size", _INT32),
        ("input", ["ModelInput"]),
        ("output", ["ModelOutput"]),
        ("instance_group", ["ModelInstanceGroup"]),
        ("parameters", ["Parameters"]),
    ),
}


def read_config(text: str) -> dict[str, Any]:
    """Return a config as the dict that Triton passes to the backend as JSON.

    Raises:
        google.protobuf.text_format.ParseError: a mistake in the syntax, or an unknown field or value.
    """
    message = text_format.Parse(text, _model_config()())
    config = json_format.MessageToDict(message, preserving_proto_field_name=True)
    for tensor in (*config["input"], *config["output"]):
        tensor["dims"] = [int(each) for each in tensor["dims"]]  # Triton's JSON has numbers
    config["parameters"] = {pair["key"]: pair["value"] for pair in config["parameters"]}
    config.setdefault("max_batch_size", 0)
    return config


def _model_config() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            repeated = isinstance(kind, list)
            kind = kind[0] if repeated else kind
            added = message.field.add(name=field, number=number)
            added.label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            if isinstance(kind, str):
                added.type = _FIELD.TYPE_ENUM if kind in _ENUMS else _FIELD.TYPE_MESSAGE
                added.type_name = f".inference.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
