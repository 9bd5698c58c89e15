"""Wan's autoencoders: frames, gradients and memory, against diffusers, ComfyUI and plain autograd."""

import copy
from functools import cache

import pytest
import torch
from comfyui import find_comfyui, run_in_comfyui
from safetensors.torch import load_file, save_file
from torch import Tensor
from vae_networks import CHANNELS, KINDS, SCALE, empty_network, network, official_tensors

from ipro_core.bench.counting import Ledger
from ipro_core.models.vae import WanVae, load_vae
from ipro_core.models.vae_box import Shelf, VideoBox
from ipro_core.models.vae_files import statistics


def latents_of(kind: str, count: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, CHANNELS[kind], count, height, width, generator=generator, dtype=dtype)


@cache
def whole(kind: str, count: int, height: int, width: int, dtype: torch.dtype = torch.float32):
    """(latents, diffusers' decode of them, its gradient by plain autograd)"""
    latents = latents_of(kind, count, height, width, dtype).requires_grad_()
    mean, std = statistics(CHANNELS[kind], latents)
    frames = network(kind, dtype).decode(latents * std + mean, return_dict=False)[0].transpose(1, 2) / 2 + 0.5
    assert frames.min() > 0 and frames.max() < 1
    return (
        latents.detach(),
        frames.detach(),
        lambda gradient: torch.autograd.grad(frames, latents, gradient, retain_graph=True)[0],
    )


def difference(given: Tensor, wanted: Tensor) -> float:
    return ((given - wanted).norm() / wanted.norm()).item()


