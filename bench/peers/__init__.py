"""The peers by name, fusedrnn first: the others' outputs are compared with its.

A peer is a module with
    available() -> bool           whether its library is installed
    version() -> str
    set_threads(n)                called once, before any setup
    supports(problem, mode) -> bool
    setup(problem, mode)          a run, with `call()`, which is timed, and `output()`, a dict of arrays
    LARGEST                       FLOP of the largest forward pass it joins unless it is named; inf if absent

Those of the suite "cuda" are in cuda.py.
"""

from types import ModuleType

from peers import fusedrnn_, jax_, numpy_, onnxruntime_, openvino_, torch_

PEERS: dict[str, ModuleType] = {
    "fusedrnn": fusedrnn_,
    "torch": torch_,
    "onnxruntime": onnxruntime_,
    "openvino": openvino_,
    "jax": jax_,
    "numpy": numpy_,
}
