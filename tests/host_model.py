"""Run by test_host_model.py and test_host_lora.py in a process of its own: the pack on the host's own code.

    python host_model.py CHECKOUT NETWORK TASK NETWORK TASK …

Prints a line of JSON with the figures of each task; everything runs in inference mode, as nodes do.
"""

import importlib
import importlib.util
import json
import logging
import os
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

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
from comfy.ldm.wan.vae import WanVAE  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402

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
        if "fp32" in path.name:
            figures |= by_the_core(
                model, condition, draw(*latent["samples"].shape, seed=4), sigmas, more, ours
            )
        return figures | finite(model, x, condition)


def by_the_core(model, condition, x, sigmas, how, ours):
    """The same gradient by the core's own network on the same file."""
    core = importlib.import_module("pack.ipro_core.models.wan").load_video_model(path)
    core.place_adapter(model.adapter())
    gradient.reward_gradient(core, Codec(), score, x, condition, sigmas, **how)
    theirs = {name: tensor.grad for name, tensor in core.adapter_parameters().items()}
    together = [torch.cat([grads[name].flatten() for name in sorted(ours)]) for grads in (ours, theirs)]
    return {"core": distance(*together), "core_names": ours.keys() == theirs.keys()}


def by_autograd(model):
    """v_θ and v_ref by the host's forward alone: normal tensors, the adapter added into the weights.

    Of weights that are not floats, where nothing can be added, by our own velocities.
    """
    if path.name.count("fp32") == 0:
        return model.velocity, model.frozen_velocity
    bases = [with_shift(comfy.sd.load_diffusion_model(str(path))) for _ in range(2)]
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


def parity(patcher, conditioning, latent):
    """Before a training, with the adapter off; after it; and what is left of it on the host's network."""
    before = ksampler(patcher, conditioning, latent)
    model = host_model.HostModel(patcher)
    ours = our_sampler(model, conditioning, latent)
    filled(model)
    off = our_sampler(model, conditioning, latent, frozen=True)
    on = our_sampler(model, conditioning, latent)
    was = states(patcher)
    figures = train(patcher, conditioning, latent)
    tensors, changed = states(patcher)
    after = ksampler(patcher, conditioning, latent)
    return figures | {
        "size": before.abs().max().item(),
        "ours": (ours - before).abs().max().item(),
        "off": (off - before).abs().max().item(),
        "after": (after - before).abs().max().item(),
        "effect": distance(on, before),
        "inference": all(p.is_inference() for p in patcher.model.diffusion_model.parameters()),
        "changed": len(changed) + (tensors != was[0]),
    }


def loras(patcher, conditioning, latent):
    """The exported LoRA: by the stock loader, by Apply LoRA, by Apply LoRA in steps 6 and 7 alone."""
    base = ksampler(patcher, conditioning, latent)
    model = host_model.HostModel(patcher)
    filled(model)
    trained = our_sampler(model, conditioning, latent)
    file = path.with_suffix(".lora.safetensors")
    lora.write_lora(model.adapter(), file, {})
    whole = exact_lora.StepRange(0, STEPS, STEPS)
    exact = exact_lora.apply_lora(patcher, file, 1.0, whole)
    late = exact_lora.apply_lora(patcher, file, 1.0, exact_lora.StepRange(6, 8, STEPS))
    twice = exact_lora.apply_lora(exact_lora.apply_lora(patcher, file, 0.25, whole), file, 0.75, whole)
    stock, _ = comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(str(file)), 1.0, 0)
    results = {
        name: ksampler(one, conditioning, latent)
        for name, one in {"exact": exact, "late": late, "twice": twice, "stock": stock}.items()
    }
    # Steps 6 and 7 of our own sampler, the others without.
    noise, sigmas = comfy.sample.prepare_noise(latent["samples"], SEED), flow.shifted_sigmas(STEPS, SHIFT)
    condition = model.condition(conditioning, latent)
    x = rollout.sample(model, noise, condition, sigmas[:7], frozen=True)
    x = rollout.sample(model, x, condition, sigmas[6:])
    split = patcher.model.process_latent_out(x.float())
    again = ksampler(patcher, conditioning, latent)
    # A training above a LoRA in steps: its blocks run again with the LoRA as it was.
    figures = train(late, conditioning, latent)
    effect = (trained - base).norm()
    return figures | {
        "effect": distance(trained, base),
        "exact": ((results["exact"] - trained).norm() / effect).item(),
        "twice": ((results["twice"] - trained).norm() / effect).item(),
        "late": ((results["late"] - split).norm() / (split - base).norm()).item(),
        "late_effect": distance(split, base),
        "stock": ((results["stock"] - trained).norm() / effect).item(),
        "again": (again - base).abs().max().item(),
    }


