"""The study as people do it: in a real browser, a reload in the midst, controls failed, results right."""

import json

import pytest
from small_study import serving, small_study
from study_voter import Voter

from ipro_core.evaluation.preferences import study_results

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}


@pytest.fixture
def served(tmp_path):
    study = small_study(tmp_path, scenes=3, controls=1)
    with serving(study) as server:
        yield study, server.address


def test_two_voters_a_reload_and_failed_controls_give_the_right_results(browser, served):
    study, address = served
    anna, bert = Voter(browser, study, address).begin(), Voter(browser, study, address).begin()
    order = []
    for turn in range(5):  # three pairs and two controls, the two voters in turn
        anna.page.locator("#count").wait_for()
        assert anna.page.locator("#count").inner_text() == f"{turn + 1} of 5"
        order.append(anna.shown().trial.id)
        anna.vote()
        bert.vote("left")
        if turn == 2:
            anna.page.reload()
            anna.page.locator("#trial").wait_for()
            assert anna.page.locator("#count").inner_text() == "4 of 5"
            assert anna.page.get_by_role("button", name="Begin").is_hidden()
    for voter in (anna, bert):
        assert voter.page.locator("#done").is_visible() and voter.errors == []
        # Nothing was asked of anybody but this server, and by no name of a file or a method.
        assert all(url.startswith(address) for url in voter.asked)
        assert not any(word in url for url in voter.asked for word in ("base", "tuned", "spoilt", ".mp4"))
    assert len(set(order)) == 5
    votes = study.ballots.votes()
    assert len(votes) == 10 and len({(vote.voter, vote.trial) for vote in votes}) == 10
    assert all(vote.plays >= 1 and vote.seconds > 0.4 for vote in votes)  # six frames, twelve a second
    told = study_results(study)
    (first,) = [voter for voter, number in study.ballots.voters().items() if number == 1]
    assert list(told.left_out) == [first]  # Bert, who always pressed 1, came second
    for question in told.questions:
        (pair,) = question.pairs
        assert (pair.first, pair.wins, pair.ties, pair.losses, pair.rate) == ("tuned", 3, 0, 0, 1.0)


def test_the_two_videos_run_as_one_and_nothing_is_answered_before_they_were_seen(browser, tmp_path):
    study = small_study(tmp_path, scenes=1, controls=0, frames=36)  # three seconds
    with serving(study) as server:
        voter = Voter(browser, study, server.address).begin()
        page = voter.page
        page.wait_for_function(
            "() => [...document.querySelectorAll('video')].every((v) => v.currentTime > 0.3)"
        )
        for key in ("1", "1", "Enter"):
            page.keyboard.press(key)
        assert page.locator("input:checked").count() == 0 and page.locator("#send").is_disabled()
        # One is pushed off by half a second, and comes back.
        page.evaluate("document.querySelectorAll('video')[1].currentTime += 0.5")
        page.wait_for_function(
            "() => { const [a, b] = document.querySelectorAll('video');"
            " return !b.seeking && Math.abs(a.currentTime - b.currentTime) <= 1 / 12; }",
            timeout=2000,
        )
        page.keyboard.press(" ")
        assert page.evaluate("[...document.querySelectorAll('video')].every((v) => v.paused)")
        page.keyboard.press("s")
        page.keyboard.press("r")
        page.wait_for_function(
            "() => [...document.querySelectorAll('video')].every((v) => !v.paused && v.playbackRate === 0.5)"
        )
        page.keyboard.press("s")
        voter.watch()
        # A mouse does as well as keys, and an answer may be changed.
        for choice in ("Video 1", "No preference"):
            for radio in page.get_by_role("radio", name=choice).all():
                radio.check(force=True)
        page.get_by_role("button", name="Next").click()
        page.locator("#done").wait_for()
        assert voter.errors == []
    (vote,) = study.ballots.votes()
    assert set(vote.answers.values()) == {"none"}


def test_a_vote_that_did_not_arrive_is_sent_again_and_counts_once(browser, served):
    study, address = served
    voter = Voter(browser, study, address).begin()
    voter.page.locator("#trial").wait_for()
    voter.watch()
    lost = []

    def lose(route):
        lost.append(route.fetch())  # it arrives, but its answer is lost on the way back
        route.abort()

    voter.page.route("**/vote", lose, times=1)
    for _ in study.plan.questions:
        voter.page.keyboard.press("1")
    voter.page.keyboard.press("Enter")
    voter.page.get_by_text("cannot be reached").wait_for()
    assert len(lost) == 1 and len(study.ballots.votes()) == 1
    voter.page.get_by_role("button", name="Try again").click()
    voter.page.wait_for_function("() => document.getElementById('count').innerText === '2 of 5'")
    assert len(study.ballots.votes()) == 1


def test_it_works_on_a_phone(browser, served):
    study, address = served
    voter = Voter(browser, study, address, **PHONE).begin()
    voter.page.locator("#trial").wait_for()
    wide = voter.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    boxes = [voter.page.locator("video").nth(index).bounding_box() for index in range(2)]
    assert (
        boxes[0]["width"] > 300 and boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]
    )  # one above the other
    voter.watch()
    for label in voter.page.locator(".choices label:has([value=left])").all():
        assert label.bounding_box()["height"] >= 44  # a thumb's
        label.tap()
    voter.page.get_by_role("button", name="Next").tap()
    voter.page.wait_for_function("() => document.getElementById('count').innerText === '2 of 5'")
    assert json.dumps(study.ballots.votes()[0].answers) == json.dumps(
        dict.fromkeys(study.plan.questions, "left")
    )
    assert voter.errors == []
