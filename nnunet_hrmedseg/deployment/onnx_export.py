"""Export of a trained model as ONNX files, one for each fold, with `model.json` beside them."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from hrmedseg_onnx.image_files import package_needed
from hrmedseg_onnx.model import INPUT, OUTPUT
from hrmedseg_onnx.providers import open_session
from hrmedseg_onnx.sidecar import READERS, SCHEMES, SIDECAR, Normalization, Sidecar
from nnunet_hrmedseg.deployment.folds import checkpoints_of
from nnunet_hrmedseg.errors import CheckpointError, HRMedSegError, PlanError, SetupError
from nnunet_hrmedseg.io.checkpoints import check_model_folder, load_checkpoint
from nnunet_hrmedseg.io.extras import import_extra
from nnunet_hrmedseg.io.files import (
    check_output_dir,
    make_output_dir,
    read_json_object,
    replace_directory,
    reporting_write_errors,
)
from nnunet_hrmedseg.io.hub import local_path
from nnunet_hrmedseg.io.json_values import numeric_labels
from nnunet_hrmedseg.nnunet_versions import find_trainer
from nnunet_hrmedseg.plans.configurations import resolve_configuration
from nnunet_hrmedseg.plans.overrides import is_hrmedseg_configuration
from nnunet_hrmedseg.plans.specs import find_spec as find_network
from nnunet_hrmedseg.plans.trained_with import check_trained_with

__all__ = ["LARGEST_DIFFERENCE", "OnnxExport", "export_onnx"]

LARGEST_DIFFERENCE = 1e-3
"""Largest allowed difference between logits of an ONNX file and of the network in torch."""

LARGEST_BATCH = 64  # torch.export needs a bound


@dataclass(frozen=True)
class OnnxExport:
    """Result of `export_onnx`.

    Attributes:
        folder: the folder that was written, for `OnnxModel` and `hrmedseg-onnx -m`.
        files: fold -> its ONNX file.
        logit_differences: fold -> largest difference of a logit from PyTorch, on random input.
        reader_package: package that prediction needs to read the model's images in addition to numpy, onnxruntime,
            Pillow and tifffile; empty if there is none.
    """

    folder: Path
    files: dict[str, Path]
    logit_differences: dict[str, float]
    reader_package: str


def export_onnx(
    *,
    model: str | os.PathLike,
    output: str | os.PathLike,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    weights: str = "float32",
    overwrite: bool = False,
) -> OnnxExport:
    """Write a trained model as ONNX files, one for each fold, and compare each file with PyTorch.

    The output is written as a whole or not at all.

    Args:
        model: `nnUNet_results/DatasetNNN_Name/TRAINER__PLANS__CONFIGURATION` of HRMedSeg or HERSeg; or its name on the
            hub, hf://OWNER/NAME/DatasetNNN_Name/...
        output: folder to write.
        folds: folds to export; None: all trained folds (0, 1, ...), or `all` if there is no other.
        checkpoint: name of the checkpoint file in each fold.
        weights: number format of stored weights: "float32", "float16" or "int8".
        overwrite: replace an earlier export.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: the model does not exist, is of another network, or an exported file differs from PyTorch.
        PlanError: the model's plan is not supported by prediction without nnU-Net.
        SetupError: a package is missing, or `output` exists or cannot be written.

    Examples:
        >>> from nnunet_hrmedseg import OnnxModel, export_onnx
        >>> model = "nnUNet_results/Dataset001_Photos/nnUNetTrainerHRMedSeg__nnUNetPlans__2d"
        >>> exported = export_onnx(model=model, output="photos_onnx")
        >>> sorted(path.name for path in exported.folder.iterdir())
        ['fold_0.onnx', 'model.json']
        >>> OnnxModel(exported.folder).sidecar.channels
        ['R', 'G', 'B']
    """
    model, output = local_path(model), Path(output)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(name, "onnx", "the export of ONNX files")
    _check_replaceable(output, overwrite)
    check_output_dir(output.parent)
    files = checkpoints_of(model, folds, checkpoint, all_beside_others=False)  # prediction averages over them
    predictor = _load_predictor(model, files)
    network: Any = getattr(predictor.network, "_orig_mod", predictor.network)  # unwrapped from torch.compile
    network.eval()
    network.cpu_bfloat16 = False
    sidecar = _sidecar(predictor, list(files), weights)

    make_output_dir(output.parent)
    graph = _graph(network, sidecar)
    with reporting_write_errors(output):
        _write(output, graph, network, predictor.list_of_parameters, sidecar)
    return OnnxExport(
        output,
        {fold: output / name for fold, name in sidecar.folds.items()},
        dict(sidecar.logit_difference),
        package_needed(sidecar.image_reader),
    )


def _write(output: Path, graph: Any, network: nn.Module, parameters: Sequence[Any], sidecar: Sidecar) -> None:
    """Write the output folder. `parameters` has a state dict for each fold of `sidecar`."""
    # beside the output, because a rename needs the same disk
    with tempfile.TemporaryDirectory(prefix=f".{output.name}_incomplete_", dir=output.parent) as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        for (fold, name), state in zip(sidecar.folds.items(), parameters, strict=True):
            network.load_state_dict(state)
            sidecar.logit_difference[fold] = _write_fold(graph, network, folder / name, sidecar)
        sidecar.write(folder)
        replace_directory(folder, output)


def _check_replaceable(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise SetupError(f"{output} is a file. Give another folder.")
    others = sorted({file.name for file in output.iterdir()} - _names_of_export(output))
    if others:
        raise SetupError(
            f"{output} holds files that are not of an export, such as {others[0]}. Give another folder, or remove "
            f"this one."
        )
    if any(output.iterdir()) and not overwrite:
        raise SetupError(f"{output} holds an export already. Add --overwrite to replace it.")


def _names_of_export(folder: Path) -> set[str]:
    """Return model.json and the files it lists, of any version; empty if it cannot be read."""
    try:
        content = read_json_object(folder / SIDECAR, "export")
        return {SIDECAR, *content["folds"].values()} if isinstance(content["format"], int) else set()
    except (HRMedSegError, KeyError, AttributeError, TypeError):
        return set()


def _load_predictor(model: Path, files: Mapping[str, Path]) -> nnUNetPredictor:
    """Return nnU-Net's predictor with an HRMedSeg or HERSeg model. `files`: fold -> checkpoint."""
    plans = read_json_object(model / "plans.json", "nnU-Net plan")
    file = next(iter(files.values()))
    saved = load_checkpoint(file)
    try:
        configuration, trainer = saved["init_args"]["configuration"], saved["trainer_name"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read as a checkpoint of nnU-Net: {error} is missing.") from error
    resolved = resolve_configuration(plans, configuration, advice="Are checkpoint and plans.json of one training?")
    if find_network(resolved["architecture"]["network_class_name"]) is None:
        _import_trainer(trainer)  # which may register its network
    if not is_hrmedseg_configuration(resolved):
        network = resolved.get("architecture", {}).get("network_class_name", "another network")
        raise CheckpointError(
            f"{model} was trained with {trainer}, configuration {configuration}: {network.rpartition('.')[2]} with "
            f"{resolved.get('preprocessor_name')}. hrmedseg export --onnx writes HRMedSeg and HERSeg, which predict "
            f"the whole image on a canvas; other networks predict patches and need nnU-Net."
        )
    for each in files.values():  # before nnU-Net opens them, which executes their content
        check_model_folder(model, each)
        check_trained_with(load_checkpoint(each), plans, str(each), str(model / "plans.json"))
    with redirect_stdout(io.StringIO()):  # nnU-Net prints irrelevant messages
        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), tuple(files), file.name)
    return predictor


