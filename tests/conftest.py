"""Set before any test runs: four CPU devices, strict shapes, a compilation cache that persists."""

import gc
import os
import pathlib

import chex
import hypothesis
import jax
import matplotlib
import pytest

from tests.children import Children

matplotlib.use("Agg")

# Most tests compile for longer than they run: the less XLA optimises, the sooner they end. XLA
# reads its flags when the first test computes; the processes that tests start inherit both.
_FLAGS = [
    "--xla_backend_optimization_level=1",
    # A program in 32 parts, compiled side by side, costs a third more on two busy cores.
    "--xla_cpu_parallel_codegen_split_count=1",
]
if jax.__version_info__ < (0, 11):  # later ones have no other emitters
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")])
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

_CACHE = pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax"

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Tracing makes millions of small objects that live on: to go through them again and again takes a
# quarter of its time.
gc.set_threshold(50_000, 20, 100)

# The same examples in every run; the first one compiles and takes as long as it takes.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


def pytest_collection_modifyitems(items):
    """Those that train come first, the longest: at the end no core waits long for the other."""
    items.sort(key=lambda item: item.path.parent.name != "hamm_2018")


@pytest.fixture(scope="module", autouse=True)
def optimization(request):
    """How much XLA optimises what a module compiles."""
    is_compared = request.path.parent.name == "peers"  # with what others have optimised
    jax.config.update("jax_disable_most_optimizations", not is_compared)
    yield
    # Each compiled program takes a few memory maps of the process. Without any left (65 530 by
    # default) XLA crashes; but what is freed here others may have to compile again.
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def no_traces():
    """`chex.assert_max_traces` counts by a function's name and place, over all of a session."""
    chex.clear_trace_counter()


@pytest.fixture
def key():
    """A typed random key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture
def children():
    """Starts processes that end with the test, whatever happens."""
    started = Children()
    try:
        yield started
    finally:
        started.end()
