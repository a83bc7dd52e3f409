"""What `compare_peers.py` compares, one peer a file; `python -m peers` measures one of them.

The module of a peer has `measure(setup)`, which trains its model and returns the figures of a row.
It imports late what it measures, so that a package that is not installed is a row as well.
"""

# What a name begins with, and its module. None has the name of a package that it imports.
MODULES = {
    "xftrain": "framework",
    "bare": "bare",
    "nanogpt": "nanogpt",
    "transformers": "hf_transformers",
    "litgpt": "lit_gpt",
    "x_transformers": "xtransformers",
}