def _import_trainer(name: str) -> None:
    """Import the module of a trainer; nothing happens if there is none, which nnU-Net reports later."""
    with redirect_stdout(io.StringIO()), suppress(RuntimeError, AssertionError):
        find_trainer(name)


def _sidecar(predictor: nnUNetPredictor, folds: Sequence[str], weights: str) -> Sidecar:
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    _check_exportable(predictor)
    spec = find_network(configuration.network_arch_class_name)
    assert spec is not None  # checked when the model was loaded
    intensities = plans.foreground_intensity_properties_per_channel
    names = predictor.dataset_json.get("channel_names") or predictor.dataset_json["modality"]
    normalization = [
        Normalization(scheme, bool(use_mask), intensities[str(c)] if scheme == "CTNormalization" else None)
        for c, (scheme, use_mask) in enumerate(
            zip(configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True)
        )
    ]
    return Sidecar(
        network=spec.name,
        trainer=predictor.trainer_name,
        dataset=plans.dataset_name,
        channels=[str(name) for name in names.values()],
        normalization=normalization,
        canvas=[int(side) for side in configuration.patch_size],
        transpose_forward=[int(axis) for axis in plans.transpose_forward],
        labels=numeric_labels(predictor.dataset_json),
        regions_class_order=predictor.dataset_json.get("regions_class_order"),
        mirror_axes=[int(axis) for axis in predictor.allowed_mirroring_axes or ()],
        image_reader=plans.plans["image_reader_writer"],
        file_ending=predictor.dataset_json["file_ending"],
        weights=weights,
        folds={fold: f"fold_{fold}.onnx" for fold in folds},
        logit_difference={},
    )


