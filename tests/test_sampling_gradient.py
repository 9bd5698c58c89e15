"""The step-by-step gradient against plain autograd, which holds every graph at once."""

import weakref
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from toys import ToyCodec, ToyModel, toy_score

from ipro_core.sampling.anchor import anchor_weight
from ipro_core.sampling.flow import shifted_sigmas
from ipro_core.sampling.gradient import reward_gradient
from ipro_core.types import RewardScore

SIGMAS = shifted_sigmas(8, 5.0)


def noise(batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, 3, 5, 6, generator=generator, dtype=torch.float64).to(dtype)


def plain_autograd(
    model, codec, score, x, sigmas, grad_steps, reward_weight, kl_weight, weighting, through, first=None
):
    """The loss of Eq. 3 and 7 written down as it is read, differentiated by one `backward`.

    After the K steps from `first` on the velocity is that of a copy whose parameters are constants.
    """
    sigmas, still = sigmas.tolist(), deepcopy(model)
    for parameter in still.adapter_parameters().values():
        parameter.requires_grad_(False)
    num_steps, kl = len(sigmas) - 1, torch.zeros((), dtype=x.dtype)
    first = num_steps - grad_steps if first is None else first
    for i in range(num_steps):
        with torch.set_grad_enabled(i >= first):
            v = (model if i < first + grad_steps else still).velocity(x, sigmas[i], None)
            if first <= i < first + grad_steps:
                x_anchor = x.detach() if through == "detached" else x
                with torch.set_grad_enabled(through == "exact"):
                    v_ref = model.frozen_velocity(x_anchor, sigmas[i], None)
                v_anchor = model.velocity(x_anchor, sigmas[i], None)
                kl = (
                    kl + anchor_weight(sigmas[i], weighting) * (v_anchor - v_ref).square().mean() / grad_steps
                )
            x = x + (sigmas[i + 1] - sigmas[i]) * v
    frames = codec.decode(x)
    reward = torch.stack([score(frame, index).value for index, frame in enumerate(frames)]).mean()
    loss = -reward_weight * reward + kl_weight * kl
    loss.backward()


