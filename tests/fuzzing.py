"""Settings of tests with drawn inputs: equal inputs on every machine, and no folder left behind."""

import atexit
import os
import shutil
import tempfile

from hypothesis import HealthCheck, configuration, settings
from hypothesis import strategies as st

# Hypothesis stores tables of letters even without a database of examples.
_SCRATCH = tempfile.mkdtemp()
configuration.set_hypothesis_home_dir(_SCRATCH)
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)

FIXED = settings(
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=6)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
