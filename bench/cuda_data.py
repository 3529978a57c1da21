"""Tensors of a problem on its device, the same for all peers, and what the results should be, in float64."""

from __future__ import annotations

from typing import Any

import torch
from problems import CudaProblem

PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
CHUNK = 4096  # steps of float64 at a time, whose gates have to fit into memory
PROMISED_STEPS = 512
STREAMED = 8  # steps of a stream whose outputs are compared

Tensors = dict[str, torch.Tensor]


def layer(problem: CudaProblem, **options: Any) -> Any:
    """The module of torch for the cell."""
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}[problem.cell]
    return kind(problem.input_size, problem.hidden_size, **options)


def set_tf32(allowed: bool) -> None:
    """Say for the process, whose runs take turns, whether torch multiplies float32 in TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


class Data:
    """x (T, B, I) or of a stream (STREAMED, B, I), dy (T, B, H) and the parameters; made on the device."""

    def __init__(self, problem: CudaProblem, mode: str, device: torch.device) -> None:
        self.problem, self.mode, self.device = problem, mode, device
        self.dtype = DTYPES[problem.precision]
        random = torch.Generator(device).manual_seed(7)
        rows, bound = problem.gates * problem.hidden_size, problem.hidden_size**-0.5
        steps = STREAMED if mode == "stream" else problem.seq_len

        def uniform(*shape: int) -> torch.Tensor:
            values = torch.rand(shape, generator=random, device=device)
            return (values.mul_(2).sub_(1) * bound).to(self.dtype)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random, device=device).to(self.dtype)

        self.weights = dict(
            zip(
                PARAMETERS,
                (
                    uniform(rows, problem.input_size),
                    uniform(rows, problem.hidden_size),
                    uniform(rows),
                    uniform(rows),
                ),
                strict=True,
            )
        )
        self.x = normal(steps, problem.batch, problem.input_size)
        self.dy = normal(steps, problem.batch, problem.hidden_size)

    def expected(self) -> Tensors:
        """y, and in training the gradients of x, every weight and bias, from the same numbers in float64."""
        module = layer(self.problem, device=self.device, dtype=torch.float64)
        module.load_state_dict({name: tensor.double() for name, tensor in self.weights.items()})
        if self.mode != "training":
            ys, state = [], None
            with torch.inference_mode():
                for part in self.x.split(CHUNK):
                    y, state = module(part.double(), state)
                    ys.append(y)
                return {"y": torch.cat(ys)}
        x = self.x.double()
        y, _ = module(x.requires_grad_())
        y.backward(self.dy.double())
        return {"y": y.detach(), "dx": x.grad, **{name: getattr(module, name).grad for name in PARAMETERS}}


def relative_errors(output: Tensors, expected: Tensors) -> dict[str, float]:
    """||output - expected|| / ||expected|| of the outputs, and the largest of the gradients."""
    if output.keys() != expected.keys():
        raise RuntimeError(f"expected {sorted(expected)}, got {sorted(output)}")
    errors = {
        name: float((output[name].double() - want).norm() / want.norm()) for name, want in expected.items()
    }
    # A maximum would pass over a NaN.
    gradients = torch.tensor([error for name, error in errors.items() if name != "y"])
    return {"y": errors["y"], **({"gradients": float(gradients.max())} if len(gradients) else {})}


def of_promise(errors: dict[str, float], problem: CudaProblem) -> float:
    """The largest error over the one that is promised for so many steps; NaN where one is."""
    bounds = dict(zip(("y", "gradients"), problem.PROMISES[problem.precision], strict=True))
    more_steps = max(1.0, problem.seq_len / PROMISED_STEPS)
    return float(torch.tensor([error / bounds[name] / more_steps for name, error in errors.items()]).max())
