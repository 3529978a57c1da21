"""fusedrnn.jax: the kernels' own results and gradients under JAX's transformations, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import fusedrnn.jax as fj  # noqa: E402
from fusedrnn import _core  # noqa: E402
from fusedrnn.interop.jax import host  # noqa: E402

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("jax_in_float64")]

T, B, I, H = 6, 3, 4, 5
LENGTHS = np.array([6, 0, 4])
RESETS = np.random.default_rng(0).random((T, B)) < 0.3
# Of an invalid argument the first, and in calls of a program that has run before the second.
AT_RUNTIME = jax.errors.JaxRuntimeError, ValueError
CELLS = {"lstm": fj.lstm, "gru": fj.gru, "rnn_tanh": fj.rnn}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reverse": True},
    {"lengths": LENGTHS, "reverse": True},
    {"resets": RESETS},
]


def draw(seed: int, *shape: int, dtype: Any = np.float64) -> Any:
    return np.random.default_rng([seed, *shape]).normal(0, 0.7, shape).astype(dtype)


def make(cell: str, seed: int = 0, proj: int = 0, dtype: Any = np.float64) -> tuple[dict[str, Any], Any]:
    """Parameters and an initial state."""
    spec = fr.CELLS[cell]
    shapes = spec.parameter_shapes(I, H, True, proj)
    params = {name: draw(seed + i, *shape, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}
    widths = spec.state_widths(H, proj)
    return params, spec.pack_state([draw(seed + i, B, w, dtype=dtype) for i, w in enumerate(widths)])


def equal(found: Any, want: Any) -> None:
    """The same trees of arrays, bit for bit."""
    found, want = jax.tree.leaves(found), jax.tree.leaves(want)
    for a, b in zip(found, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def close(found: Any, want: Any) -> None:
    found, want = jax.tree.leaves(found), jax.tree.leaves(want)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-10)


def value(function: Any, *arguments: Any, **options: Any) -> Any:
    """A number that every output counts in."""
    y, state = function(*arguments, **options)
    return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.cos(part + y[0])) for part in jax.tree.leaves(state))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("jit", [False, True])
def test_as_the_functions_of_numpy(cell: str, options: dict[str, Any], dtype: Any, jit: bool) -> None:
    params, state = make(cell, dtype=dtype)
    x, dy = draw(1, T, B, I, dtype=dtype), draw(2, T, B, H, dtype=dtype)
    dstate = jax.tree.map(np.cos, state)
    y, final, tape = fr.functional.forward(cell, x, params, state, **options)
    want = fr.functional.backward(tape, dy, dstate)

    def run(x: Any, params: Any, state: Any) -> Any:
        return CELLS[cell](x, params, state, **options)

    def gradients(x: Any, params: Any, state: Any) -> Any:
        return jax.vjp(run, x, params, state)[1]((jnp.asarray(dy), jax.tree.map(jnp.asarray, dstate)))

    if jit:
        run, gradients = jax.jit(run), jax.jit(gradients)  # type: ignore[assignment]
    equal(run(x, params, state), (y, final))
    equal(gradients(x, params, state), (want.x, want.params, want.state))


def test_what_may_be_left_out() -> None:
    """Biases, the state, names of parameters; and what only an LSTM has."""
    params, _ = make("lstm", proj=2)
    x = draw(1, T, B, I)
    equal(fj.lstm(x, params), fr.functional.forward("lstm", x, params)[:2])
    bare = {name: params[name] for name in ("weight_ih", "weight_hh", "weight_hr")}
    equal(fj.lstm(x, bare), fr.functional.forward("lstm", x, bare)[:2])
    relu, _ = make("rnn_relu")
    weights = relu["weight_ih"], relu["weight_hh"]
    equal(fj.rnn(x, weights, nonlinearity="relu"), fr.functional.forward("rnn_relu", x, weights)[:2])
    found = jax.grad(lambda w: value(fj.rnn, x, w, nonlinearity="relu"))(weights)
    assert [g.shape for g in found] == [(H, I), (H, H)]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_lengths_of_every_integer_dtype(dtype: str) -> None:
    params, _ = make("gru")
    x = draw(1, T, B, I)
    found = jax.jit(lambda x, lengths: fj.gru(x, params, lengths=lengths))(x, LENGTHS.astype(dtype))
    equal(found, fr.functional.forward("gru", x, params, lengths=LENGTHS)[:2])


def test_vmap() -> None:
    """Over inputs, lengths, resets and parameters, twice, and around and inside of a gradient."""
    params, _ = make("lstm")
    xs = draw(3, 2, 4, T, B, I)
    lengths = np.random.default_rng(1).integers(0, T + 1, (4, B))
    resets = np.random.default_rng(2).random((4, T, B)) < 0.3
    several = jax.tree.map(lambda *p: jnp.stack(p), *[make("lstm", seed=s)[0] for s in range(4)])

    def run(x: Any, params: Any, n: Any = None, r: Any = None) -> Any:
        return fj.lstm(x, params, lengths=n, resets=r)

    def single(function: Any, index: int, *axes: Any) -> Any:
        return function(*[jax.tree.map(lambda a: a[index], tree) if on else tree for tree, on in axes])

    def check(function: Any, *axes: Any) -> None:
        """vmap over the arguments that are marked, beside one after another."""
        function = jax.jit(function)
        mapped = jax.vmap(function, [0 if on else None for _, on in axes])
        found = mapped(*[tree for tree, _ in axes])
        close(found, jax.tree.map(lambda *p: jnp.stack(p), *[single(function, i, *axes) for i in range(4)]))

    x = jnp.asarray(xs[0])
    check(run, (x, True), (params, False), (lengths, True), (resets, True))
    check(run, (x[0], False), (params, False), (lengths, True), (resets[0], False))
    check(run, (x, True), (several, True))
    check(run, (x[0], False), (several, True), (lengths[0], False))
    slopes = jax.grad(lambda *arguments: value(run, *arguments), (0, 1))
    check(slopes, (x, True), (params, False), (lengths, True))
    both = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (0, None)))(xs, params)
    close(jax.tree.map(lambda a: a[1], both), jax.vmap(run, (0, None))(xs[1], params))
    total = jax.grad(lambda p: jnp.sum(jax.vmap(lambda x: value(run, x, p))(x)))(params)
    close(total, jax.tree.map(lambda g: jnp.sum(g, 0), jax.vmap(lambda x: slopes(x, params)[1])(x)))


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_some_arguments(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits of all of them together; what is not asked for is not computed."""
    params, state = make(cell)
    arguments = draw(1, T, B, I), params["weight_ih"], params["bias_hh"], state
    asked: list[set[str]] = []
    backward = host._backward
    monkeypatch.setattr(host, "_backward", lambda *a: (asked.append(set(a[3])), backward(*a))[1])

    def loss(x: Any, w: Any, b: Any, state: Any) -> Any:
        y, end = CELLS[cell](x, {**params, "weight_ih": w, "bias_hh": b}, state)
        return jnp.sum(jnp.sin(y)) + 2 * jnp.sum(jax.tree.leaves(end)[0])

    together = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*arguments)
    names = [{"x"}, {"weight_ih"}, {"bias_hh"}, set(fr.CELLS[cell].state_names)]
    assert asked == [set().union(*names)]
    for i, own in enumerate(names):
        asked.clear()
        equal(jax.jit(jax.grad(loss, i))(*arguments), together[i])
        assert asked == [own]
    # Of the final state alone, where there is no gradient of y.
    grads = jax.grad(lambda x: jnp.sum(CELLS[cell](x, params, state, lengths=LENGTHS * 0)[0]))(arguments[0])
    assert not np.any(grads)
    last = jax.grad(lambda s: jnp.sum(jax.tree.leaves(CELLS[cell](arguments[0][:0], params, s)[1])[0]))(state)
    assert np.all(jax.tree.leaves(last)[0] == 1)


