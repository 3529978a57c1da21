"""fusedrnn.jax.equinox and fusedrnn.jax.nnx beside the same cells in Equinox's and Flax's own loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from test_interop_jax import close  # noqa: E402

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("jax_in_float64")]

T, B, I, H = 6, 3, 4, 5
LENGTHS = np.array([6, 2, 4])


def draw(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(0, 0.7, shape))


@pytest.mark.parametrize(("kind", "use_bias"), [("LSTMCell", False), ("GRUCell", True)])
def test_equinox(kind: str, use_bias: bool) -> None:
    """The outputs, the final state and the cell's gradients of a scan; in a batch, and under vmap."""
    equinox = pytest.importorskip("equinox")
    from fusedrnn.jax.equinox import RNN

    cell = getattr(equinox.nn, kind)(I, H, use_bias=use_bias, key=jax.random.key(0))
    start: Any = (draw(H), draw(1, H)[0]) if kind == "LSTMCell" else draw(H)

    def scanned(cell: Any, x: Any) -> Any:
        def step(state: Any, x_t: Any) -> Any:
            state = cell(x_t, state)
            return state, state[0] if kind == "LSTMCell" else state

        return jax.lax.scan(step, start, x)[::-1]

    def slope(run: Any) -> Any:
        return equinox.filter_jit(
            equinox.filter_value_and_grad(
                lambda c, x: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(run(c, x)))
            )
        )

    x = draw(T, I)
    close(slope(lambda c, x: RNN(c)(x, start))(cell, x), slope(scanned)(cell, x))
    xs = draw(T, B, I)
    y, final = RNN(cell, reverse=True)(xs, lengths=LENGTHS)
    close(jax.vmap(RNN(cell, reverse=True), 1, 1)(xs)[0][:, 0], y[:, 0])
    resets = np.zeros((T, B), bool)
    resets[2] = True
    again, last = RNN(cell)(xs, resets=resets)
    close((again[2:], last), RNN(cell)(xs[2:]))
    assert not np.any(y[2:, 1]) and jax.tree.leaves(final)[0].shape == (B, H)
    assert [leaf.shape for leaf in jax.tree.leaves(RNN(cell))] == [
        leaf.shape for leaf in jax.tree.leaves(cell)
    ]


def test_what_equinox_gives_that_is_refused() -> None:
    equinox = pytest.importorskip("equinox")
    from fusedrnn.jax.equinox import RNN

    with pytest.raises(TypeError, match=r"cell: expected equinox\.nn\.LSTMCell or GRUCell, got Linear"):
        RNN(equinox.nn.Linear(I, H, key=jax.random.key(0)))


@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_nnx(kind: str) -> None:
    """nnx.RNN's own outputs, carries and gradients; its outputs past the end are 0 here."""
    nnx = pytest.importorskip("flax.nnx")
    from fusedrnn.jax.nnx import RNN

    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    cell = getattr(nnx, kind)(I, H, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(), **dtypes)
    start = cell.initialize_carry((B, I), nnx.Rngs(1), carry_init=nnx.initializers.normal())
    for major, reverse, keep, lengths in (
        (False, False, False, None),
        (True, True, False, LENGTHS),
        (False, True, True, LENGTHS),
    ):
        options = {"time_major": major, "reverse": reverse, "keep_order": keep, "return_carry": True}
        x = draw(T, B, I) if major else draw(B, T, I)
        given = {"initial_carry": start, "seq_lengths": lengths}
        carry, want = nnx.RNN(cell, **options)(x, **given)
        real = np.arange(T)[:, None] < (T if lengths is None else lengths)
        close(RNN(cell, **options)(x, **given), (carry, want * (real if major else real.T)[..., None]))

    def slope(module: Any) -> Any:
        return nnx.jit(nnx.grad(lambda m, x: jnp.sum(jnp.sin(m(x)))))(module, x)

    close(slope(RNN(cell)), slope(nnx.RNN(cell)))


def test_what_nnx_gives_that_is_refused() -> None:
    nnx = pytest.importorskip("flax.nnx")
    from fusedrnn.jax.nnx import RNN

    with pytest.raises(TypeError, match=r"cell: expected one of nnx's LSTMCell, .*, got Linear"):
        RNN(nnx.Linear(I, H, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="activation_fn: expected tanh"):
        RNN(nnx.GRUCell(I, H, activation_fn=nnx.relu, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="residual: expected False"):
        RNN(nnx.SimpleCell(I, H, residual=True, rngs=nnx.Rngs(0)))
