"""Run by test_host_model.py and test_host_lora.py in a process of its own: the pack on the host's own code.

    python host_model.py CHECKOUT NETWORK TASK NETWORK TASK …

Prints a line of JSON with the figures of each task; everything runs in inference mode, as nodes do.
"""

import importlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import host_inside as here
import torch
from host_gradient import states, train
from host_inside import (
    SEED,
    SHIFT,
    STEPS,
    comfy,
    distance,
    draw,
    exact_lora,
    filled,
    flow,
    host_model,
    host_studio,
    jobs,
    ksampler,
    lora,
    our_sampler,
    rollout,
    scene,
    switches,
    vae_files,
    with_shift,
)


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
    file = here.path.with_suffix(".lora.safetensors")
    lora.write_lora(model.adapter(), file, {})
    whole = exact_lora.StepRange(0, STEPS, STEPS)
    exact = exact_lora.apply_lora(patcher, file, 1.0, whole)
    late = exact_lora.apply_lora(patcher, file, 1.0, exact_lora.StepRange(6, 8, STEPS))
    # The same steps as a file tells them, whatever shift the MODEL has by then.
    noted, told = file.with_suffix(".noted.safetensors"), lora.TunedRange(6, 8, STEPS, SHIFT)
    lora.write_lora(model.adapter(), noted, {lora.RANGE: json.dumps(told._asdict())})
    by_file = exact_lora.apply_lora(patcher, noted, 1.0, exact_lora.StepRange(*lora.lora_range(noted)))
    twice = exact_lora.apply_lora(exact_lora.apply_lora(patcher, file, 0.25, whole), file, 0.75, whole)
    stock, _ = comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(str(file)), 1.0, 0)
    results = {
        name: ksampler(one, conditioning, latent)
        for name, one in {
            "exact": exact,
            "late": late,
            "by_file": by_file,
            "twice": twice,
            "stock": stock,
        }.items()
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
        "by_file": (results["by_file"] - results["late"]).abs().max().item(),
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
    file = here.path.with_suffix(".lora.safetensors")
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
    others = importlib.import_module("pack.ipro_core.wan_job").WanFiles(cache=str(here.path.parent / "cache"))
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
    folder_paths.folder_names_and_paths["loras"] = ([str(here.path.parent)], {".safetensors"})
    model = host_model.HostModel(patcher)
    filled(model)
    lora.write_lora(model.adapter(), here.path.parent / "trained.safetensors", {})
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
    tensors = comfy.utils.load_torch_file(str(here.path.parent / "vae.safetensors"))
    narrow = comfy.ldm.wan.vae.WanVAE(
        dim=tensors["decoder.head.2.weight"].shape[1], z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2,
        attn_scales=[], temperal_downsample=[False, True, True], dropout=0.0,
    ).double().eval()  # fmt: skip
    narrow.load_state_dict(tensors)
    cpu = torch.device("cpu")
    vae = SimpleNamespace(
        first_stage_model=narrow,
        patcher=comfy.model_patcher.ModelPatcher(narrow, cpu, cpu),
        device=cpu,
        vae_dtype=torch.float64,
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
        here.path = Path(network)
        patcher = with_shift(comfy.sd.load_diffusion_model(network))
        print(json.dumps(tasks[task](patcher, *scene(patcher))))
