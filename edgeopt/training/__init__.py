"""Training: an ONNX graph replayed as differentiable torch, and the passes that teach a compressed model.

The only room that talks to torch, which is an extra (``pip install 'edgeopt[train]'``). The modules below import it at their
top, so whoever can do without imports them inside functions; importing this package loads nothing heavy.
"""
