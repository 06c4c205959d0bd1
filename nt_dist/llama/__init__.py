"""The LLaMA family: its settings, its table of weights, its layers. Reads as single-device code."""