PROGRAM = """
import sys
import jax, numpy as np
import fusedrnn.jax
jax.config.update("jax_enable_x64", True)
given = np.load(sys.argv[1] + "/given.npz")
with open(sys.argv[1] + "/program", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
np.savez(sys.argv[1] + "/found.npz", *jax.tree.leaves(program.call(dict(given))))
"""


def test_exported_programs(tmp_path: Path) -> None:
    """Serialised with sizes that are symbols, and run by another process."""
    params, _ = make("lstm")
    given = {**params, "x": draw(1, T, B, I), "lengths": LENGTHS}

    def loss(given: Any) -> Any:
        weights = {name: given[name] for name in params}
        return jnp.sum(fj.lstm(given["x"], weights, lengths=given["lengths"])[0] ** 2)

    step = jax.jit(jax.value_and_grad(loss, allow_int=True))
    t, b = jax.export.symbolic_shape("t, b")
    specs = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in given.items()}
    specs["x"] = jax.ShapeDtypeStruct((t, b, I), given["x"].dtype)
    specs["lengths"] = jax.ShapeDtypeStruct((b,), LENGTHS.dtype)
    checks = [jax.export.DisabledSafetyCheck.custom_call("fusedrnn_network")]
    program = jax.export.export(step, disabled_checks=checks)(specs)
    (tmp_path / "program").write_bytes(program.serialize())
    np.savez(tmp_path / "given.npz", **given)
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True)
    with np.load(tmp_path / "found.npz") as file:
        found = dict(file)
    want = [leaf for leaf in jax.tree.leaves(step(given)) if leaf.dtype == np.float64]
    equal([array for array in found.values() if array.dtype == np.float64], want)


