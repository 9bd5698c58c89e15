"""One IPRO gradient through the host's MODEL, and what it is held against; for host_model.py."""

import importlib
from functools import partial
from itertools import pairwise

import host_inside as here
import torch
from host_inside import (
    SHIFT,
    STEPS,
    comfy,
    distance,
    draw,
    filled,
    flow,
    gradient,
    host_model,
    switches,
    types,
    with_shift,
)


class Codec:
    """Latents are frames: what is tested is the network's gradient."""

    def decode(self, latents_BCTHW):
        return latents_BCTHW[:, :3].transpose(1, 2)

    def pullback(self, latents_BCTHW, gradient_BTCHW):
        pulled = torch.zeros_like(latents_BCTHW)
        pulled[:, :3] = gradient_BTCHW.transpose(1, 2)
        return pulled


def score(frames_TCHW, index):
    value = (frames_TCHW * draw(*frames_TCHW.shape, seed=8)).mean()
    return types.RewardScore(value, value.detach()[None], torch.ones(1, dtype=torch.bool))


def states(patcher):
    """Which tensors the host's network has, and what is done to its modules."""
    modules = list(patcher.model.diffusion_model.named_modules())
    tensors = {
        f"{name}.{key}": id(tensor)
        for name, module in modules
        for store in (module._parameters, module._buffers)
        for key, tensor in store.items()
    }
    changed = [name for name, module in modules if "forward" in vars(module) or module._forward_hooks]
    return tensors, changed


def train(patcher, conditioning, latent):
    """One IPRO gradient of two steps, and the same by plain autograd through the host's forward."""
    with torch.inference_mode(False):
        model = host_model.HostModel(patcher)
        filled(model)
        condition = model.condition(conditioning, latent)
        x, sigmas = draw(*latent["samples"].shape, seed=4), flow.shifted_sigmas(STEPS, SHIFT)[5:]
        more = {"grad_steps": 2, "kept_passes": 1, "kl_through": "exact"}
        gradient.reward_gradient(model, Codec(), score, x, condition, sigmas, **more)
        ours = {name: tensor.grad.clone() for name, tensor in model.adapter_parameters().items()}
        for tensor in model.adapter_parameters().values():
            tensor.grad = None
        levels, (velocity, frozen_velocity) = sigmas.tolist(), by_autograd(model)
        with torch.no_grad():
            x = flow.euler_step(x, model.velocity(x, levels[0], condition), levels[0], levels[1])
        loss = 0.0
        for sigma, sigma_next in pairwise(levels[1:]):
            v, v_ref = velocity(x, sigma, condition), frozen_velocity(x, sigma, condition)
            loss = loss + (v - v_ref).square().mean() / (2 * sigma**2) / 2
            x = flow.euler_step(x, v, sigma, sigma_next)
        (loss - 0.1 * score(Codec().decode(x)[0], 0).value).backward()
        plain = {name: tensor.grad for name, tensor in model.adapter_parameters().items()}
        both = [torch.cat([grad.flatten() for grad in grads.values()]) for grads in (ours, plain)]
        reached = sum(bool(grad.any()) for grad in ours.values())
        figures = {"reached": reached, "tensors": len(ours), "gradient": distance(*both)}
        if "fp32" in here.path.name:
            figures |= by_the_core(
                model, condition, draw(*latent["samples"].shape, seed=4), sigmas, more, ours
            )
        return figures | finite(model, x, condition)


def by_the_core(model, condition, x, sigmas, how, ours):
    """The same gradient by the core's own network on the same file."""
    core = importlib.import_module("pack.ipro_core.models.wan").load_video_model(here.path)
    core.place_adapter(model.adapter())
    gradient.reward_gradient(core, Codec(), score, x, condition, sigmas, **how)
    theirs = {name: tensor.grad for name, tensor in core.adapter_parameters().items()}
    together = [torch.cat([grads[name].flatten() for name in sorted(ours)]) for grads in (ours, theirs)]
    return {"core": distance(*together), "core_names": ours.keys() == theirs.keys()}


def by_autograd(model):
    """v_θ and v_ref by the host's forward alone: normal tensors, the adapter added into the weights.

    Of weights that are not floats, where nothing can be added, by our own velocities.
    """
    if here.path.name.count("fp32") == 0:
        return model.velocity, model.frozen_velocity
    bases = [with_shift(comfy.sd.load_diffusion_model(str(here.path))) for _ in range(2)]
    for name, layer in model.layers.items():
        module = bases[0].model.diffusion_model.get_submodule(name)
        weight = module._parameters.pop("weight").detach()
        scale = layer.alpha / len(layer.down_RI)
        module.weight = weight + scale * layer.up_OR @ layer.down_RI

    def run(base, x, sigma, condition):
        x_in, free, first = x, None, condition.first_BC1HW
        if first is not None:
            free = torch.ones_like(x)
            free[:, :, 0] = 0
            x_in = torch.cat([first, x[:, :, 1:]], dim=2)
        given, options = model._given(condition, x, free)
        with switches.differentiable():
            x_0 = comfy.samplers.sampling_function(
                base.model, x_in, torch.full((1,), sigma), None, given, 1.0, options
            )
        x_0 = x_0 if first is None else torch.cat([first, x_0[:, :, 1:]], dim=2)
        return (x - x_0) / sigma

    for base in bases:  # as a guider prepares them
        base.model.model_sampling = base.object_patches["model_sampling"]
        base.pre_run()
    return (partial(run, base) for base in bases)


def finite(model, x_BCTHW, condition):
    """The derivative along a random direction of the adapter, by differences in float32."""
    weights = list(model.adapter_parameters().values())
    for tensor in weights:
        tensor.grad = None
    probe = draw(*x_BCTHW.shape, seed=11)
    along = [
        draw(*tensor.shape, seed=12) * tensor.detach().norm() / tensor.numel() ** 0.5 for tensor in weights
    ]
    x = x_BCTHW.detach()
    (model.velocity(x, 0.625, condition) * probe).sum().backward()
    slope = sum((tensor.grad * way).sum() for tensor, way in zip(weights, along, strict=True)).item()
    ends = []
    for step in (0.01, -0.01):
        with torch.no_grad():
            for tensor, way in zip(weights, along, strict=True):
                tensor += step * way
            ends.append((model.velocity(x, 0.625, condition) * probe).double().sum().item())
            for tensor, way in zip(weights, along, strict=True):
                tensor -= step * way
    return {"slope": slope, "difference": (ends[0] - ends[1]) / 0.02}
