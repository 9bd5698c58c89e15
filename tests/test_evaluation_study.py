"""The study on disk: what is shown to whom, videos that tell nothing, votes that outlive a kill."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import av
import pytest
import torch
from small_study import small_study, video, video_folder, vote_for

from ipro_core.__main__ import main
from ipro_core.clips.video import probe, read_frames, read_image, write_video
from ipro_core.evaluation.ballots import Ballots, Vote
from ipro_core.evaluation.study import Study, VideoSet
from ipro_core.evaluation.study_design import StudySettings, Trial, ballot
from ipro_core.evaluation.study_sources import keep_videos, read_sets
from ipro_core.evaluation.study_videos import Take, spoilt

ROOT = Path(__file__).resolve().parents[1]


def trials(scenes, methods=("a", "b"), controls=0):
    made = [
        Trial(f"{scene} {a}{b}", "pair", f"scene {scene}", (a, b), ("x", "y"), "", "", 8.0)
        for scene in range(scenes)
        for a, b in combinations(methods, 2)
    ]
    made += [
        replace(made[0], id=f"{kind} {n}", kind=kind) for n in range(controls) for kind in ("same", "spoilt")
    ]
    return made


@pytest.mark.parametrize("methods, pairs", [("ab", 0), ("ab", 7), ("abc", 0), ("abc", 8), ("abcd", 13)])
def test_every_pair_is_shown_equally_often_and_equally_often_either_way_round(methods, pairs):
    given = trials(10, tuple(methods))
    shown, left = Counter(), Counter()
    for voter in range(24):
        seen = ballot(given, voter, seed=3, pairs=pairs)
        assert len(seen) == len({one.trial.id for one in seen}) == (pairs or len(given))
        of_two = Counter(one.trial.methods for one in seen)
        assert max(of_two.values()) - min(of_two.values()) <= 1
        for showing in seen:
            shown[showing.trial.id] += 1
            left[showing.trial.id] += showing.swapped
        # To one voter too: where the dealing begins anew in a ballot, one more may lie the same way.
        for methods_of in of_two:
            swapped = sum(one.swapped for one in seen if one.trial.methods == methods_of)
            assert abs(2 * swapped - of_two[methods_of]) <= 2
    assert set(shown) == {trial.id for trial in given}
    assert max(shown.values()) - min(shown.values()) <= 1
    assert all(abs(2 * left[name] - count) <= 1 for name, count in shown.items())


def test_the_order_is_the_voters_own_the_seed_decides_it_and_a_reload_does_not_change_it():
    given = trials(12)
    order = [[(one.trial.id, one.swapped) for one in ballot(given, n, seed=1)] for n in (0, 1, 0)]
    assert order[0] == order[2] != order[1]
    assert sorted(name for name, _ in order[0]) == sorted(name for name, _ in order[1])
    assert order[0] != [(one.trial.id, one.swapped) for one in ballot(given, 0, seed=2)]


def test_controls_are_spread_so_that_who_stops_half_way_has_met_half_of_them():
    given = trials(40, controls=2)
    for voter in range(20):
        kinds = [one.trial.kind for one in ballot(given, voter, seed=voter)]
        places = [index for index, kind in enumerate(kinds) if kind != "pair"]
        assert len(kinds) == 44 and len(places) == 4
        # A stretch of ten pairs for each, and the controls before it.
        assert all(10 * n + n <= place <= 10 * (n + 1) + n for n, place in enumerate(places))


def test_no_name_tag_or_path_of_a_video_is_in_what_is_shown(tmp_path):
    secret = "promptgraphsecretmethod"
    source = tmp_path / "videos" / secret / "anna.mp4"
    for method in (secret, "base"):
        (tmp_path / "videos" / method).mkdir(parents=True)
        plain = tmp_path / "plain.mp4"
        write_video(plain, video("base", 0), 12.0)
        with (
            av.open(str(plain)) as before,
            av.open(str(tmp_path / "videos" / method / "anna.mp4"), "w") as after,
        ):
            stream = after.add_stream_from_template(before.streams.video[0])
            after.metadata["comment"] = after.metadata["title"] = secret  # as ComfyUI writes its graph
            for packet in before.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    after.mux(packet)
    assert secret.encode() in source.read_bytes()
    study = Study.create(tmp_path / "study", "t", ["quality"], StudySettings(controls=1))
    for videos in read_sets(tmp_path / "videos"):
        study.add(videos)
    media = sorted((study.folder / "media").iterdir())
    assert len(media) == 3  # two methods, and the control's spoilt one
    for path in media:
        assert len(path.stem) == 32 and int(path.stem, 16) >= 0
        assert secret.encode() not in path.read_bytes() and b"anna" not in path.read_bytes()
        with av.open(str(path)) as shown:
            assert set(shown.metadata) <= {"encoder", "major_brand", "minor_version", "compatible_brands"}
    assert secret in (study.folder / "study.json").read_text()  # the map, which is served to nobody


def test_the_videos_of_a_scene_get_one_size_pace_and_length(tmp_path):
    study = Study.create(tmp_path, "t", ["quality"], StudySettings(controls=0, max_side=80))
    slow = Take(video("base", 0, frames=6, size=(64, 96)), 12.0)
    fast = Take(video("tuned", 0, frames=15, size=(128, 192)), 24.0)
    study.add(VideoSet("one", {"slow": slow, "fast": fast}))
    facts = [probe(tmp_path / "media" / name) for name in study.plan.trials[0].videos]
    # 12 → 24 frames a second shows each of 6 frames twice: 12, and the faster one is cut to them. Both shrink
    # to 80 x 53.3, which a file pads to an even 54.
    for one in facts:
        assert (one.frames, one.fps, one.width, one.height) == (12, 24, 80, 54)
    frames = read_frames(tmp_path / "media" / study.plan.trials[0].videos[0])
    assert (frames[0] - frames[1]).abs().mean() < 0.01 < (frames[1] - frames[2]).abs().mean()


def test_a_spoilt_video_is_far_from_its_own_and_moves_a_quarter_as_often():
    frames = video("tuned", 1, frames=8)
    bad = spoilt(frames)
    assert bad.shape == frames.shape and (bad - frames).abs().mean() > 0.3
    assert [bool((a != b).any()) for a, b in zip(bad[1:], bad[:-1], strict=True)] == [False] * 3 + [True] + [
        False
    ] * 3


@pytest.mark.parametrize(
    "sets, words",
    [
        ([VideoSet("one", {"a": Take(video("base", 0), 8)})], "one has one video"),
        (
            [
                VideoSet(
                    "one", {"a": Take(video("base", 0), 8), "b": Take(video("base", 0, size=(32, 32)), 8)}
                )
            ],
            "one shape, not a 48x32, b 32x32",
        ),
        (
            [
                VideoSet("one", {name: Take(video("base", 0), 8) for name in "ab"}),
                VideoSet("two", {name: Take(video("base", 1), 8) for name in "ac"}),
            ],
            "compares a, b; two has videos by a, c",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(tmp_path, sets, words):
    study = Study.create(tmp_path, "t", ["quality"])
    with pytest.raises(ValueError, match=words):
        for videos in sets:
            study.add(videos)


def test_of_a_study_that_was_refused_nothing_is_left(tmp_path):
    sets = read_sets(video_folder(tmp_path / "videos", ["anna", "bert"]))
    sets[1].videos["base"].write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"bert\.mp4 cannot be opened"):
        Study.make(tmp_path / "study", "t", ["quality"], StudySettings(), sets)
    assert list((tmp_path / "study").iterdir()) == []


def test_a_question_about_the_text_wants_one(tmp_path):
    study = Study.create(tmp_path, "t", ["text"])
    takes = {name: Take(video(name, 0), 12.0) for name in ("base", "tuned")}
    with pytest.raises(ValueError, match="scene has none"):
        study.add(VideoSet("scene", takes, prompt=" "))


def test_videos_that_no_page_could_hold_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("ipro_core.evaluation.study_videos.MOST_PIXELS", 6 * 32 * 48 - 1)
    study = Study.create(tmp_path / "study", "t", ["quality"])
    (videos,) = read_sets(video_folder(tmp_path / "videos", ["anna"]))
    with pytest.raises(ValueError, match="6 frames of 48x32, too many for a page"):
        study.add(videos)
    with pytest.raises(ValueError, match="A video has 6 frames of 48x32"):
        study.add(VideoSet("one", {name: Take(video(name, 0), 12.0) for name in ("base", "tuned")}))


def test_a_scene_is_taken_in_once_and_none_after_the_first_voter(tmp_path):
    study = small_study(tmp_path, scenes=2)
    again = VideoSet("scene 0", {name: Take(video(name, 0), 12.0) for name in ("base", "tuned")})
    before = study.plan
    assert not study.add(again) and study.plan is before
    study.ballots.join()
    assert not study.add(again)
    with pytest.raises(ValueError, match="begun to vote"):
        study.add(replace(again, scene="another"))


def test_a_study_is_taken_up_as_it_was_left_and_a_bad_folder_says_so(tmp_path):
    study = small_study(tmp_path / "study", methods=("base", "tuned", "other"))
    assert Study.open(study.folder).plan == study.plan
    assert study.plan.methods == ["base", "tuned", "other"] and len(study.plan.scenes) == 4
    with pytest.raises(ValueError, match="holds a study"):
        Study.create(study.folder, "t", ["quality"])
    with pytest.raises(ValueError, match="There is no study"):
        Study.open(tmp_path)
    (study.folder / "study.json").write_text('{"id": "x"}')
    with pytest.raises(ValueError, match="cannot be read"):
        Study.open(study.folder)
    with pytest.raises(ValueError, match="not beauty"):
        Study.create(tmp_path / "other", "t", ["beauty"])


def test_the_first_vote_on_a_trial_stays_whatever_comes_after(tmp_path):
    ballots = Ballots(tmp_path)
    vote = Vote(ballots.join(), "t", "a", "b", {"quality": "left"})
    assert ballots.cast(vote) and not ballots.cast(replace(vote, answers={"quality": "right"}))
    assert ballots.votes() == Ballots(tmp_path).votes() == [vote]


def test_votes_of_many_threads_and_of_another_process_are_all_kept(tmp_path):
    ballots, others = Ballots(tmp_path), Ballots(tmp_path)  # the second as a second server would have it
    voters = [ballots.join() for _ in range(4)]
    assert others.voters() == {voter: number for number, voter in enumerate(voters)}

    def work(voter, mine):
        for trial in range(25):
            assert mine.cast(Vote(voter, str(trial), "a", "b", {"quality": "none"}))

    threads = [
        threading.Thread(target=work, args=(voter, (ballots, others)[index % 2]))
        for index, voter in enumerate(voters)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ballots.votes()) == len(others.votes()) == 100 and ballots.damaged == 0


VOTER = """
import sys
from pathlib import Path
from ipro_core.evaluation.ballots import Ballots, Vote
ballots = Ballots(Path(sys.argv[1]))
for trial in range(100_000):
    ballots.cast(Vote("v", str(trial), "a", "b", {"quality": "left"}))
    print(trial, flush=True)
