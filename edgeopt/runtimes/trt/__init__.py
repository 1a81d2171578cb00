"""TensorRT and TensorRT for RTX: strongly typed ONNX in, engines out.

The product is the ONNX file, the same that ONNX Runtime serves; an engine is what one release of one flavour made of it for some GPUs. One path
serves tensorrt 10.3 to 10.16 and 11 and tensorrt_rtx: a strongly typed network, parsed from the file, and no precision flags and no calibrators, which
11 and RTX no longer have. Parsing and building run in a process of their own (``child``), since the library prints, may crash and cannot be
interrupted; nothing else imports it.

``key > shelf, or else preflight > build (child: parse, build, tell layers) > coverage``; ``header`` tells a human what lies there
"""
