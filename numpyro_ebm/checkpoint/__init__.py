"""Models, and any other pytree of arrays, in one safetensors file, bit for bit."""

from numpyro_ebm.checkpoint.state import load, load_metadata, save

__all__ = ["load", "load_metadata", "save"]
