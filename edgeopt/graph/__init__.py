"""The ONNX graph in memory: copying, reading constants, editing, checking, saving.

Everything here works on ``onnx_ir`` models, whose external weights stay on disk until somebody reads them. Passes build
on these rooms: ``tensors`` (what is constant), ``edit`` (change a copy), ``naming`` (fresh names), ``skeleton`` (the
model without its big weights, for libraries that take a protobuf), ``opset`` (raise the version), ``check`` (what must
hold after every pass) and ``save`` (deterministic bytes).
"""
