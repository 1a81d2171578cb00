"""AMD Quark's default int8 configurations."""

from __future__ import annotations

from functools import partial

from job import Job, run
from onnxruntime.quantization import CalibrationDataReader
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import Config, get_default_config


def quantized(job: Job, *, configuration: str) -> None:
    quantizer = ModelQuantizer(Config(global_quant_config=get_default_config(configuration)))
    quantizer.quantize_model(job.model, job.out, job.reader(CalibrationDataReader))


if __name__ == "__main__":
    run(
        {
            "int8_cnn_default": partial(quantized, configuration="INT8_CNN_DEFAULT"),
            "int8_transformer_default": partial(quantized, configuration="INT8_TRANSFORMER_DEFAULT"),
        }
    )
