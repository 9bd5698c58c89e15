"""One step of the authors' released code, as numbers (../shared/golden/README.md), computed by ours.

The bar wanted was 1e-6 for the adapter gradient, in relative L2 norm. The golden numbers were made in
float32, whose rounding here is larger, so the test holds 3e-6, and 1e-6 for the gradient's norm. Measured:

- the authors' own code (DiffSynth 1.1.8, their loss and tiled VAE) was run here in float32 with 16 settings
  of threads, instruction set and checkpointing: 14 runs lie 1.61e-6 to 1.79e-6 from the golden gradient and
  up to 2.1e-6 from one another; in float64 it lies 1.64e-6 from golden. None of them meets 1e-6;
- ours, as below, lies 1.86e-6 from golden, and 1.04e-6 from the authors' code in float64;
- the cause is the KL, whose gradient is 94 % of the whole in norm: v and v_ref differ by 1.1 %, and float32
  gets v − v_ref wrong by 3.1e-7 of v. An error of 1e-7 in each velocity moves the gradient by 6.4e-7. The
  reward's part is wrong by 6e-7 at most, and a float64 VAE hardly changes the distance;
- a unit of the toy face network lies within rounding of its kink: the last bits of the noise, an attention
  kernel, or a thread count (the other 2 runs) put it on the other side, up to 5.7e-4 away. Weights are
  float64 here to stay on the golden side.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ipro_core.models.base import pullback_by_autograd
from ipro_core.models.lora import import_lora
from ipro_core.models.wan import WanCondition, load_video_model
from ipro_core.sampling.anchor import anchor_weight
from ipro_core.sampling.flow import shifted_sigmas, switch_step
from ipro_core.sampling.gradient import reward_gradient
from ipro_core.sampling.rollout import sample
from ipro_core.types import RewardScore

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "reference_step"
HEADS = 4  # of the width of 96; not stored: of 1, 2, 3, 4, 6, 8 and 12 only 4 gives the KL printed

pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.skipif(not GOLDEN.exists(), reason="needs ../shared: the authors' step as numbers"),
]


class WanVAE:
    """diffusers' Wan 2.1 autoencoder as a VideoCodec; frames in [-1, 1], as the authors' reward."""

    def __init__(self, path: Path):
        from diffusers import AutoencoderKLWan
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

        official = {key.removeprefix("model."): tensor for key, tensor in load_file(path).items()}
        self.vae = AutoencoderKLWan(base_dim=len(official["encoder.conv1.bias"]), z_dim=16)
        self.vae.load_state_dict(convert_wan_vae_to_diffusers(official))
        self.vae = nn.Module.to(self.vae, torch.float64).requires_grad_(False)
        self.mean = torch.tensor(self.vae.config.latents_mean).double().view(1, 16, 1, 1, 1)
        self.std = torch.tensor(self.vae.config.latents_std).double().view(1, 16, 1, 1, 1)

    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        raise NotImplementedError("the golden inputs hold the encoded first frame")

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        latents = latents_BCTHW.double() * self.std + self.mean
        return self.vae.decode(latents, return_dict=False)[0].transpose(1, 2)

    def pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        return pullback_by_autograd(self, latents_BCTHW, gradient_BTCHW)


class FaceScore:
    """The toy face network and the authors' score: mean cosine to the pool's faces but its first."""

    def __init__(self, inputs: dict[str, Tensor]):
        self.network = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2), nn.PReLU(16), nn.Conv2d(16, 16, 3, stride=2), nn.PReLU(16),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 512),
        )  # fmt: skip
        weights = {key.removeprefix("toy.n."): inputs[key] for key in inputs if key.startswith("toy.")}
        self.network.load_state_dict(weights)
        self.network.double().requires_grad_(False)
        self.pool_PD = nn.functional.normalize(inputs["pool"][0, 1:].double(), dim=1)

    def __call__(self, frames_TCHW: Tensor, index: int) -> RewardScore:
        embeddings_TD = self.network(frames_TCHW[..., :112, :112].clamp(-1, 1))
        cosine_TP = nn.functional.normalize(embeddings_TD, dim=1) @ self.pool_PD.T
        per_frame_T = cosine_TP.mean(dim=1)
        return RewardScore(per_frame_T.mean(), per_frame_T, torch.ones(len(per_frame_T), dtype=torch.bool))


def test_our_adapter_gradient_is_the_authors(tmp_path):
    inputs, weights = load_file(GOLDEN / "inputs.safetensors"), load_file(GOLDEN / "low_lora.safetensors")
    save_file(
        {key: value for key, value in weights.items() if "lora_" not in key}, tmp_path / "low.safetensors"
    )
    save_file({key: value for key, value in weights.items() if "lora_" in key}, tmp_path / "lora.safetensors")
    condition = WanCondition(inputs["context"], inputs["y"])
    sigmas = shifted_sigmas(8, 5.0)
    switch = switch_step(sigmas, 0.9)
    assert switch == 3

    high = load_video_model(GOLDEN / "high.safetensors", dtype=torch.float64, num_heads=HEADS)
    boundary_latents = sample(high, inputs["noise"], condition, sigmas[: switch + 1])
    low = load_video_model(tmp_path / "low.safetensors", dtype=torch.float64, num_heads=HEADS)
    import_lora(tmp_path / "lora.safetensors", low)
    rollout, (score,) = reward_gradient(
        low,
        WanVAE(GOLDEN / "vae.safetensors"),
        FaceScore(inputs),
        boundary_latents,
        condition,
        sigmas[switch:],
        grad_steps=4,
        reward_weight=0.1 / 0.16,  # the loss is −(score − 0.54) / 0.16 · 0.1 + KL
        kl_through="biased",
    )

    golden = {
        key.replace(".default", ""): value for key, value in load_file(GOLDEN / "grads.safetensors").items()
    }
    parameters = low.adapter_parameters()
    assert parameters.keys() == golden.keys()
    ours = torch.cat([parameters[key].grad.flatten() for key in golden]).double()
    theirs = torch.cat([value.flatten() for value in golden.values()]).double()
    kl = sum(
        anchor_weight(s, "sigma") * d for s, d in zip(rollout.sigmas_K.tolist(), rollout.drift_K, strict=True)
    )
    assert score.value.item() == pytest.approx(-0.007980, abs=5e-7)
    assert kl.item() / 4 == pytest.approx(6.358615e-05, rel=2e-6)
    assert ours.norm().item() == pytest.approx(7.962534e-04, rel=1e-6)
    assert (ours - theirs).norm() <= 3e-6 * theirs.norm()  # wanted: 1e-6; see above
