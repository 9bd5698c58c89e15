"""The main job on real pictures: clips → pools → a tiny video model, trained here → IPRO → strangers' faces.

    python docs/real_clips.py --run runs/real-clips

Needs ../shared (real clips, face networks, the image codec TAEF2) and one CPU core. What came of it, and how
long it took, stands in docs/real-clips.md. Everything is written into the run's folder, nothing of it belongs
into the repository; begun again, the script goes on from what it finds there.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ipro_core.clips.video import read_frames, read_image, write_video
from ipro_core.evaluation.compare import SceneVideos, compare_videos
from ipro_core.evaluation.facesim import face_sim
from ipro_core.evaluation.film import side_by_side
from ipro_core.evaluation.report import write_report
from ipro_core.evaluation.statistics import paired_gain
from ipro_core.evaluation.verdict import Comparison
from ipro_core.faces.packs import load_face_models, load_recognizer
from ipro_core.faces.pool import build_pool
from ipro_core.models.base import pullback_by_autograd
from ipro_core.models.lora import export_lora
from ipro_core.models.wan import WanCondition, load_video_model
from ipro_core.models.wan_files import save_wan_file
from ipro_core.rewards.face_pool import FacePoolReward
from ipro_core.runs import Run, read_metrics
from ipro_core.sampling.flow import shifted_sigmas
from ipro_core.sampling.rollout import sample
from ipro_core.training.base import TrainingSample
from ipro_core.training.ipro import IproObjective, IproSettings
from ipro_core.training.loop import MAY_DIFFER, LoopSettings, train
from ipro_core.types import FacePool, Person

log = logging.getLogger("ipro")

SHARED = Path(__file__).resolve().parents[2] / "shared"

# One person each. Cuts of one recording stay with its person: derived/ is made of the s18 and s20 clips.
TRAINED = {
    "d12": ("clips/portrait_lp_d12.mp4",),
    "d3": ("clips/closeup_lp_d3.mp4",),
    "aoc": ("clips/hdtf_wda_aoc.mp4",),
    "roll": ("clips/smallface_roll_video1.mp4",),
    "s18": ("clips/walk_lp_s18.mp4", "derived/i2v81_walk_lp_s18.mp4", "derived/i2v81_small_s18.mp4"),
    "s20": ("clips/dolly_lp_s20.mp4", "derived/i2v81_dolly_lp_s20.mp4"),
}
HELD_OUT = {
    "d20": ("clips/portrait_lp_d20.mp4",),
    "demo1": ("clips/vertical_ls_demo1.mp4",),
    "consisid": ("clips/smallface_consisid.mp4",),
    "s13": ("clips/smallface_lp_s13.mp4",),
}
"""Left out of both: the cartoon, several people, half the frames without a face, nobody at all."""

FPS = 5.0
FRAMES = 5
"""Of a video the model makes: 0.8 s."""
STRETCH = 9
"""Frames encoded in one window; a training video is any 5 of them in a row, forwards or backwards."""
SIDE = 96
"""Pixels: 12 × 12 latents, 6 × 6 tokens a frame."""
LATENTS = (32, FRAMES, SIDE // 8, SIDE // 8)
FACE_WIDTHS = 2.1
"""Side of the square window, in face widths: the face is then about 46 px wide."""

SHAPE = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "in_channels": 32 + 4 + 32,  # noisy, mask, condition
    "out_channels": 32,
    "text_dim": 16,
    "freq_dim": 256,
    "ffn_dim": 512,
    "num_layers": 4,
    "cross_attn_norm": True,
    "image_dim": None,
}
"""WanTransformer3DModel, I2V-A14B's pattern with TAEF2's 32 channels."""

LOOP = LoopSettings(updates=40, batch_size=4, learning_rate=5e-4, clip_norm=1.0, checkpoint_every=10)
IPRO = IproSettings(
    steps=8,
    shift=5.0,
    grad_steps=4,
    reward_weight=1.0,
    kl_weight=3.0,
    kl_weighting="uniform",
    landmark_jitter=1.0,
    microbatch=4,
)
RANK = 16


class TinyImageCodec:
    """TAEF2, frame by frame, as a `VideoCodec`: 32 channels of about unit variance, 8 × 8 px a latent.

    The network is read off the file's names: a weight without a bias changes the size (stride 2 in the
    encoder, after doubling in the decoder), `conv.*` is a residual block, and `pool.*` (GroupNorm in four
    groups between two 1 × 1 convolutions) is added to a block's input.
    """

    def __init__(self, folder: Path) -> None:
        self.encoder = {k: v.float() for k, v in load_file(folder / "taef2_encoder.safetensors").items()}
        self.decoder = {k: v.float() for k, v in load_file(folder / "taef2_decoder.safetensors").items()}

    @torch.no_grad()
    def encode(self, frames_BTCHW: Tensor) -> Tensor:
        """Frames in [0, 1] → latents (B, 32, T, H/8, W/8)."""
        x = frames_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        for index in range(_length(self.encoder)):
            x = _layer(self.encoder, index, x, stride=2)
        return x.unflatten(0, frames_BTCHW.shape[:2]).transpose(1, 2)

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Latents → frames (B, T, 3, H, W)."""
        x = latents_BCTHW.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = torch.tanh(x / 3) * 3
        x = F.relu(_layer(self.decoder, 1, x, stride=1))
        for index in range(3, _length(self.decoder)):
            x = _layer(self.decoder, index, x, stride=1)
        return x.unflatten(0, latents_BCTHW.shape[::2][:2])

    def pullback(self, latents_BCTHW: Tensor, gradient_BTCHW: Tensor) -> Tensor:
        """Frames do not meet in this codec, so one at a time bounds the memory and changes nothing."""
        pairs = zip(latents_BCTHW.split(1, dim=2), gradient_BTCHW.split(1, dim=1), strict=True)
        return torch.cat([pullback_by_autograd(self, z, gradient) for z, gradient in pairs], dim=2)


