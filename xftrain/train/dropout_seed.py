"""The seed of dropout as a pure function of the step, so that no random state is saved."""

import hashlib


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generator in one training batch; cheap, as every step calls it."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
