"""The pack on the host's own code, in a process of its own: its modules, and small scenes to compare on."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from host_modules import lend_missing_modules

host, *jobs = sys.argv[1:]
root = Path(__file__).parent.parent
sys.argv = sys.argv[:1]
os.chdir(host)
sys.path[:] = [host, *(place for place in sys.path if place not in ("", str(root)))]
lend_missing_modules()
import torch  # noqa: E402
from comfy.cli_args import args  # noqa: E402

args.cpu = True
import comfy.latent_formats  # noqa: E402
import comfy.model_sampling  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402

torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location(
    "pack", root / "__init__.py", submodule_search_locations=[str(root)]
)
sys.modules["pack"] = importlib.util.module_from_spec(spec)
switches = importlib.import_module("pack.nodes._host_switches")
host_model = importlib.import_module("pack.nodes._host_model")
host_studio = importlib.import_module("pack.nodes._host_studio")
exact_lora = importlib.import_module("pack.nodes._exact_lora")
lora = importlib.import_module("pack.ipro_core.models.lora")
keys = importlib.import_module("pack.ipro_core.models.lora_keys")
vae_files = importlib.import_module("pack.ipro_core.models.vae_files")
flow = importlib.import_module("pack.ipro_core.sampling.flow")
gradient = importlib.import_module("pack.ipro_core.sampling.gradient")
rollout = importlib.import_module("pack.ipro_core.sampling.rollout")
types = importlib.import_module("pack.ipro_core.types")

STEPS, SHIFT, SEED = 8, 5.0, 3
path = Path()
"""Of the network that a task is about."""


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_shift(patcher):
    """As ModelSamplingSD3 does it, whose module imports all of the host."""
    kind = type("Shifted", (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST), {})
    sampling, clone = kind(patcher.model.model_config), patcher.clone()
    sampling.set_parameters(shift=SHIFT, multiplier=1000)
    clone.add_object_patch("model_sampling", sampling)
    return clone


def scene(patcher, seed=0):
    """CONDITIONING and LATENT as WanImageToVideo and Wan22ImageToVideoLatent give them; 2 × 3 × 2 tokens."""
    network = patcher.model.diffusion_model
    channels, told = network.out_dim, {"pooled_output": None}
    latent = {"samples": torch.zeros(1, channels, 2, 6, 4)}
    if network.in_dim > channels:
        mask = torch.ones(1, 1, 2, 6, 4)
        mask[:, :, 0] = 0
        told |= {"concat_latent_image": draw(1, 16, 2, 6, 4, seed=seed + 1), "concat_mask": mask}
    elif channels == 48:
        mask = torch.ones(1, 1, 2, 6, 4)
        mask[:, :, :1] = 0
        known = comfy.latent_formats.Wan22().process_out(latent["samples"])
        known[:, :, :1] = draw(1, 48, 1, 6, 4, seed=seed + 1)
        latent = {"samples": known, "noise_mask": mask}
    return [[draw(1, 16, 4096, seed=seed + 2), told]], latent


def ksampler(patcher, conditioning, latent):
    """What KSampler does with euler and simple, seed SEED."""
    noise = comfy.sample.prepare_noise(latent["samples"], SEED)
    return comfy.sample.sample(
        patcher, noise, STEPS, 1.0, "euler", "simple", conditioning, conditioning, latent["samples"],
        noise_mask=latent.get("noise_mask"), disable_pbar=True, seed=SEED,
    )  # fmt: skip


def our_sampler(model, conditioning, latent, *, frozen=False):
    noise = comfy.sample.prepare_noise(latent["samples"], SEED)
    sigmas = flow.shifted_sigmas(STEPS, SHIFT)
    condition = model.condition(conditioning, latent)
    x = rollout.sample(model, noise, condition, sigmas, frozen=frozen)
    return model.patcher.model.process_latent_out(x.float()).cpu()


def filled(model, size=0.05, rank=4):
    """An adapter that does something; alpha is half its rank."""
    model.new_adapter(rank, rank / 2)
    with torch.inference_mode(False):
        layers = {
            name: keys.LowRank(layer.down_RI, size * draw(*layer.up_OR.shape, seed=len(name)), layer.alpha)
            for name, layer in model.adapter().items()
        }
        model.place_adapter(layers)


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()