def _length(tensors: dict[str, Tensor]) -> int:
    return 1 + max(int(name.split(".")[0]) for name in tensors)


def _layer(tensors: dict[str, Tensor], index: int, x: Tensor, stride: int) -> Tensor:
    """One entry of TAEF2's list: a convolution, a block, or, where the file has nothing, no change."""
    if f"{index}.conv.0.weight" in tensors:
        return _block(tensors, f"{index}.", x)
    if f"{index}.weight" not in tensors:
        return x
    weight, bias = tensors[f"{index}.weight"], tensors.get(f"{index}.bias")
    if bias is None and stride == 1:
        x = F.interpolate(x, scale_factor=2)
    return F.conv2d(x, weight, bias, stride if bias is None else 1, padding=1)


def _block(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if f"{name}pool.0.weight" in tensors:
        wide = F.conv2d(x, tensors[f"{name}pool.0.weight"])
        normed = F.group_norm(wide, 4, tensors[f"{name}pool.1.weight"], tensors[f"{name}pool.1.bias"])
        x = x + F.conv2d(F.relu(normed), tensors[f"{name}pool.3.weight"])
    h = x
    for part in ("conv.0", "conv.2", "conv.4"):
        h = F.conv2d(h, tensors[f"{name}{part}.weight"], tensors[f"{name}{part}.bias"], padding=1)
        h = h if part == "conv.4" else F.relu(h)
    return F.relu(h + x)


@dataclass(frozen=True, eq=False)
class PersonClip:
    """A real clip of one person, with the face of every frame."""

    person: str
    frames_TCHW: Tensor
    boxes_T4: Tensor
    pool: FacePool


def read_people(people: dict[str, tuple[str, ...]], media: Path, cache: Path, faces) -> list[PersonClip]:
    """Every clip with its pool; pools are kept in `cache`, since detection is what takes the time."""
    clips = []
    for person, files in people.items():
        for file in files:
            frames_TCHW = read_frames(media / file, fps=FPS, max_side=960)
            kept = cache / f"{Path(file).stem}.safetensors"
            if not kept.exists():
                build_pool(frames_TCHW, *faces, source=file).save(kept)
            pool = FacePool.load(kept)
            boxes_T4 = pool.boxes_P4[nearest(pool.frames_P, len(frames_TCHW))]
            clips.append(PersonClip(person, frames_TCHW, boxes_T4, pool))
            log.info(
                "%s: %d frames, coverage %.2f, self-similarity %.2f, face %.0f px",
                file, len(frames_TCHW), pool.coverage, pool.self_similarity, widths(boxes_T4).mean(),
            )  # fmt: skip
    return clips


def nearest(frames_P: Tensor, count: int) -> Tensor:
    """For each of `count` frames, the pool's face that is nearest in time."""
    return (torch.arange(count)[:, None] - frames_P).abs().argmin(dim=1)


def widths(boxes_T4: Tensor) -> Tensor:
    return boxes_T4[:, 2] - boxes_T4[:, 0]


def cut(frames_TCHW: Tensor, boxes_T4: Tensor, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)):
    """The frames in one square window around the mean box, (T, 3, SIDE, SIDE), inside the picture."""
    height, width = frames_TCHW.shape[2:]
    face = widths(boxes_T4).mean().item()
    side = min(round(FACE_WIDTHS * face * zoom), height, width)
    centre = (boxes_T4[:, :2] + boxes_T4[:, 2:]).mean(dim=0).div(2).tolist()
    left = min(max(round(centre[0] + shift[0] * face - side / 2), 0), width - side)
    top = min(max(round(centre[1] + shift[1] * face - side / 2), 0), height - side)
    window = frames_TCHW[:, :, top : top + side, left : left + side]
    return F.interpolate(window, (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)


def augmented(clip: PersonClip, generator: torch.Generator) -> Tensor:
    """A stretch of the clip with its window, mirror and colours drawn at random."""
    start = int(torch.randint(max(1, len(clip.frames_TCHW) - STRETCH + 1), (), generator=generator))
    part = slice(start, start + STRETCH)
    zoom, right, down = (torch.rand(3, generator=generator) * 2 - 1).tolist()
    window = cut(clip.frames_TCHW[part], clip.boxes_T4[part], 1.05 + 0.15 * zoom, (0.12 * right, 0.12 * down))
    window = window.flip(-1) if torch.rand((), generator=generator) < 0.5 else window
    colours_3 = 1 + 0.12 * (torch.rand(3, 1, 1, generator=generator) * 2 - 1)
    return (window * colours_3).clamp(0, 1)


def stills(media: Path, detector, generator: torch.Generator, each: int) -> Iterator[Tensor]:
    """More people: every face of the photographs under a slowly moving camera, `each` stretches."""
    for path in sorted((media / "stills").iterdir()):
        picture_CHW = read_image(path)
        for face in detector.detect(picture_CHW[None])[0]:
            if face.box_4[2] - face.box_4[0] < 0.4 * SIDE:
                continue
            for _ in range(each):
                a, b = torch.rand(2, 3, generator=generator) * 2 - 1
                path_T3 = torch.lerp(a, b, torch.linspace(0, 1, STRETCH)[:, None])
                yield torch.cat([
                    cut(picture_CHW[None], face.box_4[None], 1.05 + 0.1 * zoom, (0.15 * right, 0.15 * down))
                    for zoom, right, down in path_T3.tolist()
                ])  # fmt: skip


def encode_stretches(codec: TinyImageCodec, clips: list[PersonClip], photographs, count: int) -> Tensor:
    """Latents (N, 32, 9, 12, 12): `count` stretches for each trained person, then the photographs."""
    generator = torch.Generator().manual_seed(0)
    people = sorted({clip.person for clip in clips})
    stretches = []
    for person in people:
        own = [clip for clip in clips if clip.person == person]
        stretches += [augmented(own[k % len(own)], generator) for k in range(count)]
    stretches += list(photographs)
    return torch.cat([codec.encode(s[None]) for s in tqdm(stretches, desc="encode")]).contiguous()


def hold(first_BCHW: Tensor) -> WanCondition:
    """What the network is told: the first frame's latents in every frame, the mask on the first; no prompt.

    Wan's own condition (`models.wan.image_condition`) fills the unknown frames with mid-grey and leaves it to
    attention to carry the picture over, which a few minutes of training do not teach.
    """
    held = first_BCHW[:, :, None].expand(-1, -1, FRAMES, -1, -1)
    mask = torch.zeros_like(held[:, :4])
    mask[:, :, 0] = 1
    return WanCondition(torch.zeros(len(first_BCHW), 1, SHAPE["text_dim"]), torch.cat([mask, held], dim=1))


@torch.no_grad()
def begin_still(model) -> None:
    """Begin as a camera that holds the picture: v = (x − c) / sigma, up to the last LayerNorm's scale.

    Minutes are too few to learn from nothing how a picture is carried through the network. The first 128 of
    its 256 channels take x − c, the others c / 2; every block begins as the identity.
    """
    channels = SHAPE["out_channels"]
    embed, head = model.patch_embedding.weight.zero_(), model.proj_out.weight
    for place, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        for channel in range(channels):
            unit, held = place * channels + channel, channels + 4 + channel
            embed[unit, channel, 0, row, column] = 1
            embed[unit, held, 0, row, column] = -1
            embed[unit + 4 * channels, held, 0, row, column] = 0.5
    head.copy_(torch.eye(*head.shape))
    for block in model.blocks:
        for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            last.weight.zero_()
            last.bias.zero_()


def train_base(
    stretches: Tensor, path: Path, *, cpu_seconds: float, batch: int = 8, peak: float = 1e-3
) -> None:
    """Flow matching, v = noise − x_0, at the eight noise levels that are sampled at, and no others."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    torch.manual_seed(0)
    model, average = WanTransformer3DModel(**SHAPE), WanTransformer3DModel(**SHAPE)
    begin_still(model)
    average.load_state_dict(model.state_dict())
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers = [
        torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.01),
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    levels = shifted_sigmas(IPRO.steps, IPRO.shift)[:-1]
    generator = torch.Generator().manual_seed(1)
    began, step, recent = time.process_time(), 0, 1.0
    bar = tqdm(total=round(cpu_seconds), desc="base model", unit=" CPU s")
    while (spent := (time.process_time() - began) / cpu_seconds) < 1:
        rows = torch.randint(len(stretches), (batch,), generator=generator)
        start = int(torch.randint(STRETCH - FRAMES + 1, (), generator=generator))
        clean = stretches[rows, :, start : start + FRAMES]
        clean = clean.flip(2) if step % 2 else clean
        sigma = levels[torch.randint(len(levels), (batch,), generator=generator)]
        noise, level = torch.randn(clean.shape, generator=generator), sigma.view(-1, 1, 1, 1, 1)
        told = hold(clean[:, :, 0])
        noisy = torch.cat([(1 - level) * clean + level * noise, told.image_BCTHW], dim=1)
        (v,) = model(noisy, 1000 * sigma, told.text_BLD, return_dict=False)
        loss = (v - (noise - clean)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = min(1.0, (step + 1) / 50) * min(1.0, max(0.02, (1 - spent) / 0.6))  # warm up, hold, fall
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, max(0.01, 10 / (step + 11)))
        step, recent = step + 1, 0.98 * recent + 0.02 * loss.item()
        bar.set_postfix(step=step, loss=f"{recent:.3f}")
        bar.update(round(spent * cpu_seconds) - bar.n)
    bar.close()
    save_wan_file(average, path, {"steps": str(step), "batch": str(batch), "loss": f"{recent:.4f}"})


def scenes(clips: list[PersonClip], each: int) -> Iterator[tuple[str, Tensor, PersonClip]]:
    """`each` windows spread evenly over a person's first clip: name, frames (5, 3, SIDE, SIDE), the clip."""
    for person, clip in {clip.person: clip for clip in reversed(clips)}.items():
        starts = torch.linspace(0, len(clip.frames_TCHW) - FRAMES, each).round().int().tolist()
        for number, start in enumerate(starts):
            part = slice(start, start + FRAMES)
            yield f"{person}/{number}", cut(clip.frames_TCHW[part], clip.boxes_T4[part]), clip


def tune(model, codec, faces, clips: list[PersonClip], folder: Path, loop: LoopSettings) -> None:
    """IPRO through the pack's own loop, on the trained people's windows, each against its clip's pool."""
    samples = [
        TrainingSample(name, hold(codec.encode(frames[None, :1])[:, :, 0]), LATENTS, (Person(clip.pool),))
        for name, frames, clip in scenes(clips, each=12)
    ]
    config = {"loop": asdict(loop), "ipro": asdict(IPRO), "rank": RANK, "base": model.base_sha256}
    begun = (folder / "config.json").exists()
    run = Run.open(folder, config, may_differ=MAY_DIFFER) if begun else Run.create(folder, config)
    model.new_adapter(RANK)
    objective = IproObjective(model, codec, *faces, FacePoolReward(), IPRO)
    with run, closing(train(model, objective, samples, loop, run)) as records:
        for record in (bar := tqdm(records, total=loop.updates, desc="IPRO")):
            bar.set_postfix({name: f"{record.metrics[name]:.3f}" for name in ("reward", "kl", "coverage")})
        export_lora(model, run.adapters / "real-clips.safetensors")


@torch.no_grad()
def evaluate(model, codec, faces, judge, clips: list[PersonClip], each: int, film: Path) -> Comparison:
    """Base against tuned from the same noise; the pictures go to `film`."""
    sigmas, shown = shifted_sigmas(IPRO.steps, IPRO.shift), []

    def videos() -> Iterator[SceneVideos]:
        for seed, (name, real, _) in enumerate(tqdm(list(scenes(clips, each)), desc=film.stem)):
            told = hold(codec.encode(real[None, :1])[:, :, 0])
            noise = torch.randn(1, *LATENTS, generator=torch.Generator().manual_seed(seed))
            base, tuned = (
                codec.decode(sample(model, noise, told, sigmas, frozen=frozen))[0].clamp(0, 1)
                for frozen in (True, False)
            )
            shown.append({"real": real, "base": base, "tuned": tuned})
            yield SceneVideos(name, "", seed, real[0], base, tuned, real)

    comparison = compare_videos(videos(), *faces, judge)
    joined = {which: torch.cat([videos[which] for videos in shown]) for which in ("real", "base", "tuned")}
    write_video(film, side_by_side(joined), FPS)
    return comparison


@torch.no_grad()
def codec_ceiling(codec, faces, clips: list[PersonClip], each: int) -> float:
    """FaceSim of the real windows after one pass through the codec: no model behind it can do better."""
    found = [
        face_sim(codec.decode(codec.encode(real[None]))[0].clamp(0, 1), real[0], *faces).all
        for _, real, _ in scenes(clips, each)
    ]
    return sum(found) / len(found)


def by_person(comparison: Comparison) -> dict:
    """What scenes hide: each person's figures, strangers' cosine, and the gain with people as the unit."""
    pairs = comparison.pairs
    person = [pair.scene.split("/")[0] for pair in pairs]
    base, tuned = [pair.base.facesim.all for pair in pairs], [pair.tuned.facesim.all for pair in pairs]
    strangers = [
        float(pairs[i].reference_D @ pairs[j].reference_D)
        for i in range(len(pairs)) for j in range(i) if person[i] != person[j]
    ]  # fmt: skip
    of = {
        name: [round(sum(v for v, p in zip(values, person, strict=True) if p == name) / person.count(name), 4)
               for values in (base, tuned)]
        for name in dict.fromkeys(person)
    }  # fmt: skip
    return {
        "people": of,
        "strangers": sum(strangers) / len(strangers),
        "gain_by_person": asdict(paired_gain(base, tuned, person)),
        "judge_base": comparison.mean("base", lambda video: video.judge.all),
        "judge_tuned": comparison.mean("tuned", lambda video: video.judge.all),
        "judge_real": comparison.mean("real", lambda video: video.judge.all),
        "motion": {
            which: comparison.mean(which, lambda video: video.motion) for which in ("base", "tuned", "real")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder with media/ and weights/")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/real-clips"), help="where everything is written"
    )
    parser.add_argument("--train-seconds", type=float, default=240, help="CPU seconds for the base model")
    parser.add_argument("--stretches", type=int, default=30, help="training stretches for each person")
    parser.add_argument("--updates", type=int, default=LOOP.updates, help="updates of IPRO")
    parser.add_argument("--scenes", type=int, default=6, help="evaluation windows for each person")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began = time.perf_counter()
    media, packs = asked.shared / "media", asked.shared / "weights/insightface/models"
    (asked.run / "pools").mkdir(parents=True, exist_ok=True)
    codec = TinyImageCodec(asked.shared / "weights/codec")
    faces = load_face_models(packs / "antelopev2")
    trained = read_people(TRAINED, media, asked.run / "pools", faces)
    held_out = read_people(HELD_OUT, media, asked.run / "pools", faces)

    base, latents = asked.run / "base.safetensors", asked.run / "stretches.safetensors"
    if not base.exists():
        if not latents.exists():
            photographs = stills(media, faces[0], torch.Generator().manual_seed(2), asked.stretches // 6)
            save_file({"x": encode_stretches(codec, trained, photographs, asked.stretches)}, latents)
        train_base(load_file(latents)["x"], base, cpu_seconds=asked.train_seconds)

    # The windows are small and nearly filled by the face: one scale finds it, at a fifth of the cost.
    faces = load_face_models(packs / "antelopev2", long_sides=(320,))
    judge = load_recognizer(packs / "judge")
    model = load_video_model(base)
    tune(model, codec, faces, trained, asked.run / "ipro", replace(LOOP, updates=asked.updates))

    steps = read_metrics(asked.run / "ipro")
    figures = {}
    for name, clips in (("held-out", held_out), ("trained", trained)):
        film = asked.run / f"{name}.mp4"
        comparison = evaluate(model, codec, faces, judge, clips, asked.scenes, film)
        figures[name] = comparison.figures() | by_person(comparison)
        figures[name]["codec_ceiling"] = codec_ceiling(codec, faces, clips, asked.scenes)
        settings = {"people": name, **asdict(IPRO), **asdict(LOOP), "rank": RANK}
        write_report(asked.run / f"report-{name}.html", comparison, steps=steps, settings=settings)
        figures["minutes"] = round((time.perf_counter() - began) / 60, 1)
        (asked.run / "figures.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
