"""Pixels of DICOM images, as prediction with exported models reads them."""

from __future__ import annotations

from hrmedseg_onnx.dicom import SUFFIXES, DicomImage, pixel_spacing, read_dicom, read_header

__all__ = ["SUFFIXES", "DicomImage", "pixel_spacing", "read_dicom", "read_header"]
