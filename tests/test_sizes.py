"""Sizes and counts that nothing can hold are refused at once, before memory or time is spent on them."""

from __future__ import annotations

import numpy as np
import pytest
from support import assert_ran, run_python

import fusedrnn as fr

pytestmark = pytest.mark.once

HUGE = {
    "fr.LSTM(4, 6, 10**12)": "ValueError: num_layers: expected an int <= 1000, got 1000000000000",
    "fr.GRU(4, 6, 1001, bidirectional=True)": "ValueError: num_layers: expected an int <= 1000, got 1001",
    "fr.GRU(10**12, 10**12, 10**12)": "ValueError: num_layers: expected an int <= 1000, got 1000000000000",
    "fr.GRU(10**12, 10**12)": "ValueError: weight_ih_l0: expected sizes with parameters below 2^63 bytes",
    "fr.RNN(10**30, 4)": "ValueError: weight_ih_l0: expected sizes with parameters below 2^63 bytes",
    "fr.LSTM(4, 10**30, proj_size=2)": "ValueError: weight_ih_l0: expected sizes with parameters below",
    "fr.LSTM(10**8, 10**8)": "MemoryError",
    "fr.LSTMCell(10**12, 10**12)": "ValueError: weight_ih: expected sizes with parameters below 2^63 bytes",
    "fr.Linear(10**12, 10**12)": "ValueError: weight: expected sizes with parameters below",
    "fr.Linear(0, 10**30)": "ValueError: bias: expected sizes with parameters below 2^63 bytes",
    "fr.Embedding(10**12, 10**12)": "ValueError: weight: expected sizes with parameters below",
    "fr.Embedding(10**8, 10**6)": "MemoryError",
    "fr.LayerNorm((10**8, 10**8, 10**8))": "ValueError: weight: expected sizes with parameters below",
    "fr.LayerNorm(10**15)": "MemoryError",
    "fr.GRU(4, 6).stream(10**12)": "MemoryError",
    "fr.GRU(4, 6).stream(10**30)": "ValueError: batch_size: expected an int <= 9223372036854775807",
    "fr.GRU(4, 6).quantize('int8').stream(10**12)": "MemoryError",
    "fr.GRU(4, 6).quantize('int8').stream(10**30)": "ValueError: batch_size: expected an int <= 922",
    "fr.Dropout().load_random_state(np.broadcast_to(np.int64(0), 10**12))": "TypeError: state: expected",
    "fr.Linear(1, 1).load_state_dict(np.broadcast_to(0.0, 10**12))": "TypeError: state_dict",
    "fr.optim.SGD(fr.Linear(1, 1)).load_state_dict(np.broadcast_to(0.0, 10**9))": "TypeError: state_dict",
    "fr.Dropout().load_random_state({'': np.broadcast_to(np.int64(0), 10**12)})": "ValueError: state['']",
}

REFUSE = """
import resource, sys
import numpy as np
import fusedrnn as fr
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for code in sys.argv[1:]:
    try:
        eval(code)
    except (TypeError, ValueError, MemoryError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    else:
        print("nothing", flush=True)
"""


def test_huge_sizes_are_refused_at_once() -> None:
    done = run_python("-c", REFUSE, *HUGE, timeout=120)
    assert_ran(done)
    for code, want, got in zip(HUGE, HUGE.values(), done.stdout.splitlines(), strict=True):
        assert got.startswith(want), f"{code}: {got}"


def test_the_most_layers() -> None:
    network = fr.RNN(1, 1, 1000, init=None)
    assert network(np.zeros((1, 1, 1), "float32"))[1].shape == (1000, 1, 1)