def identities(patcher, conditioning, latent):
    """What tells the MODEL: as it is, with LoRAs merged and loaded, let go again, laid beside; and in numbers
    how much of the network was read."""
    tell = importlib.import_module("pack.nodes._host_identity").identity
    model = host_model.HostModel(patcher)
    filled(model)
    file = path.with_suffix(".lora.safetensors")
    lora.write_lora(model.adapter(), file, {})
    told = {"base": tell(patcher)}

    def with_stock(strength):
        tensors = comfy.utils.load_torch_file(str(file))
        return comfy.sd.load_lora_for_models(patcher, None, tensors, strength, 0)[0]

    stock, whole = with_stock(1.0), exact_lora.StepRange(0, STEPS, STEPS)
    told["stock"], told["stock again"], told["half"] = map(tell, (stock, with_stock(1.0), with_stock(0.5)))
    ksampler(stock, conditioning, latent)
    told["stock loaded"], told["base while stock is loaded"] = tell(stock), tell(patcher)
    ksampler(patcher, conditioning, latent)
    told["base loaded"] = tell(patcher)
    beside = [exact_lora.apply_lora(patcher, file, 1.0, whole) for _ in range(2)]
    told["beside"], told["beside again"] = map(tell, beside)
    told["beside, late"] = tell(exact_lora.apply_lora(patcher, file, 1.0, exact_lora.StepRange(6, 8, STEPS)))
    unshifted = patcher.clone()
    del unshifted.object_patches["model_sampling"]
    told["unshifted"] = tell(unshifted)
    with torch.inference_mode(False):
        weight = patcher.model.diffusion_model.blocks[1].ffn[0].weight
        plain = switches.plain_tensor(weight)
        plain = plain._qdata if hasattr(plain, "_qdata") else plain
        plain.view(torch.uint8).flatten()[0] ^= 1
    told["other weights"] = tell(patcher)
    return told


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, y):
        return y.clone()


def foreign(patcher, conditioning, latent):
    """A studio to tune in, where one layer is another pack's: with a backward, and without one."""
    studio = importlib.import_module("pack.ipro_core.studio")
    layer = patcher.model.diffusion_model.blocks[0].ffn[0]
    kind, told = type(layer), {}
    vae = SimpleNamespace(latent_channels=16, vae_dtype=torch.float32, patcher=None)
    others = importlib.import_module("pack.ipro_core.wan_job").WanFiles(cache=str(path.parent / "cache"))
    chosen = host_studio.HostModelChoice(patcher, vae, others=others)
    text = studio.Network(lambda: "", lambda: lambda prompt: torch.zeros(1, 4096))
    ways = {"with": lambda y: y, "silent": lambda y: y.detach(), "without": lambda y: NoBackward.apply(y)}
    for name, way in ways.items():
        forward = lambda self, x, way=way: way(kind.forward(self, x))  # noqa: E731
        layer.__class__ = type("Theirs", (kind,), {"forward": forward})
        layer.__class__.__module__ = "their pack"
        try:
            with torch.inference_mode(False):
                told[name] = chosen.open_studio(None, (None, 1), text=text).kind
        except ValueError as reason:
            told[name] = str(reason)
    layer.__class__ = kind
    return told