def test_inside_of_scan_and_checkpoint() -> None:
    """Windows that carry the state are the whole sequence, gradients too."""
    params, state = make("lstm")
    x = draw(4, 4 * T, B, I)

    def windows(x: Any, params: Any, state: Any) -> Any:
        @jax.checkpoint
        def window(state: Any, steps: Any) -> Any:
            y, state = fj.lstm(steps, params, state)
            return state, y

        state, y = jax.lax.scan(window, state, x.reshape(4, T, B, I))
        return y.reshape(4 * T, B, H), state

    close(jax.jit(windows)(x, params, state), fj.lstm(x, params, state))
    for_windows = jax.jit(jax.grad(lambda *a: value(windows, *a), (0, 1, 2)))(x, params, state)
    close(for_windows, jax.grad(lambda *a: value(fj.lstm, *a), (0, 1, 2))(x, params, state))


def test_arrays_of_some_size() -> None:
    """More than fits in one thread's block of the runtime, several calls on their way at once."""
    x = jnp.asarray(draw(5, 100, 32, 64, dtype=np.float32))
    params = tuple(jnp.asarray(draw(6, *s, dtype=np.float32)) for s in ((192, 64), (192, 64)))
    step = jax.jit(jax.grad(lambda p, x: jnp.mean(fj.gru(fj.gru(x, p)[0], p)[0] ** 2)))
    found = [step(params, x) for _ in range(4)]
    assert all(np.array_equal(found[0][0], each[0]) for each in found)


@pytest.mark.parametrize("cell", CELLS)
def test_inference_takes_no_python(cell: str) -> None:
    """Forward of a compiled program, of any sizes; what has a tape, lengths, resets or axes of vmap does."""
    params, state = make(cell)
    seen: list[str] = []
    _core.xla_handler(lambda call, *given: (seen.append(call), host.run(call, *given)))
    try:
        for steps, batch in ((T, B), (1, B), (0, B), (T, 0), (70, 33)):
            x = draw(1, steps, batch, I)
            start = jax.tree.map(lambda part, batch=batch: np.resize(part, (batch, H)), state)
            want = fr.functional.forward(cell, x, params, start)[:2]
            equal(jax.jit(CELLS[cell])(x, params, start), want)
        assert not seen
        x = draw(1, T, B, I)
        given: list[Any] = [
            lambda: CELLS[cell](x, params, state, lengths=LENGTHS),
            lambda: CELLS[cell](x, params, state, resets=RESETS),
            lambda: jax.vmap(lambda x: CELLS[cell](x, params, state))(x[None]),
            lambda: jax.vjp(lambda x: CELLS[cell](x, params, state), x),
        ]
        for count, run in enumerate(given, 1):
            jax.block_until_ready(run())
            assert len(seen) == count
    finally:
        _core.xla_handler(host.run)


