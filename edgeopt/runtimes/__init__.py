"""What executes models. Runtimes do not know each other; ``catalogue`` names them."""