# Frames


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_diffusers_decoding_without_the_clamp(kind):
    latents, frames, _ = whole(kind, 3, 2, 3)
    vae = WanVae(network(kind))
    torch.testing.assert_close(vae.decode(latents), frames, atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(latents[:, :, :1]), frames[:, :1], atol=1e-5, rtol=0)
    # In double precision: the contrast raises the rounding error with everything else.
    contrasty, latents = copy.deepcopy(network(kind, torch.float64)), latents.double()
    contrasty.decoder.conv_out.weight.data *= 50
    mean, std = statistics(CHANNELS[kind], latents)
    clamped = contrasty.decode(latents * std + mean, return_dict=False)[0].transpose(1, 2) / 2 + 0.5
    ours = WanVae(contrasty).decode(latents)
    assert ours.min() < -0.1 and ours.max() > 1.1
    torch.testing.assert_close(ours.clamp(0, 1), clamped, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_is_diffusers_encoding_normalised(kind):
    frames = torch.rand(1, 5, 3, 2 * SCALE[kind], SCALE[kind], generator=torch.Generator().manual_seed(3))
    z = network(kind).encode(2 * frames.transpose(1, 2) - 1).latent_dist.mode()
    latents = WanVae(network(kind)).encode(frames)
    mean, std = statistics(CHANNELS[kind], z)
    torch.testing.assert_close(latents * std + mean, z, atol=1e-5, rtol=0)
    assert latents.shape == (1, CHANNELS[kind], 2, 2, 1)
    with pytest.raises(ValueError, match=r"1, 5, 9, … frames .* not 3 frames"):
        WanVae(network(kind)).encode(frames[:, :3])


COMFY = """
import sys
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import torch
from comfy.ldm.wan.vae import WanVAE
from comfy.ldm.wan.vae2_2 import WanVAE as WanVAE22
from comfy.latent_formats import Wan21, Wan22
from safetensors.torch import load_file, save_file
for kind, make, units in (("2.1", WanVAE, Wan21()), ("2.2", WanVAE22, Wan22())):
    tensors = load_file(f"{sys.argv[2]}/{kind}.safetensors")
    widths = {"dec_dim": 4} if kind == "2.2" else {}
    vae = make(dim=2, z_dim=units.latent_channels, temperal_downsample=[False, True, True], **widths)
    vae.load_state_dict(tensors, strict=True)
    given = load_file(f"{sys.argv[2]}/{kind}.inputs.safetensors")
    with torch.no_grad():
        decoded = vae.decode(units.process_out(given["latents"]))
        encoded = units.process_in(vae.encode(given["frames"].movedim(1, 2) * 2 - 1))
    made = {"decoded": decoded.movedim(2, 1) / 2 + 0.5, "encoded": encoded}
    made = {name: tensor.contiguous() for name, tensor in made.items()}
    save_file(made, f"{sys.argv[2]}/{kind}.outputs.safetensors")
"""


def test_both_are_comfyuis_own(tmp_path):
    host = find_comfyui("comfy/ldm/wan/vae2_2.py")
    for kind in KINDS:
        save_file(official_tensors(kind), tmp_path / f"{kind}.safetensors")
        frames = torch.rand(1, 9, 3, SCALE[kind], 2 * SCALE[kind], generator=torch.Generator().manual_seed(3))
        inputs = {"latents": latents_of(kind, 3, 1, 2), "frames": frames}
        save_file(inputs, tmp_path / f"{kind}.inputs.safetensors")
    run_in_comfyui(COMFY, host, tmp_path)
    for kind in KINDS:
        vae, inputs = (
            load_vae(tmp_path / f"{kind}.safetensors"),
            load_file(tmp_path / f"{kind}.inputs.safetensors"),
        )
        expected = load_file(tmp_path / f"{kind}.outputs.safetensors")
        torch.testing.assert_close(vae.decode(inputs["latents"]), expected["decoded"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vae.encode(inputs["frames"]), expected["encoded"], atol=1e-5, rtol=1e-5)


# Gradients

SUPPORTS = {  # [frames, rows, columns] with a gradient
    "everything": [(slice(None), slice(None), slice(None))],
    "a face": [(slice(None), slice(10, 14), slice(3, 30))],
    "a corner": [(slice(3, 5), slice(0, 6), slice(-9, None))],
    "a face that moves": [
        (0, slice(2, 5), slice(0, 4)),
        (4, slice(3, 9), 7),
        (8, slice(12, 15), slice(9, 11)),
    ],
    "one pixel of the last frame": [(8, 5, 40)],
}


def gradient_on(frames: Tensor, support: str) -> Tensor:
    gradient = torch.zeros_like(frames)
    drawn = torch.randn(frames.shape, generator=torch.Generator().manual_seed(4), dtype=frames.dtype)
    for where, rows, columns in SUPPORTS[support]:
        gradient[:, where, :, rows, columns] = drawn[:, where, :, rows, columns]
    return gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", SUPPORTS)
def test_the_gradient_is_plain_autograds(kind, support):
    latents, frames, plain = whole(kind, 3, 2, 6)
    gradient = gradient_on(frames, support)
    wanted = plain(gradient)
    assert difference(WanVae(network(kind)).pullback(latents, gradient), wanted) < 1e-5
    if support == "everything":
        assert difference(WanVae(network(kind), graph_bytes=0).pullback(latents, gradient), wanted) < 1e-5


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30], ids=["decoded again", "graph kept"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_look_through_a_box_is_exact_both_ways(kind, kept_bytes, monkeypatch):
    latents, frames, plain = whole(kind, 3, 2, 6)
    gradient, (top, bottom, left, right) = gradient_on(frames, "a face"), (9, 15, 3, 30)
    vae, walks = WanVae(network(kind), kept_bytes=kept_bytes), []
    monkeypatch.setattr(vae, "decoder", _Counted(vae.decoder, walks))
    for last in (9, 5):  # with the whole gradient, and with one that ends before the video does
        gradient[:, last:] = 0
        walks.clear()
        seen, pull = vae.look(latents, (top, bottom, left, right))
        torch.testing.assert_close(seen, frames[..., top:bottom, left:right], atol=1e-5, rtol=0)
        pulled = pull(gradient[:, :last, :, top:bottom, left:right])
        assert difference(pulled, plain(gradient)) < 1e-5
        # Three latent frames once; and where their graphs are not kept, as many again as the gradient has.
        assert len(walks) == (3 if kept_bytes else 3 + (last + 3) // 4)


@pytest.mark.parametrize("kind", KINDS)
def test_in_double_precision_the_difference_is_rounding(kind):
    latents, frames, plain = whole(kind, 3, 1, 2, torch.float64)
    gradient = gradient_on(frames, "everything")
    vae = WanVae(network(kind, torch.float64))
    assert difference(vae.pullback(latents, gradient), plain(gradient)) < 1e-12
    tiny = vae.pullback(latents.expand(2, -1, -1, -1, -1), 1e-30 * gradient.expand(2, -1, -1, -1, -1))
    assert difference(1e30 * tiny, plain(gradient).expand_as(tiny)) < 1e-12
    assert vae.pullback(latents, gradient * torch.nan).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_frames_after_the_last_scored_one_are_not_computed(kind, monkeypatch):
    latents, frames, plain = whole(kind, 3, 2, 6)
    vae = WanVae(network(kind))
    walks = []
    monkeypatch.setattr(vae, "decoder", _Counted(vae.decoder, walks))
    assert vae.pullback(latents, torch.zeros_like(frames)).count_nonzero() == 0 and not walks
    gradient = gradient_on(frames, "a face")
    gradient[:, 5:] = 0
    pulled = vae.pullback(latents, gradient)
    assert len(walks) == 3  # latent frames 0 and 1 with a graph, and 0 for its caches
    assert pulled[:, :, 2:].count_nonzero() == 0 and difference(pulled, plain(gradient)) < 1e-5
    walks.clear()
    gradient[:, 1:] = 0
    one = vae.pullback(latents[:, :, :1], gradient[:, :1])  # a video of one frame
    assert len(walks) == 1 and difference(one, plain(gradient)[:, :, :1]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_video_is_decoded_once_for_judgement_and_gradient(kind):
    latents, frames, plain = whole(kind, 3, 2, 6)
    gradient, walks = gradient_on(frames, "everything"), []
    gradient[:, 6:] = 0  # the last latent frame is scored in part
    for options, count in (({}, 3), ({"kept_bytes": 0}, 3 + 2 + 3)):
        vae = WanVae(network(kind), **options)
        vae.decoder, walks[:] = _Counted(vae.decoder, walks), []  # type: ignore[assignment]
        seen, pulled = vae.pull(latents, lambda shown: (shown, gradient))
        assert len(walks) == count and difference(seen, frames) < 1e-5
        assert difference(pulled, plain(gradient)) < 1e-5
    assert not WanVae(network(kind)).pull(latents, lambda shown: (0, torch.zeros_like(shown)))[1].any()


class _Counted:
    def __init__(self, decoder, walks):
        self._decoder, self._walks = decoder, walks

    def __call__(self, *given, **options):
        self._walks.append(1)
        return self._decoder(*given, **options)

    def __getattr__(self, name):
        return getattr(self._decoder, name)


@pytest.mark.parametrize("kind", KINDS)
def test_detached_caches_would_be_noticed(kind, monkeypatch):
    latents, frames, plain = whole(kind, 3, 2, 6)
    gradient = gradient_on(frames, "everything")
    pull = VideoBox._pull_chunk

    def detached(*given):
        pulled, *carried = pull(*given)
        return pulled, *map(torch.zeros_like, carried)

    monkeypatch.setattr(VideoBox, "_pull_chunk", detached)
    assert difference(WanVae(network(kind)).pullback(latents, gradient), plain(gradient)) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_windows_are_exact_and_not_a_pixel_too_wide(kind, monkeypatch):
    # One latent's pixels, in the middle of 29. Backwards from full size, pixels to each side: conv_out's 1
    # and the 6 of three blocks of two convolutions make 7; 8 with the upsampler's 1, that is 4 at half size;
    # 4 + 6 = 10; 11 is 6 at a quarter; 12; 13 is 7 latents; 7 + 6 = 13: the outermost two are not seen.
    latents, frames, plain = whole(kind, 1, 1, 29, torch.float64)
    scale = SCALE[kind]
    gradient = torch.zeros_like(frames)
    gradient[..., 14 * scale : 15 * scale] = torch.randn_like(gradient[..., 14 * scale : 15 * scale])
    vae = WanVae(network(kind, torch.float64))
    windows = vae.decoder.windows((0, scale, 14 * scale, 15 * scale), 1, 29)
    assert [window[2:] for window in windows] == [
        (1, 28),
        (28 - 12, 30 + 12),
        (56 - 10, 60 + 10),
        (112 - 7, 120 + 7),
    ]
    wanted = plain(gradient)
    assert difference(vae.pullback(latents, gradient), wanted) < 2e-14
    for stage, side, step in ((0, 2, 1), (0, 3, -1), (1, 2, 1), (2, 3, -1), (3, 2, 1)):
        narrowed = [list(window) for window in windows]
        narrowed[stage][side] += step
        monkeypatch.setattr(vae.decoder, "windows", lambda *_, narrowed=narrowed: narrowed)
        assert difference(vae.pullback(latents, gradient), wanted) > 1e-13, (stage, side)


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrower_margin_costs_exactness_little_by_little(kind):
    latents, frames, plain = whole(kind, 1, 1, 29, torch.float64)
    gradient = torch.zeros_like(frames)
    gradient[..., 14 * SCALE[kind] : 15 * SCALE[kind]] = 1
    errors = [
        difference(
            WanVae(network(kind, torch.float64), margin=margin).pullback(latents, gradient), plain(gradient)
        )
        for margin in (4, 8, 10, 13)
    ]
    print(kind, "margin 4, 8, 10, 13:", errors)
    assert errors[0] > errors[1] > errors[2] > 1e-12 > errors[3]


# Memory


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_promised_to_the_planner_are_those_kept(kind):
    vae, latents = WanVae(network(kind)), latents_of(kind, 2, 2, 6)
    windows = vae.decoder.windows((5, 9, 8, 30), 2, 6)
    for seen in (None, windows):
        _, caches = vae.decoder(latents[:, :, :1], [], seen)
        kept = {}
        leaf = latents[:, :, 1:].clone().requires_grad_()

        def keep(tensor, kept=kept):
            if not isinstance(tensor, torch.nn.Parameter):
                kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _, caches = vae.decoder(leaf, caches, seen)
        size = vae.decoder.chunk_size(2, 6, seen)
        assert sum(kept.values()) == size.graph
        assert sum(cache.numel() for cache in caches) == size.caches


@pytest.mark.slow
def test_memory_does_not_grow_with_the_frames():
    from torch._subclasses.fake_tensor import FakeTensorMode

    peaks = {}
    with FakeTensorMode():
        # Wan 2.1's true widths, 480x832, a face of 96 px; "cpu" is the device, "meta" its host.
        vae = WanVae(empty_network("2.1", 96).requires_grad_(False), shelf=Shelf("meta"))
        for frames in (21, 81):
            count = (frames - 1) // 4 + 1
            latents = torch.empty(1, 16, count, 60, 104)
            gradient = torch.empty(1, frames, 3, 480, 832)
            with Ledger((latents, gradient)) as ledger:
                before = ledger.now["cpu"]
                vae.pull_box(latents, gradient, (160, 256, 300, 396))
            peaks[frames] = ledger.peak["cpu"] - before
    print({frames: f"{peak / 2**30:.3f} GiB" for frames, peak in peaks.items()})
    assert peaks[81] / peaks[21] < 1.05
    assert peaks[81] < 2 << 30  # plain autograd: 495 GiB in float32, 311 in bfloat16, counted so too
