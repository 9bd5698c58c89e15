"""A blind study in the real host: made by a graph a scene at a time, voted on there, counted by its node."""

import http.client
import json
from contextlib import closing

import pytest
from study_voter import Voter

from ipro_core.evaluation.preferences import study_results
from ipro_core.evaluation.study import Study

pytestmark = pytest.mark.host


def picture(color, frames=5):
    size = {"width": 48, "height": 32, "batch_size": frames, "color": color}
    return {"class_type": "EmptyImage", "inputs": size}


def graph(name, *colors, **changed):
    """The host's plain pictures as two methods' videos."""
    prompt = {str(n): picture(color) for n, color in enumerate(colors, start=1)}
    inputs = {"name": name, "methods": "base, tuned", "folder": "", "scene": "", "prompt": "", "fps": 8.0}
    inputs |= {"controls": 1, "pairs": 0, "max_side": 960, "seed": 3}
    inputs |= {f"video_{n}": [str(n), 0] for n in range(1, len(colors) + 1)}
    return prompt | {"study": {"class_type": "IPRO_UserStudy", "inputs": inputs | changed}}


def told_by(host, prompt):
    (told,) = host.execute(prompt)["study"]["ipro_study"]
    return told


def asked(host, method, path, message=None, **headers):
    with closing(http.client.HTTPConnection("127.0.0.1", host.port, timeout=10)) as connection:
        body = None if message is None else json.dumps(message)
        heads = {"Content-Type": "application/json"} if body else {}
        connection.request(
            method, path, body, heads | {name.replace("_", "-"): v for name, v in headers.items()}
        )
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()


def test_a_study_grows_by_a_scene_a_run_is_voted_on_and_counted(host):
    first = told_by(host, graph("grows", 0xCC3333, 0x33CC33))
    assert told_by(host, graph("grows", 0xCC3333, 0x33CC33)) == first  # the same scene is taken in once
    told = told_by(host, graph("grows", 0xCC3333, 0x33CC33, scene="another"))
    assert (told["address"], told["scenes"], told["methods"]) == (first["address"], 2, ["base", "tuned"])
    assert told["votes"] == 0 and "Nobody has voted" in told["results"]
    root = told["address"]
    for prefix in ("", "/api"):  # both are the host's
        status, headers, _ = asked(host, "GET", prefix + root)
        assert status == 200 and "'self'" in headers["Content-Security-Policy"]  # newer hosts set their own
        assert asked(host, "GET", f"{prefix}{root}study.mjs")[0] == 200
    voter = json.loads(asked(host, "POST", f"{root}join", {})[2])["voter"]
    state = json.loads(asked(host, "GET", f"{root}next?voter={voter}")[2])
    assert state["total"] == 4  # two pairs, two controls
    while trial := state["trial"]:
        status, headers, body = asked(host, "GET", root + trial["videos"][0], Range="bytes=0-99")
        assert status == 206 and len(body) == 100 and headers["Content-Type"] == "video/mp4"
        vote = {"voter": voter, "trial": trial["id"]}
        vote |= {"answers": {question["name"]: "left" for question in state["questions"]}}
        assert asked(host, "POST", f"{root}vote", vote, Origin="http://evil.example")[0] == 403
        state = json.loads(asked(host, "POST", f"{root}vote", vote)[2])
    told = told_by(host, graph("grows", 0xCC3333, 0x33CC33))
    assert (told["votes"], told["voters"]) == (4, 1)
    assert (
        f"left out: voter {voter[:6]}" in told["results"]
    )  # who always says left fails the same video twice
    history = host.wait(host.queue(graph("grows", 0x111111, 0x222222)))
    assert "begun to vote" in json.dumps(history["status"])


def test_what_is_no_study_is_refused_by_its_address_and_by_its_node(host):
    for path, status in (
        (f"/ipro/study/{'0' * 32}/", 404),
        ("/ipro/study/..%2f..%2f/study.json", 404),
        (f"{told_by(host, graph('alone', 1, 2))['address']}..%2fstudy.json", 404),
    ):
        assert asked(host, "GET", path)[0] == status
    root = told_by(host, graph("alone", 1, 2))["address"]
    assert asked(host, "GET", root[:-1])[0] == 308
    with closing(http.client.HTTPConnection("127.0.0.1", host.port, timeout=10)) as connection:
        connection.putrequest("POST", f"{root}vote")
        connection.putheader("Content-Length", "99999999")
        connection.endheaders()
        assert connection.getresponse().status == 413
    # The plan is out of reach of the host's own addresses too.
    for path in (
        "/view?filename=study.json&type=output&subfolder=../user/ipro/studies/alone",
        "/userdata/ipro%2Fstudies%2Falone%2Fstudy.json",
    ):
        assert asked(host, "GET", path)[0] in (400, 403, 404)
    for change, words in (
        ({"methods": "base"}, "2 videos are linked, and methods names 1"),
        ({"name": "../outside"}, "leads out of studies"),
        ({"name": "a/b"}, "without slashes"),
        ({"folder": "nothing here"}, "does not exist"),
    ):
        history = host.wait(host.queue(graph(change.pop("name", "bad"), 1, 2, **change)))
        assert words in json.dumps(history["status"]), change
    assert (
        not (host.base / "user" / "outside").exists()
        and not (host.base / "user" / "ipro" / "studies" / "bad").exists()
    )


def test_its_page_works_from_the_host_as_it_does_alone(host, browser):
    told = told_by(host, graph("seen", 0xCC3333, 0x33CC33, scene="one", prompt="nothing moves"))
    study = Study.open(host.base / "user" / "ipro" / "studies" / "seen")
    voter = Voter(browser, study, f"http://127.0.0.1:{host.port}/api{told['address']}").begin()
    voter.page.locator("#trial").wait_for()
    assert "nothing moves" in voter.page.locator("#prompt").inner_text()
    for _ in range(3):
        voter.vote()
    voter.page.locator("#done").wait_for()
    assert voter.errors == []
    assert [question.pairs[0].rate for question in study_results(study).questions] == [1.0] * 4