def test_programs_of_others_are_checked() -> None:
    """What no program of this version says is refused as by the functions of NumPy."""
    params, state = make("gru")
    arrays = {"x": draw(1, T, B, I), "h": state, **params}
    results = [jax.ShapeDtypeStruct(shape, np.float64) for shape in ((T, B, H), (B, H))]

    def run(message: str, found: Any = results, **changed: Any) -> None:
        given = {name: array for name, array in {**arrays, **changed}.items() if array is not None}
        text = host.call_text("forward", "gru", False, tuple(given), ("y", "h"))
        call = jax.ffi.ffi_call("fusedrnn_network", found)
        with pytest.raises(AT_RUNTIME, match=message):
            jax.block_until_ready(call(*given.values(), call=text))

    run("weight_hh", weight_hh=params["weight_hh"][1:])
    run("bias_ih", bias_ih=params["bias_ih"].astype(np.float32))
    run("weight_ih", weight_ih=params["weight_ih"][:, 1:])
    run("weight_ih", weight_ih=params["weight_ih"][:2])
    run("weight_hh", weight_hh=None)
    run("state", h=state[1:])
    run("state_out|y|h", results[:1])
    run("out", [jax.ShapeDtypeStruct((T, B, H + 1), np.float64), results[1]])


def test_no_forward_mode_and_no_second_derivative() -> None:
    params, _ = make("gru")
    x = draw(7, T, B, I)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: fj.gru(x, params)[0], (x,), (x,))
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.grad(lambda x: jnp.sum(jax.grad(lambda x: value(fj.gru, x, params))(x) ** 2))(x)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    params, state = make("gru")
    x, cut = draw(8, T, B, I), params["weight_ih"][:-1]
    wrong: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "x: expected an array, got list; use jax.numpy.asarray", ([1.0], params)),
        (ValueError, "x: expected shape (T, B, I), got (6, 3)", (x[..., 0], params)),
        (TypeError, "x: expected float32 or float64, got int64", (x.astype(int), params)),
        (TypeError, "weight_ih: expected float32 as x, got float64", (x.astype(np.float32), params)),
        (
            ValueError,
            "x: expected shape (T, B, I) with I = 4 as weight_ih (15, 4), got",
            (x[..., 1:], params),
        ),
        (ValueError, "weight_ih: expected shape (12, 4), got (14, 4)", (x, {**params, "weight_ih": cut})),
        (ValueError, "h: expected shape (3, 5), got (2, 5)", (x, params, state[1:])),
        (ValueError, "params: expected the names weight_ih,", (x, {**params, "weight": x})),
        (ValueError, "params: expected weight_ih and weight_hh, got none for weight_hh", (x, [x[0]])),
        (ValueError, "weight_hh: expected 2 axes, got shape (6, 3, 4)", (x, [x[0], x])),
        (TypeError, "params: expected a mapping or a sequence of at most 4, got ndarray", (x, x)),
        (ValueError, "lengths: expected shape (B,) = (3,), got (2,)", (x, params, None, np.zeros(2, int))),
        (TypeError, "lengths: expected an integer dtype, got float64", (x, params, None, np.zeros(3))),
        (TypeError, "resets: expected bool, got int64", (x, params, None, None, np.zeros((T, B), int))),
        (ValueError, "resets: expected shape (T, B) = (6, 3)", (x, params, None, None, RESETS[1:])),
    ]
    for kind, message, (*given, lengths, resets) in [
        (kind, message, (*given, *[None] * (5 - len(given)))) for kind, message, given in wrong
    ]:
        for run in (fj.gru, jax.jit(lambda *a, **k: fj.gru(*a, **k))) if kind is ValueError else (fj.gru,):
            with pytest.raises(kind, match=re.escape(message)):
                run(*given, lengths=lengths, resets=resets)
    with pytest.raises(TypeError, match=re.escape("state: expected a tuple (h, c), got")):
        fj.lstm(x, make("lstm")[0], state)
    with pytest.raises(ValueError, match="nonlinearity"):
        fj.rnn(x, params, nonlinearity="gelu")
    with pytest.raises(AT_RUNTIME, match="lengths"):
        jax.block_until_ready(fj.gru(x, params, lengths=np.array([7, 0, 0])))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(RuntimeError, match=r"fusedrnn.jax: expected arrays on cpu, got gpu; use jax.config"):
        jax.jit(lambda x: fj.gru(x, params))(x)
