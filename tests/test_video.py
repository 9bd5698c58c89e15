"""Video files in and out. Most videos here show one grey level per frame, so a frame names itself."""

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ipro_core.clips.video import iterate_frames, probe, read_frames, read_image, write_video

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared: real clips")


def grey_video(path, ticks, *, time_base=Fraction(1, 1000), size=(32, 24), codec="libx264", options=None):
    """Write frame k with grey level 8 + 8 k, shown from ticks[k] on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = time_base
        for k, tick in enumerate(ticks):
            levels = np.full((size[1], size[0], 3), 8 + 8 * k, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(levels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(frames_TCHW):
    """Which frame of a `grey_video` each one is."""
    return ((frames_TCHW.mean(dim=(1, 2, 3)) * 255 - 8) / 8).round().int().tolist()


def smooth_frames(count, height, width):
    noise = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize(("height", "width"), [(96, 128), (97, 131)])
def test_a_written_video_reads_back_alike_and_odd_sizes_are_padded(tmp_path, height, width):
    frames = smooth_frames(12, height, width)
    write_video(tmp_path / "a.mp4", frames, 24)
    read = read_frames(tmp_path / "a.mp4")
    assert read.shape == (12, 3, height + height % 2, width + width % 2)
    # Saturated colours lose most in yuv420p; a wrong colour matrix would cost 10 dB more than this bound.
    psnr = -10 * (read[:, :, :height, :width] - frames).square().mean().log10()
    assert psnr > 30
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mp4"], "the temporary file is gone"


def test_a_written_video_plays_in_browsers_before_it_is_loaded(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, smooth_frames(5, 32, 32), 16)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    facts = probe(path)
    assert (facts.codec, facts.frames, facts.fps, facts.variable_rate) == ("h264", 5, 16, False)
    assert facts.duration == pytest.approx(5 / 16)


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    with pytest.raises(ValueError):
        write_video(path, smooth_frames(2, 32, 32)[:, :2], 16)  # two channels: fails midway
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_frames_come_in_the_order_of_showing_whatever_the_container_and_first_time(tmp_path, suffix):
    # Three B-frames in a row shuffle the order of storing; the first frame is shown at 5 s, not at 0.
    options = {"bf": "3", "g": "30", "x264-params": "b-adapt=0:scenecut=0"}
    path = grey_video(tmp_path / f"a.{suffix}", [5000 + 40 * k for k in range(20)], options=options)
    with av.open(str(path)) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stored != sorted(stored), "the file does hold shuffled frames"
    assert numbers(read_frames(path)) == list(range(20))
    assert numbers(read_frames(path, fps=25)) == list(range(20))


def test_a_part_is_the_same_as_that_part_of_the_whole(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, smooth_frames(20, 48, 64), 24)
    whole = read_frames(path)
    assert torch.equal(read_frames(path, 7, 5), whole[7:12])
    assert torch.equal(read_frames(path, 18, 5), whole[18:])
    chunks = list(iterate_frames(path, 1, 14, chunk=4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 4, 2]
    assert torch.equal(torch.cat(chunks), whole[1:15])


def test_a_variable_rate_is_resampled_by_the_time_stamps(tmp_path):
    # Frame 0 is on show for 100 ms, 1 for 20, 2 for 20, 3 for 260, 4 for 100, 5 to the end.
    path = grey_video(tmp_path / "a.mkv", [0, 100, 120, 140, 400, 500])
    assert numbers(read_frames(path)) == [0, 1, 2, 3, 4, 5]
    # At 20 fps the frames on show at 0, 50, 100, … 500 ms.
    expected = [0, 0, 1, 3, 3, 3, 3, 3, 4, 4, 5]
    assert numbers(read_frames(path, fps=20))[: len(expected)] == expected
    assert numbers(read_frames(path, 2, 3, fps=20)) == expected[2:5]
    assert probe(path).variable_rate


def test_resampling_to_the_videos_own_rate_changes_nothing(tmp_path):
    # 24 fps in whole milliseconds: 0, 42, 83, 125 …, so frame 1 comes 0.33 ms after 1/24 s.
    path = grey_video(tmp_path / "a.mkv", [round(1000 * k / 24) for k in range(24)])
    assert numbers(read_frames(path, fps=24)) == list(range(24))
    assert not probe(path).variable_rate
    # Every second frame at half the rate, every frame twice at double the rate.
    assert numbers(read_frames(path, 0, 12, fps=12)) == list(range(0, 24, 2))
    assert numbers(read_frames(path, 0, 24, fps=48)) == [k // 2 for k in range(24)]


@pytest.mark.parametrize(
    ("matrix", "rotation", "turned"),
    [
        # x' = a x + c y, y' = b x + d y, y downwards; (a, b, c, d) = (0, 1, −1, 0) turns clockwise.
        ((0, 1, -1, 0), 270, lambda frames: torch.rot90(frames, -1, (2, 3))),
        ((0, -1, 1, 0), 90, lambda frames: torch.rot90(frames, 1, (2, 3))),
        ((-1, 0, 0, -1), 180, lambda frames: torch.rot90(frames, 2, (2, 3))),
    ],
)
def test_a_phones_rotation_is_undone(tmp_path, matrix, rotation, turned):
    path = tmp_path / "a.mp4"
    write_video(path, smooth_frames(3, 32, 64), 24)
    stored = read_frames(path)
    content = bytearray(path.read_bytes())
    # The track header's display matrix: nine big-endian numbers, fixed point 16.16, the last 2.30.
    a, b, c, d = (value * 65536 for value in matrix)
    plain = np.array([65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    place = content.index(plain, content.index(b"tkhd"))
    content[place : place + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    path.write_bytes(content)
    facts = probe(path)
    assert facts.rotation == rotation
    assert torch.equal(read_frames(path), turned(stored))
    assert (facts.height, facts.width) == tuple(turned(stored).shape[2:])


def test_large_frames_are_shrunk_to_the_longer_side_and_small_ones_left_alone(tmp_path):
    path = tmp_path / "a.mp4"
    frames = smooth_frames(3, 60, 120)
    write_video(path, frames, 24)
    shrunk = read_frames(path, max_side=40)
    assert shrunk.shape == (3, 3, 20, 40)
    assert (shrunk - interpolate(read_frames(path), size=(20, 40), mode="area")).abs().mean() < 0.01
    assert torch.equal(read_frames(path, max_side=500), read_frames(path))


def test_bad_files_are_refused_in_one_sentence(tmp_path):
    good = tmp_path / "good.mp4"
    write_video(good, smooth_frames(20, 64, 64), 24)
    garbage, cut, folder = tmp_path / "garbage.mp4", tmp_path / "cut.mp4", tmp_path / "folder.mp4"
    garbage.write_bytes(bytes(range(256)) * 20)
    cut.write_bytes(good.read_bytes()[: good.stat().st_size * 2 // 3])
    folder.mkdir()
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    for read in (read_frames, probe):
        for path, words in [
            (tmp_path / "missing.mp4", "no video file"),
            (folder, "no video file"),
            (garbage, "cannot be opened"),
            (cut, "cut short"),
            (sound, "no video stream"),
        ]:
            with pytest.raises(ValueError, match=words) as caught:
                read(path)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
    assert len(read_frames(cut, 0, 3)) == 3, "what lies before the cut can be read"
    with pytest.raises(ValueError, match="ends before frame 20"):
        read_frames(good, 20)
    for arguments in [{"start": -1}, {"count": 0}, {"fps": 0.0}, {"max_side": 0}]:
        with pytest.raises(ValueError, match="not"):
            read_frames(good, **arguments)


def test_a_play_list_cannot_reach_other_addresses(tmp_path):
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match=r"list\.m3u8"):
        read_frames(path)


def test_untagged_hd_colours_are_warned_of_once_and_tagged_ones_not(tmp_path, caplog):
    untagged = grey_video(tmp_path / "a.mp4", [0, 40, 80], size=(960, 720))
    tagged = tmp_path / "b.mp4"
    write_video(tagged, smooth_frames(2, 720, 960), 24)
    with caplog.at_level(logging.WARNING, logger="ipro"):
        read_frames(tagged)
        assert not caplog.records
        read_frames(untagged)
    assert len(caplog.records) == 1
    assert "BT.601" in caplog.text


def test_pictures_are_read_upright(tmp_path):
    from PIL import Image

    levels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(levels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert torch.equal(image, torch.from_numpy(levels).permute(2, 0, 1) / 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(levels).save(tmp_path / "b.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "b.png"), torch.rot90(image, -1, (1, 2)))
    (tmp_path / "c.png").write_bytes(b"no picture")
    for name, words in [("c.png", "cannot be read"), ("d.png", "no picture at")]:
        with pytest.raises(ValueError, match=words):
            read_image(tmp_path / name)


@needs_shared
@pytest.mark.shared
@pytest.mark.parametrize(
    ("clip", "frames", "height", "width", "fps"),
    [
        ("clips/portrait_lp_d12.mp4", 183, 512, 512, 25),
        ("clips/vertical_ls_demo1.mp4", 250, 1920, 1080, 25),
        ("clips/multi_hamilton.mp4", 275, 360, 640, 29.97),
        ("derived/i2v81_walk_lp_s18.mp4", 81, 480, 832, 16),
    ],
)
def test_real_clips_have_the_frames_their_makers_count(clip, frames, height, width, fps):
    facts = probe(SHARED / "media" / clip)
    assert (facts.frames, facts.height, facts.width, facts.variable_rate) == (frames, height, width, False)
    assert facts.fps == pytest.approx(fps, abs=1e-3)
    last = read_frames(SHARED / "media" / clip, frames - 2, 10, max_side=320)
    assert len(last) == 2
    assert max(last.shape) == 320
    assert (last.shape[2] > last.shape[3]) == (height > width)
    assert 0 <= last.min() < last.max() <= 1