"""


def test_a_kill_loses_no_vote_that_was_acknowledged(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", VOTER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout
    acknowledged = [int(process.stdout.readline()) for _ in range(30)]
    process.kill()
    acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    process.stdout.close()
    kept = {int(vote.trial) for vote in Ballots(tmp_path).votes()}
    assert set(acknowledged) <= kept and len(kept) - len(acknowledged) <= 1


def test_a_line_that_was_torn_is_told_and_swallows_no_later_vote(tmp_path):
    ballots = Ballots(tmp_path)
    first, second = (Vote("v", trial, "a", "b", {"quality": "left"}) for trial in ("1", "2"))
    ballots.cast(first)
    ballots.cast(second)
    path = tmp_path / "votes.jsonl"
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 20)  # a power cut in the midst of the second
    again = Ballots(tmp_path)
    assert again.votes() == [first] and again.damaged == 1
    assert again.cast(second) and again.votes() == [first, second]
    assert path.read_bytes().startswith(whole[:-20]) and again.damaged == 1  # only ever grows


def test_a_folder_of_videos_becomes_sets_by_scene_and_seed(tmp_path):
    place = video_folder(tmp_path / "videos", ["anna@0", "anna@1", "bert"])
    (place / "inputs" / "bert.txt").write_text("he nods\n")
    sets = read_sets(place)
    assert [(one.scene, [path.name for path in one.videos.values()]) for one in sets] == [
        ("anna", ["anna@0.mp4"] * 2),
        ("anna", ["anna@1.mp4"] * 2),
        ("bert", ["bert.mp4"] * 2),
    ]
    assert [one.prompt for one in sets] == ["", "", "he nods\n"]
    assert all(one.image and one.image.is_file() for one in sets)
    (place / "tuned" / "bert.mp4").unlink()
    with pytest.raises(ValueError, match="bert has no video by tuned"):
        read_sets(place)


def test_a_manifest_says_the_same_as_a_folder_and_a_bad_line_is_named(tmp_path):
    place = video_folder(tmp_path / "videos", ["anna", "bert"])
    rows = [
        {"scene": scene, "method": method, "video": f"videos/{method}/{scene}.mp4", "prompt": f"{scene} nods"}
        for scene in ("anna", "bert")
        for method in ("base", "tuned")
    ]
    manifest = tmp_path / "all.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n")
    told, found = read_sets(manifest), read_sets(place)
    assert [one.videos for one in told] == [one.videos for one in found] and told[0].prompt == "anna nods"
    for line, words in (
        ('{"scene": "x"}', "Line 5 .* must be a JSON object"),
        (json.dumps(rows[0]), "Line 5 .*anna has a video by base already"),
    ):
        manifest.write_text("\n".join([*map(json.dumps, rows), line]))
        with pytest.raises(ValueError, match=words):
            read_sets(manifest)
    with pytest.raises(ValueError, match="two methods"):
        read_sets(place / "base")
    with pytest.raises(ValueError, match="does not exist"):
        read_sets(place / "nowhere")


def test_what_an_evaluation_keeps_is_read_as_it_was_judged(tmp_path):
    clips = {name: video(name, 0) for name in ("base", "tuned")}
    keep_videos(tmp_path, "a/../b: c", 3, clips, 12.0, image_CHW=clips["base"][0], prompt="she turns")
    (kept,) = read_sets(tmp_path)
    assert kept.prompt == "she turns" and list(kept.videos) == ["base", "tuned"]
    for name, frames in clips.items():
        assert (read_frames(kept.videos[name]) - frames).abs().mean() < 0.02
    assert torch.allclose(read_image(kept.image), clips["base"][0], atol=1 / 255)
    assert {path.parent.parent for path in kept.videos.values()} == {tmp_path}  # no name leads elsewhere


def test_the_commands_make_a_study_and_count_it(tmp_path, capsys):
    place = video_folder(tmp_path / "videos", ["anna", "bert"])
    out = tmp_path / "study"
    assert main(["study", "make", str(place), "-o", str(out), "--controls", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {
        "study": str(out),
        "methods": ["base", "tuned"],
        "scenes": 2,
        "pairs": 2,
        "controls": 2,
    } | {
        "questions": ["identity", "quality", "motion"]  # nothing is asked about a text that nobody gave
    }
    assert main(["study", "results", str(out)]) == 0
    assert "Nobody has voted" in capsys.readouterr().out
    study = Study.open(out)
    for _ in range(2):
        voter = study.ballots.join()
        for showing in study.showings(voter):
            study.ballots.cast(
                vote_for(
                    study,
                    voter,
                    showing,
                    "tuned" if showing.trial.kind == "pair" else showing.trial.methods[0],
                )
            )
    assert main(["study", "results", str(out), "--json"]) == 0
    printed = capsys.readouterr().out
    assert "tuned 100%   no preference 0%   base 0%" in printed
    assert json.loads((out / "results.json").read_text())["votes"] == 4
    assert main(["study", "serve", str(tmp_path)]) == 2
    assert "no study" in capsys.readouterr().err


def test_voters_are_unlike_each_other_and_none_can_be_guessed(tmp_path):
    study = small_study(tmp_path, scenes=3)
    voters = [study.ballots.join() for _ in range(3)]
    ids = {*voters, study.plan.id, *(trial.id for trial in study.plan.trials)}
    assert len(ids) == 3 + 1 + 3 + 4 and all(len(one) == 32 and int(one, 16) >= 0 for one in ids)
    with pytest.raises(KeyError):
        study.showings("f" * 32)
    sides = defaultdict(set)
    for voter in voters[:2]:
        for showing in study.showings(voter):
            sides[showing.trial.id].add(showing.swapped)
    assert all(len(seen) == 2 for seen in sides.values())  # the second voter sees each the other way round