def nodes(patcher, conditioning, latent):
    """The node classes: their faces, and one run of each; the host's loras are in the network's folder."""
    import folder_paths

    room = importlib.import_module("pack.nodes.host")
    folder_paths.folder_names_and_paths["loras"] = ([str(path.parent)], {".safetensors"})
    model = host_model.HostModel(patcher)
    filled(model)
    lora.write_lora(model.adapter(), path.parent / "trained.safetensors", {})
    faces = [node.GET_SCHEMA() for node in room.NODES]
    untold = [
        f"{face.node_id} {part.id}"
        for face in faces
        for part in (*face.inputs, *face.outputs)
        if not part.tooltip
    ]
    apply, check = room.NODES
    applied = apply.execute(patcher, "trained.safetensors", 1.0, 0, STEPS, STEPS).result[0]
    applied, trained = ksampler(applied, conditioning, latent), our_sampler(model, conditioning, latent)
    report, stock, exact = check.execute(patcher, "trained.safetensors", conditioning, latent).result
    sampling = patcher.object_patches["model_sampling"]
    late = exact_lora.StepRange(6, 8, STEPS)
    return {
        "on": [late.holds(sigma, sampling) for sigma in (1.0, 0.75, 0.625, 0.5, 5 / 12, 0.1)],
        "ids": [face.node_id for face in faces],
        "untold": untold,
        "applied": (applied - trained).abs().max().item(),
        "report": report,
        "stock": stock,
        "exact": exact,
    }


def codec(patcher, conditioning, latent):
    """The host's WanVAE, narrow, and ours on the same memory: decode, and the gradient."""
    tensors = comfy.utils.load_torch_file(str(path.parent / "vae.safetensors"))
    narrow = WanVAE(
        dim=tensors["decoder.head.2.weight"].shape[1], z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2,
        attn_scales=[], temperal_downsample=[False, True, True], dropout=0.0,
    ).double().eval()  # fmt: skip
    narrow.load_state_dict(tensors)
    cpu = torch.device("cpu")
    vae = SimpleNamespace(
        first_stage_model=narrow, patcher=ModelPatcher(narrow, cpu, cpu), device=cpu, vae_dtype=torch.float64
    )
    ours = host_studio.codec_of(vae)
    with torch.inference_mode(False):
        format, z = comfy.latent_formats.Wan21(), draw(1, 16, 2, 4, 4, seed=1).double()
    with torch.inference_mode(False), switches.differentiable(), switches.plain(vae.first_stage_model):
        latents = z.clone().requires_grad_()
        mean, std = vae_files.statistics(16, latents)  # the host's own are float32
        raw = latents * std + mean
        frames = vae.first_stage_model.decode(raw)
        frames = (frames / 2 + 0.5).transpose(1, 2)
        probe = draw(*frames.shape, seed=2).double()
        (pulled,) = torch.autograd.grad(frames, latents, probe)
        gradient = distance(ours.pullback(z.clone(), probe), pulled)
    memory = {p.untyped_storage().data_ptr() for p in vae.first_stage_model.parameters()}
    shared = [p.untyped_storage().data_ptr() in memory for p in ours.network.parameters()]
    return {
        "units": (format.process_out(z) - raw).abs().max().item(),
        "decode": (ours.decode(z.clone()) - frames.detach()).abs().max().item(),
        "gradient": gradient,
        "shared": sum(shared) / len(shared),
        "inference": all(p.is_inference() for p in vae.first_stage_model.parameters()),
    }


logging.disable(logging.WARNING)
tasks = {
    "parity": parity,
    "loras": loras,
    "nodes": nodes,
    "codec": codec,
    "identities": identities,
    "foreign": foreign,
}
with torch.inference_mode():
    for network, task in zip(jobs[::2], jobs[1::2], strict=True):
        path = Path(network)
        patcher = with_shift(comfy.sd.load_diffusion_model(network))
        print(json.dumps(tasks[task](patcher, *scene(patcher))))
