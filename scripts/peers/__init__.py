"""The peers that `compare_peers.py` compares, one per file; `python -m peers` measures one.

The module of a peer has `measure(setup)`, which trains its model and returns the figures of its
row. `measure` imports the package that it measures, so that a missing package becomes a row.
"""

# The first part of a peer's name, and its module. No module has the name of a package it imports.
MODULES = {
    "xftrain": "framework",
    "bare": "bare",
    "nanogpt": "nanogpt",
    "transformers": "hf_transformers",
    "litgpt": "lit_gpt",
    "x_transformers": "xtransformers",
}
