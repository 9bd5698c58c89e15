"""What the study's server answers: to its page, to what no page asks, and to strangers."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from small_study import serving, small_study

from ipro_core.evaluation.study import Study
from ipro_core.evaluation.study_site import MOST_BYTES, PAGE, PARTS, answer

ROOT = Path(__file__).resolve().parents[1]
JSON = {"content-type": "application/json", "host": "here:1", "origin": "http://here:1"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Whoever votes in it changes nothing for others."""
    return small_study(tmp_path_factory.mktemp("study"), scenes=3, controls=1)


def post(study, path, message, headers=JSON):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    reply = answer(study, "POST", path, "", headers, body)
    return reply.status, json.loads(reply.body)


def get(study, path, query="", headers=None):
    return answer(study, "GET", path, query, headers or {})


def next_of(study, voter):
    return json.loads(get(study, "next", f"voter={voter}").body)


def vote_of(voter, told, side="left"):
    answers = {question["name"]: side for question in told["questions"]}
    return {"voter": voter, "trial": told["trial"]["id"], "answers": answers, "seconds": 4.2, "plays": 2}


def test_a_voter_goes_from_the_first_trial_to_the_last_and_a_reload_goes_on(made):
    voter = post(made, "join", {})[1]["voter"]
    told, seen = next_of(made, voter), []
    assert (told["done"], told["total"]) == (0, 5)  # three pairs and two controls
    while told["trial"]:
        seen.append(told["trial"]["id"])
        assert next_of(Study.open(made.folder), voter) == told  # another process finds the same
        status, told = post(made, "vote", vote_of(voter, told))
        assert status == 200 and told["done"] == len(seen)
    assert len(set(seen)) == told["total"] == 5
    assert [vote.trial for vote in made.ballots.votes() if vote.voter == voter] == seen


def test_no_answer_tells_a_method_a_scene_or_a_file(made):
    voter = post(made, "join", {})[1]["voter"]
    told = next_of(made, voter)
    files = {name for trial in made.plan.trials for name in (*trial.videos, trial.image)}
    while told["trial"]:
        text = json.dumps(told)
        assert not any(word in text for word in ("base", "tuned", "spoilt", "same", "scene", *files))
        for place in (*told["trial"]["videos"], told["trial"]["image"]):
            reply = get(made, place)
            heads = json.dumps(reply.headers)
            assert reply.status == 200 and "Last-Modified" not in heads and "ETag" not in heads
        told = post(made, "vote", vote_of(voter, told))[1]


def test_the_sides_of_the_videos_are_those_that_a_vote_is_kept_with(made):
    voter = post(made, "join", {})[1]["voter"]
    told = next_of(made, voter)
    while told["trial"]:
        trial = next(one for one in made.plan.trials if one.id == told["trial"]["id"])
        shown = [get(made, place).body for place in told["trial"]["videos"]]
        told = post(made, "vote", vote_of(voter, told))[1]
        vote = next(one for one in made.ballots.votes() if one.voter == voter and one.trial == trial.id)
        for method, body in zip((vote.left, vote.right), shown, strict=True):
            file = dict(zip(trial.methods, trial.videos, strict=True))[method]
            assert (made.folder / "media" / file).read_bytes() == body


def test_a_second_vote_on_a_trial_is_answered_and_changes_nothing(made):
    voter = post(made, "join", {})[1]["voter"]
    told = next_of(made, voter)
    first, second = vote_of(voter, told, "left"), vote_of(voter, told, "right")
    assert post(made, "vote", first) == post(made, "vote", second)
    (kept,) = [vote for vote in made.ballots.votes() if vote.voter == voter]
    assert set(kept.answers.values()) == {"left"} and kept.seconds == 4.2 and kept.plays == 2


@pytest.mark.parametrize(
    "path",
    [
        "../study.json",
        "study.json",
        "votes.jsonl",
        "media/../study.json",
        "media/%2e%2e/study.json",
        "..%2fstudy.json",
        "/etc/passwd",
        "study.mjs/../../../pyproject.toml",
        "index.html",  # it is at the study's own address
        "media",
        "results",
    ],
)
def test_nothing_but_the_page_and_ones_own_videos_can_be_read(made, path):
    reply = get(made, path)
    assert reply.status == 404 and list(json.loads(reply.body)) == ["error"]
    voter, other = (made.ballots.join() for _ in range(2))
    trial, file = made.plan.trials[0].id, made.plan.trials[0].videos[0].removesuffix(".mp4")
    for place in (
        f"{voter}/{file}/left",
        f"{'0' * 32}/{trial}/left",
        f"{voter}/{trial}/both",
        f"{other}/../left",
    ):
        assert get(made, f"media/{place}").status == 404


