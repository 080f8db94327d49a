"""Short hashes of what a log must tell apart without holding it."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def content_hash(*texts: str) -> str:
    """A short hash of texts in order, for what a log must be able to tell apart but not hold."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()[:16]


def tokens_hash(sequences: Iterable[list[int]]) -> str:
    """Return a short hash of sequences of token ids, in order."""
    return content_hash(*(" ".join(map(str, ids)) for ids in sequences))


def identity_hash(identity: dict[str, Any]) -> str:
    """The run id that an identity has."""
    canonical = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
