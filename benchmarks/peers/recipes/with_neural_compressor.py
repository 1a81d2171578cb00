"""Neural Compressor's ONNX part, which lives on as onnx-neural-compressor, with its default settings."""

from __future__ import annotations

from job import Job, run
from onnx_neural_compressor.data_reader import CalibrationDataReader
from onnx_neural_compressor.quantization import config, quantize


def static(job: Job) -> None:
    quantize(job.model, job.out, config.StaticQuantConfig(calibration_data_reader=job.reader(CalibrationDataReader)))


def dynamic(job: Job) -> None:
    quantize(job.model, job.out, config.DynamicQuantConfig())


if __name__ == "__main__":
    run({"static": static, "dynamic": dynamic})