def test_a_plan_that_names_a_file_elsewhere_is_not_followed(tmp_path):
    study = small_study(tmp_path, scenes=1, controls=0)
    text = (tmp_path / "study.json").read_text().replace(study.plan.trials[0].videos[0], "../study.json")
    (tmp_path / "study.json").write_text(text)
    study = Study.open(tmp_path)
    voter = study.ballots.join()
    sides = [get(study, place).status for place in next_of(study, voter)["trial"]["videos"]]
    assert sorted(sides) == [200, 404]


@pytest.mark.parametrize(
    "change, status, words",
    [
        (b"{", 400, "no JSON"),
        (b"[" * 9000, 400, "no JSON"),
        (b"[]", 400, "a JSON object"),
        ({"voter": "0" * 32}, 404, "no such voter"),
        ({"voter": ["x"]}, 404, "no such voter"),
        ({"trial": "0" * 32}, 404, "no such trial"),
        ({"trial": None}, 404, "no such trial"),
        ({"answers": {"identity": "left"}}, 400, "Answer each of identity, quality"),
        ({"answers": {"identity": "left", "quality": "left", "more": "left"}}, 400, "nothing else"),
        ({"answers": "left"}, 400, "Answer each"),
        ({"answers": {"identity": "left", "quality": "best"}}, 400, "left, none or right"),
        ({"answers": {"identity": "left", "quality": ["left"]}}, 400, "left, none or right"),
        ({"seconds": -1}, 400, "seconds must be a number"),
        ({"seconds": "1"}, 400, "seconds must be a number"),
        ({"seconds": float("inf")}, 400, "seconds must be a number"),
        ({"plays": float("nan")}, 400, "plays must be a number"),
        ({"plays": True}, 400, "plays must be a number"),
        (b" " * (MOST_BYTES + 1), 413, "are the most"),
    ],
)
def test_what_is_no_vote_is_refused_in_one_sentence_and_not_kept(made, change, status, words):
    voter = made.ballots.join()
    message = change if isinstance(change, bytes) else vote_of(voter, next_of(made, voter)) | change
    before = (made.folder / "votes.jsonl").read_bytes() if (made.folder / "votes.jsonl").exists() else b""
    told = post(made, "vote", message)
    assert told[0] == status and words in told[1]["error"] and told[1]["error"].count(".") == 1
    assert not (made.folder / "votes.jsonl").exists() or (made.folder / "votes.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "change, status",
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://here:2"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"sec-fetch-site": "same-origin", "content-type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_another_sites_page_cannot_vote(made, change, status):
    assert post(made, "join", {}, {**JSON, **change})[0] == status


def test_methods_that_an_address_does_not_take_are_refused(made):
    for method, path in (
        ("GET", "vote"),
        ("GET", "join"),
        ("POST", "next"),
        ("POST", ""),
        ("DELETE", "vote"),
    ):
        assert answer(made, method, path, "", JSON, b"{}").status == 405
    assert get(made, "next").status == get(made, "next", "voter=x").status == 404


def test_the_page_and_all_that_it_loads_are_there_under_a_strict_policy(made):
    page = get(made, "")
    assert page.status == 200 and page.kind.startswith("text/html")
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    wanted = set(re.findall(r'(?:src|href)="([^":,]+)"', page.body.decode()))
    for name in [*wanted]:
        if name.endswith(".mjs"):
            wanted |= set(re.findall(r'from "\./([^"]+)"', get(made, name).body.decode()))
    assert wanted == set(PARTS) - {""} == {path.name for path in PAGE.iterdir()} - {"index.html"}
    assert all(get(made, name).status == 200 for name in wanted)


@pytest.mark.parametrize(
    "wanted, status, what",
    [
        ("", 200, slice(None)),
        ("bytes=0-", 206, slice(0, None)),
        ("bytes=10-19", 206, slice(10, 20)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=5-999999999", 206, slice(5, None)),
        ("bytes=999999999-", 416, slice(0, 0)),
        ("bytes=9-5", 416, slice(0, 0)),
        ("bytes=-", 200, slice(None)),
        ("pages=1-2", 200, slice(None)),
        ("bytes=0-1,4-5", 200, slice(None)),
    ],
)
def test_a_stretch_of_a_video_is_given_to_who_asks_for_one(made, wanted, status, what):
    voter = made.ballots.join()
    place = next_of(made, voter)["trial"]["videos"][0]
    whole = get(made, place).body
    reply = get(made, place, headers={"range": wanted})
    assert reply.status == status and reply.body == whole[what]
    if status == 206:
        start = len(whole) - len(reply.body) if what.start < 0 else what.start
        assert reply.headers["Content-Range"] == f"bytes {start}-{start + len(reply.body) - 1}/{len(whole)}"


def asked(server, method, path, body=None, headers=None):
    with closing(http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)) as connection:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()


def test_two_voters_at_once_over_the_wire(made):
    with serving(made) as server:
        root = f"/{made.plan.id}/"
        assert server.address == f"http://127.0.0.1:{server.server_address[1]}{root}"

        def work(counts):
            kinds = {"Content-Type": "application/json"}
            voter = json.loads(asked(server, "POST", f"{root}join", "{}", kinds)[2])["voter"]
            told = json.loads(asked(server, "GET", f"{root}next?voter={voter}")[2])
            while told["trial"]:
                for place in told["trial"]["videos"]:
                    assert asked(server, "GET", root + place)[0] == 200
                told = json.loads(
                    asked(server, "POST", f"{root}vote", json.dumps(vote_of(voter, told)), kinds)[2]
                )
            counts.append(sum(vote.voter == voter for vote in made.ballots.votes()))

        counts: list[int] = []
        threads = [threading.Thread(target=work, args=(counts,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [5] * 4
    # All that was asked here, also by strangers, has written two files, and those where they belong.
    names = ["media", "study.json", "voters.jsonl", "votes.jsonl"]
    assert sorted(path.name for path in made.folder.iterdir()) == names
    assert (
        len(list((made.folder / "media").iterdir())) == 3 * 3 + 1
    )  # videos and an image a scene; one spoilt


def test_the_server_answers_only_at_the_studys_address_and_only_who_calls_it_by_its_name(made):
    with serving(made) as server:
        root = f"/{made.plan.id}/"
        assert asked(server, "GET", "/")[0] == asked(server, "GET", f"/{'0' * 32}/")[0] == 404
        status, headers, _ = asked(server, "GET", root[:-1])
        assert (status, headers["Location"]) == (308, root)
        status, headers, _ = asked(server, "GET", root)
        assert status == 200 and "Python" not in headers["Server"]
        # A name that a stranger's page had pointed at this machine.
        assert asked(server, "GET", root, headers={"Host": "evil.example"})[0] == 403
        assert asked(server, "GET", root, headers={"Host": "localhost:1"})[0] == 200
        for path in (
            f"{root}../../etc/passwd",
            f"{root}%2e%2e/study.json",
            f"{root}media/..%2f..%2fstudy.json",
        ):
            assert asked(server, "GET", path)[0] == 404
    with serving(made, "0.0.0.0") as server:
        assert asked(server, "GET", root, headers={"Host": "my-machine.local"})[0] == 200


@pytest.mark.parametrize(
    "head, status",
    [
        ("Content-Length: 99999999", 413),
        ("Content-Length: x", 411),
        ("Content-Length: -1", 411),
        ("Transfer-Encoding: chunked", 411),
    ],
)
def test_a_request_too_large_or_of_unknown_length_is_refused_before_it_is_read(made, head, status):
    with serving(made) as server, socket.create_connection(server.server_address[:2], timeout=10) as line:
        line.sendall(f"POST /{made.plan.id}/vote HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n".encode())
        with line.makefile("rb") as told:
            first, rest = told.readline(), told.read()  # and the line is closed
        assert f" {status} " in first.decode() and b"error" in rest


def test_a_disk_that_takes_no_vote_is_told_as_such(made, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ipro_core.evaluation.ballots.os.fsync", full)
    with serving(made) as server:
        kinds = {"Content-Type": "application/json"}
        status, _, body = asked(server, "POST", f"/{made.plan.id}/join", "{}", kinds)
    assert status == 500 and "could not be kept" in json.loads(body)["error"]


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    study = small_study(tmp_path, scenes=1)
    command = [sys.executable, "-m", "ipro_core", "study", "serve", str(tmp_path), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    address = process.stdout.readline().split()[0]
    with urllib.request.urlopen(address, timeout=10) as page:
        assert address.endswith(f"/{study.plan.id}/") and b"study.mjs" in page.read()
    process.send_signal(signal.SIGINT)
    printed, complaints = process.communicate(timeout=20)
    assert process.returncode == 0 and complaints == ""
    assert json.loads(printed.splitlines()[-1]) == {"study": str(tmp_path), "address": address, "votes": 0}
