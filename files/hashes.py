"""Short hashes, by which a log tells contents apart without holding them."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def content_hash(*texts: str) -> str:
    """Return a short hash of texts in order."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()[:16]


def tokens_hash(sequences: Iterable[list[int]]) -> str:
    """Return a short hash of sequences of token ids, in order."""
    return content_hash(*(" ".join(map(str, ids)) for ids in sequences))


def identity_hash(identity: dict[str, Any]) -> str:
    """Return the run id of an identity."""
    canonical = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
