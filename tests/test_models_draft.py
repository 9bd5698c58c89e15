"""The drafted codec: true where the faces are, and never a gradient on a draft."""

import pytest
import torch
from torch import Tensor
from vae_networks import CHANNELS, empty_network, network

from ipro_core.models.base import pull
from ipro_core.models.draft import DraftedVae
from ipro_core.models.taehv import DraftCodec, TinyAutoencoder
from ipro_core.models.vae import WanVae
from ipro_core.models.vae_box import Shelf

KIND = "2.2"
BOX = (5, 25, 20, 44)
LATENTS = torch.randn(1, CHANNELS[KIND], 3, 2, 4, generator=torch.Generator().manual_seed(1))


def drafted(find=lambda frames: BOX, **options) -> DraftedVae:
    torch.manual_seed(7)
    tiny = TinyAutoencoder(CHANNELS[KIND], 2).requires_grad_(False)
    return DraftedVae(WanVae(network(KIND), **options), DraftCodec(tiny, raw=False), find)


def judge_of(region):
    """A judge that is fond of a texture inside a region: (T, rows, columns)."""

    def judge(frames_BTCHW: Tensor):
        texture = torch.linspace(-1, 1, frames_BTCHW.numel()).view_as(frames_BTCHW)
        kept = torch.zeros_like(frames_BTCHW)
        kept[:, region[0], :, region[1], region[2]] = 1
        frames = frames_BTCHW.detach().requires_grad_()
        with torch.enable_grad():
            value = (kept * (texture * frames).sin()).sum()
        return value.detach(), torch.autograd.grad(value, frames)[0]

    return judge


FACE = (slice(None), slice(6, 24), slice(22, 40))


def test_frames_are_true_inside_the_box_and_the_drafts_outside():
    codec = drafted()
    frames, truth, draft = codec.decode(LATENTS), codec.vae.decode(LATENTS), codec.draft.decode(LATENTS)
    inside = torch.zeros_like(frames, dtype=torch.bool)
    inside[..., BOX[0] : BOX[1], BOX[2] : BOX[3]] = True
    torch.testing.assert_close(frames[inside], truth[inside], atol=1e-5, rtol=0)
    assert torch.equal(frames[~inside], draft[~inside]) and not torch.equal(truth[~inside], draft[~inside])


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30], ids=["decoded again", "graph kept"])
@pytest.mark.parametrize("region", [FACE, (slice(0, 4), *FACE[1:])], ids=["all frames", "the first four"])
def test_a_judge_inside_the_box_gets_the_true_decoders_value_and_gradient(region, kept_bytes):
    codec = drafted(kept_bytes=kept_bytes)
    value, pulled = pull(codec, LATENTS, judge_of(region))
    wanted_value, wanted = pull(codec.vae, LATENTS, judge_of(region))
    torch.testing.assert_close(value, wanted_value)
    assert (pulled - wanted).norm() < 1e-5 * wanted.norm()
    assert (codec.judged, codec.judged_again) == (1, 0)


@pytest.mark.parametrize("find", [lambda frames: BOX, lambda frames: None], ids=["beside", "no face"])
def test_a_judge_that_looks_beside_the_box_gets_the_whole_truth(find, caplog):
    codec, region = drafted(find), (slice(None), slice(6, 26), slice(22, 40))  # a row too far down
    for _ in range(2):
        value, pulled = pull(codec, LATENTS, judge_of(region))
        wanted_value, wanted = pull(codec.vae, LATENTS, judge_of(region))
        torch.testing.assert_close(value, wanted_value, rtol=1e-5, atol=1e-4)  # another order of sums
        assert (pulled - wanted).norm() < 1e-5 * wanted.norm()
    assert codec.judged_again == 2 and caplog.text.count("looked beside") == 1


def test_where_the_draft_shows_no_face_nothing_is_decoded_truly(monkeypatch):
    codec = drafted(lambda frames: None)
    monkeypatch.setattr(codec.vae, "decoder", None)
    seen = []
    _, pulled = pull(codec, LATENTS, lambda frames: (seen.append(frames), torch.zeros_like(frames)))
    assert torch.equal(seen[0], codec.draft.decode(LATENTS)) and not pulled.any()


def test_a_gradient_that_is_nan_is_passed_on():
    codec = drafted()
    _, pulled = pull(codec, LATENTS, lambda frames: (0, torch.full_like(frames, torch.nan)))
    assert pulled.isnan().any()


@pytest.mark.slow
def test_decode_and_gradient_of_a_face_cost_less_than_a_pass_of_ti2v_5b():
    from torch.utils.flop_counter import FlopCounterMode

    def flops(work):
        with FlopCounterMode(display=False) as counted:
            made = work()
        return counted.get_total_flops(), made

    # 121 frames of 704x1280. Tokens: 31 latent frames of 22 x 40. Linear layers: 12 D² + 4 D F of each token,
    # of the text's keys and values 4 D²; attention: 4 D for each pair.
    tokens, text, dim, ffn = 31 * 22 * 40, 512, 3072, 14336
    linear = tokens * (12 * dim**2 + 4 * dim * ffn) + text * 4 * dim**2
    forward = 30 * (linear + 4 * dim * tokens * (tokens + text))
    # A face of 100 px has a crop of 107, and an eighth of that as a border on each side.
    box = (285, 419, 573, 707)
    with torch.device("meta"):
        network = empty_network("2.2", 160).to("meta").requires_grad_(False)
        vae = WanVae(network, kept_bytes=1 << 60, shelf=Shelf("meta"))
        tiny = TinyAutoencoder(48, 2).requires_grad_(False)
    spent = {}
    for count in (2, 3):  # every further latent frame costs the same
        latents = torch.empty(1, 48, count, 44, 80, device="meta")
        seen, (frames, pull_back) = flops(lambda latents=latents: vae.look(latents, box))
        pulled, _ = flops(lambda pull_back=pull_back, frames=frames: pull_back(torch.empty_like(frames)))
        drafted, _ = flops(lambda latents=latents: tiny.decode(latents.transpose(1, 2), []))
        whole, _ = flops(lambda latents=latents: vae.decode(latents))
        spent[count] = torch.tensor([seen, pulled, drafted, whole], dtype=torch.float64) / forward
    look, back, draft, whole = (spent[2] + 29 * (spent[3] - spent[2])).tolist()
    print(f"look {look:.3f}, back {back:.3f}, draft {draft:.3f}, whole {whole:.2f} passes")
    assert look + back + draft <= 1 < whole


def test_a_draft_for_other_latents_is_refused():
    tiny = DraftCodec(TinyAutoencoder(16, 1), raw=False)
    with pytest.raises(ValueError, match="latents of 16 channels, the autoencoder's have 48"):
        DraftedVae(WanVae(network(KIND)), tiny, lambda frames: None)