def _check_exportable(predictor: nnUNetPredictor) -> None:
    plans, configuration = predictor.plans_manager.plans, predictor.configuration_manager.configuration
    resampling = configuration["resampling_fn_probabilities"]
    arguments = configuration["resampling_fn_probabilities_kwargs"]
    found: list[tuple[str, str, Sequence[str]]] = [
        ("image_reader_writer", plans["image_reader_writer"], READERS),
        ("resampling_fn_probabilities", resampling, ["resample_torch_fornnunet"]),
        ("mode of resampling_fn_probabilities", arguments.get("mode", "linear"), ["linear"]),
        ("label manager", type(predictor.label_manager).__name__, [LabelManager.__name__]),
    ]
    found += [("normalization", scheme, SCHEMES) for scheme in configuration["normalization_schemes"]]
    for what, value, known in found:
        if value not in known:
            raise PlanError(
                f"The {what} of this model is {value}; prediction without nnU-Net has {', '.join(known)}. Predict with "
                f"nnU-Net, or plan and train with one of these."
            )


def _graph(network: nn.Module, sidecar: Sidecar) -> Any:
    """Return the network as an `onnx.ModelProto` whose initializers have the names and values of its state dict."""
    image = torch.zeros(2, len(sidecar.channels), *sidecar.canvas)
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            (image,),
            dynamo=True,
            optimize=False,  # optimization would turn weights of this fold into constants
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _write_fold(graph: Any, network: nn.Module, file: Path, sidecar: Sidecar) -> float:
    """Write the network with its current weights to `file`, and return the largest difference of its logits from torch.

    Raises:
        CheckpointError: it differs by more than LARGEST_DIFFERENCE before its weights are stored in fewer bits.
    """
    import onnx
    from onnxscript import optimizer

    from nnunet_hrmedseg.deployment.onnx_weights import store_weights

    # a batch of 1, while the graph was made with 2: checks that the batch size is not fixed
    image = torch.randn(1, len(sidecar.channels), *sidecar.canvas, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(image).numpy()
    proto = _with_weights(graph, network.state_dict())
    proto = optimizer.optimize(proto)
    _remove_source_info(proto)
    onnx.save(proto, file)
    difference = _difference(file, image, expected)
    if not difference <= LARGEST_DIFFERENCE:
        raise CheckpointError(
            f"The logits of the exported {file.name} differ from those of the network by up to {difference:.2g}, more "
            f"than {LARGEST_DIFFERENCE:g}: nothing was written. Update torch {torch.__version__}, onnx "
            f"{onnx.__version__}, onnxscript and onnxruntime."
        )
    if sidecar.weights != "float32":
        store_weights(proto, sidecar.weights)
        onnx.save(proto, file)
        difference = _difference(file, image, expected)
    return difference


def _with_weights(graph: Any, state: Mapping[str, Tensor]) -> Any:
    from onnx import ModelProto, numpy_helper

    proto = ModelProto()
    proto.CopyFrom(graph)
    for initializer in proto.graph.initializer:
        if initializer.name in state:
            values = state[initializer.name].numpy()
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    return proto


def _remove_source_info(proto: Any) -> None:
    """Remove the source lines that torch stores for each node, with paths of this machine."""
    proto.doc_string = ""
    for part in (proto.graph, *proto.functions):
        part.doc_string = ""
        del part.metadata_props[:]
        for entry in (*part.node, *part.value_info, *getattr(part, "input", ()), *getattr(part, "output", ())):
            if not isinstance(entry, str):
                entry.doc_string = ""
                del entry.metadata_props[:]
    for initializer in proto.graph.initializer:
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    del proto.metadata_props[:]


def _difference(file: Path, image: Tensor, expected: np.ndarray) -> float:
    session = open_session(file, threads=torch.get_num_threads())
    (logits,) = session.run([OUTPUT], {INPUT: image.numpy()})
    return float(np.abs(logits - expected).max())