def collect(model) -> Tensor:
    """The adapter's gradient as one vector, taken away from the model."""
    parameters = model.adapter_parameters().values()
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return gradient


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
@pytest.mark.parametrize("through", ["detached", "exact", "biased"])
@pytest.mark.parametrize("grad_steps", [1, 4, 8])
def test_the_chain_equals_plain_autograd(grad_steps, through, kl_weight, dtype, tolerance):
    model, codec, x = ToyModel(dtype=dtype), ToyCodec(dtype=dtype), noise(dtype=dtype)
    plain_autograd(model, codec, toy_score, x, SIGMAS, grad_steps, 0.7, kl_weight, "sigma", through)
    expected = collect(model)
    reward_gradient(
        model, codec, toy_score, x, None, SIGMAS,
        grad_steps=grad_steps, reward_weight=0.7, kl_weight=kl_weight, kl_through=through,
    )  # fmt: skip
    assert (collect(model) - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("through", ["detached", "exact", "biased"])
@pytest.mark.parametrize("first, grad_steps, kept", [(0, 1, 0), (0, 4, 1), (3, 4, 3), (2, 5, 8), (4, 4, 2)])
def test_the_chain_of_earlier_steps_equals_plain_autograd(first, grad_steps, kept, through, dtype, tolerance):
    model, codec, x = ToyModel(dtype=dtype), ToyCodec(dtype=dtype), noise(dtype=dtype)
    plain_autograd(model, codec, toy_score, x, SIGMAS, grad_steps, 0.7, 1.0, "sigma", through, first)
    expected = collect(model)
    reward_gradient(
        model, codec, toy_score, x, None, SIGMAS, kl_through=through, kept_passes=kept,
        grad_steps=grad_steps, first_grad_step=first, reward_weight=0.7,
    )  # fmt: skip
    assert (collect(model) - expected).norm() <= tolerance * expected.norm()
    assert all(parameter.requires_grad for parameter in model.adapter_parameters().values())


def test_the_three_ways_of_the_anchor_through_x_t_are_three_gradients():
    model, codec, gradients = ToyModel(), ToyCodec(), []
    for through in ("detached", "exact", "biased"):
        reward_gradient(model, codec, toy_score, noise(), None, SIGMAS, reward_weight=0.0, kl_through=through)
        gradients.append(collect(model))
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert (gradients[first] - gradients[second]).norm() > 1e-3 * gradients[first].norm()


def test_uniform_weighting_and_scale_reach_the_gradient():
    model, codec, x = ToyModel(), ToyCodec(), noise()
    plain_autograd(model, codec, toy_score, x, SIGMAS, 4, 0.7, 2.0, "uniform", "detached")
    expected = collect(model)
    for half in x.split(1):  # two calls of half the batch accumulate to the whole
        reward_gradient(
            model, codec, toy_score, half, None, SIGMAS,
            reward_weight=0.7, kl_weight=2.0, kl_weighting="uniform", scale=0.5,
        )  # fmt: skip
    assert (collect(model) - expected).norm() <= 1e-10 * expected.norm()


class StepModel:
    """v = x + θ_i at step i, one parameter a step: shows which steps are trained."""

    def __init__(self, sigmas: Tensor):
        self.thetas = {
            sigma: Parameter(torch.full((), 0.1, dtype=torch.float64)) for sigma in sigmas.tolist()[:-1]
        }

    def velocity(self, x, sigma, condition):
        return x + self.thetas[sigma]

    def frozen_velocity(self, x, sigma, condition):
        return x + 0.0

    def adapter_parameters(self):
        return {f"{sigma:.4f}": theta for sigma, theta in self.thetas.items()}


class PlainCodec:
    """The latents are the frames."""

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        return frames_BTCHW.transpose(1, 2)

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        return latents_BCTHW.transpose(1, 2)

    def pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        return gradient_BTCHW.transpose(1, 2)


def mean_of_pixels(frames_TCHW: Tensor, index: int) -> RewardScore:
    return replace(toy_score(frames_TCHW), value=frames_TCHW.mean())


@pytest.mark.parametrize("grad_steps", [1, 4, 8])
def test_gradient_reaches_only_the_last_k_steps(grad_steps):
    model = StepModel(SIGMAS)
    reward_gradient(model, ToyCodec(), toy_score, noise(), None, SIGMAS, grad_steps=grad_steps)
    reached = [theta.grad is not None and theta.grad.item() != 0 for theta in model.thetas.values()]
    assert reached == [False] * (8 - grad_steps) + [True] * grad_steps


@pytest.mark.parametrize("first", [0, 3, 5])
def test_gradient_reaches_only_the_k_steps_that_are_named(first):
    model = StepModel(SIGMAS)
    reward_gradient(
        model,
        ToyCodec(),
        toy_score,
        noise(),
        None,
        SIGMAS,
        grad_steps=3,
        first_grad_step=first,
        kl_weight=0.0,
    )
    reached = [theta.grad is not None and theta.grad.item() != 0 for theta in model.thetas.values()]
    assert reached == [first <= i < first + 3 for i in range(8)]


def test_one_linear_step_has_the_gradient_that_paper_and_pencil_give():
    # Two steps 1 → 0.5 → 0 of v = x + θ_i, K = 2. x_1 = x − (x + θ_0)/2 = x/2 − θ_0/2; x_2 = x_1/2 − θ_1/2
    # = x/4 − θ_0/4 − θ_1/2. R = mean of x_2, so dR/dθ_0 = −1/4 and dR/dθ_1 = −1/2. v − v_ref = θ_i: the
    # anchor's mean over two steps at sigma 1 and 1/2 is (θ_0²/2 + 2 θ_1²)/2, with slopes θ_0/2 and 2 θ_1.
    # L = −3 R + 5 KL at θ = 0.1: dL/dθ_0 = 0.75 + 5·0.05 = 1.0; dL/dθ_1 = 1.5 + 5·0.2 = 2.5.
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    model = StepModel(sigmas)
    rollout, scores = reward_gradient(
        model, PlainCodec(), mean_of_pixels, noise(), None, sigmas, grad_steps=2, reward_weight=3, kl_weight=5
    )
    gradients = [theta.grad.item() for theta in model.thetas.values()]
    assert gradients == pytest.approx([1.0, 2.5])
    # Drift is θ² = 0.01 at both; R = x/4 − 0.025 − 0.05 in the mean.
    assert rollout.drift_K.tolist() == pytest.approx([0.01, 0.01])
    assert rollout.sigmas_K.tolist() == [1.0, 0.5]
    expected = noise().mean(dim=(1, 2, 3, 4)) / 4 - 0.075
    assert [score.value.item() for score in scores] == pytest.approx(expected.tolist())


class SavedBytes:
    """Counts the bytes that autograd keeps for backward passes; `peak` is the most that lived at once."""

    def __init__(self):
        self.now = self.peak = 0

    def pack(self, tensor: Tensor):
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.peak = max(self.peak, self.now)
        kept = [tensor.detach()]
        holder = _Holder(kept)
        weakref.finalize(holder, self.release, size)
        return holder

    def release(self, size: int) -> None:
        self.now -= size

    @staticmethod
    def unpack(holder):
        return holder.kept[0]


class _Holder:
    def __init__(self, kept: list[Tensor]):
        self.kept = kept


def saved_bytes(call) -> int:
    count = SavedBytes()
    with torch.autograd.graph.saved_tensors_hooks(count.pack, count.unpack):
        call()
    return count.peak


@pytest.mark.parametrize("through", ["detached", "exact", "biased"])
def test_memory_does_not_grow_with_k(through):
    model, codec, x = ToyModel(), ToyCodec(), noise()
    chain = [
        saved_bytes(
            lambda k=k: reward_gradient(
                model, codec, toy_score, x, None, SIGMAS, grad_steps=k, kl_through=through
            )
        )
        for k in (2, 4, 8)
    ]
    plain = [
        saved_bytes(
            lambda k=k: plain_autograd(model, codec, toy_score, x, SIGMAS, k, 0.1, 1.0, "sigma", through)
        )
        for k in (2, 4, 8)
    ]
    assert chain[0] == chain[1] == chain[2] < plain[0]
    kept = saved_bytes(
        lambda: reward_gradient(
            model, codec, toy_score, x, None, SIGMAS, grad_steps=8, kl_through=through, kept_passes=8
        )
    )
    assert kept > 3 * chain[2]  # what further kept passes cost
    assert plain[2] > 3 * plain[0]  # the same measure sees plain autograd's graphs pile up


@pytest.mark.parametrize(
    "later, kept, velocity", [(0, 0, 12), (0, 1, 11), (0, 4, 8), (0, 8, 8), (4, 1, 15), (4, 8, 8), (3, 5, 10)]
)
def test_the_passes_are_the_promised_number(later, kept, velocity):
    # N = 8, K = 4: 8 rollout + 4 again for the gradient, and those after them, less the kept ones, of v_θ, 4
    # of v_ref; backward 4, those after them, and for the detached anchor 3 that have a step before.
    calls = {"velocity": 0, "frozen_velocity": 0, "backward": 0}

    class Counted(ToyModel):
        def velocity(self, x, sigma, condition=None):
            calls["velocity"] += 1
            v = x * self.up.sum()
            if v.requires_grad:
                v.register_hook(lambda _: calls.update(backward=calls["backward"] + 1))
            return v

        def frozen_velocity(self, x, sigma, condition=None):
            calls["frozen_velocity"] += 1
            return x

    reward_gradient(
        Counted(), ToyCodec(), toy_score, noise(), None, SIGMAS,
        grad_steps=4, first_grad_step=4 - later, kept_passes=kept,
    )  # fmt: skip
    assert calls == {"velocity": velocity, "frozen_velocity": 4, "backward": 7 + later}


@pytest.mark.parametrize("through", ["detached", "exact", "biased"])
def test_kept_passes_give_the_same_bits_as_those_run_again(through):
    gradients = []
    for kept in (0, 1, 3, 4):
        model = ToyModel()
        reward_gradient(
            model,
            ToyCodec(),
            toy_score,
            noise(),
            None,
            SIGMAS,
            kl_through=through,
            anchored=[0, 2, 3],
            kept_passes=kept,
        )
        gradients.append(collect(model))
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_a_reward_that_is_nan_is_passed_on():
    def broken(frames_TCHW: Tensor, index: int) -> RewardScore:
        score = toy_score(frames_TCHW)
        return replace(score, value=score.value * float("nan")) if index else score

    model = ToyModel()
    _, scores = reward_gradient(model, ToyCodec(), broken, noise(), None, SIGMAS)
    assert scores[0].value.isfinite() and scores[1].value.isnan()
    assert collect(model).isnan().any()


def test_a_reward_without_gradient_leaves_the_anchor_alone():
    def nothing_to_score(frames_TCHW: Tensor, index: int) -> RewardScore:
        return replace(toy_score(frames_TCHW), value=torch.zeros(()))

    model = ToyModel()
    reward_gradient(model, ToyCodec(), nothing_to_score, noise(), None, SIGMAS)
    unscored = collect(model)
    reward_gradient(model, ToyCodec(), toy_score, noise(), None, SIGMAS, reward_weight=0.0)
    assert torch.equal(unscored, collect(model))


@pytest.mark.parametrize("grad_steps", [0, 9])
def test_k_beyond_the_steps_is_refused(grad_steps):
    with pytest.raises(ValueError, match=f"Of 8 steps 1 to 8 .* not {grad_steps}"):
        reward_gradient(ToyModel(), ToyCodec(), toy_score, noise(), None, SIGMAS, grad_steps=grad_steps)


@pytest.mark.parametrize("first", [-1, 5])
def test_k_steps_that_begin_too_late_are_refused(first):
    with pytest.raises(ValueError, match=f"begin at 0 to 4, not at {first}"):
        reward_gradient(ToyModel(), ToyCodec(), toy_score, noise(), None, SIGMAS, first_grad_step=first)


def test_the_toy_codec_gives_frames_back():
    frames = torch.rand(1, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    frames = 0.1 + 0.8 * frames
    codec = ToyCodec()
    torch.testing.assert_close(codec.decode(codec.encode(frames)), frames)
