"""Calibration: samples, streaming ranges and the arithmetic of scales and zero points.

``samples`` reads what was dropped beside the model; ``collect`` runs the model over it and keeps a state of fixed size for each
tensor; ``ranges`` reads a range out of that state; ``qparams`` turns ranges and weights into what QuantizeLinear carries.
"""
