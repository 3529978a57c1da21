"""The peers by name, fusedrnn first: the others' outputs are compared with its.

A peer is a module with
    available() -> bool           whether its library is installed
    version() -> str
    set_threads(n)
    supports(problem) -> bool
    setup(problem, mode)          a run, with `call()`, which is timed, and `output()`, a dict of arrays
"""

from types import ModuleType

from peers import fusedrnn_, numpy_, torch_

PEERS: dict[str, ModuleType] = {"fusedrnn": fusedrnn_, "torch": torch_, "numpy": numpy_}
