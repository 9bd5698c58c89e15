"""The training loop on a problem whose optimum and every update are known."""

import gc
import math
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from toy_runs import TARGETS, Distance, Point

from ipro_core.runs import Run, latest_state, read_metrics
from ipro_core.training.loop import LoopSettings, TrainingStopped, adapter_of, draw_batch, train

SETTINGS = LoopSettings(updates=8, batch_size=6, learning_rate=0.1, checkpoint_every=3)


def trained(settings: LoopSettings, *, dtype=torch.float64, run=None, **objective) -> tuple[Point, list]:
    model = Point(dtype=dtype)
    return model, list(train(model, Distance(model, **objective), TARGETS, settings, run))


def test_it_reaches_the_known_optimum():
    # The mean of the targets is (2, 2, -1), and so is the best θ. A batch of 3 draws each target once.
    settings = LoopSettings(updates=250, batch_size=3, learning_rate=0.1)
    model, records = trained(settings)
    torch.testing.assert_close(
        model.theta.detach(), torch.tensor([2.0, 2, -1], dtype=torch.float64), atol=1e-3, rtol=0
    )
    # There the targets are (−1, 0, 4), (1, 0, 2), (0, 0, −6) away: squares 17, 5, 36, half their mean 58 / 6.
    assert records[-1].metrics["loss"] == pytest.approx(58 / 6, abs=1e-3)
    assert [record.step for record in records] == list(range(1, 251))


@pytest.mark.parametrize("last", [1.0, 0.25])
def test_it_is_adam_with_a_rate_that_rises_and_falls(last):
    # Adam by hand, with torch's β = 0.9, 0.999 and ε = 1e-8; the gradient of ½||θ − mean||² is θ − mean.
    settings = LoopSettings(updates=7, batch_size=3, learning_rate=0.1, warmup=4, last_rate=last)
    model, records = trained(settings)
    goal = torch.tensor([2.0, 2, -1], dtype=torch.float64)
    theta, m, v = torch.zeros(3, dtype=torch.float64), 0, 0
    for t in range(1, 8):
        g = theta - goal
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = 0.1 * min(1, t / 4) * (1 - (1 - last) * (t - 1) / 6)  # the seventh has `last` of it
        theta = theta - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        assert records[t - 1].metrics["learning_rate"] == pytest.approx(rate)
    torch.testing.assert_close(model.theta.detach(), theta)


@dataclass
class Slope:
    """A constant gradient, in two parts."""

    model: Point
    seen: list

    def gradients(self, batch):
        for _ in range(2):
            (self.model.theta * torch.tensor([1.5, 2.0, 0.0])).sum().backward()
            yield {"half": 0.5}
        self.seen.append(self.model.theta.grad)


@pytest.mark.parametrize(
    ("limit", "clipped"), [(2.0, [1.2, 1.6, 0.0]), (10.0, [3.0, 4.0, 0.0]), (0.0, [3.0, 4, 0])]
)
def test_gradients_add_up_over_the_parts_and_are_clipped_by_their_norm(limit, clipped):
    # Two parts of (1.5, 2, 0) add up to (3, 4, 0), of norm 5; at most 2: times 0.4. Metrics add up as well.
    model, seen = Point(), []
    settings = replace(SETTINGS, updates=1, clip_norm=limit)
    (record,) = train(model, Slope(model, seen), TARGETS, settings)
    torch.testing.assert_close(seen[0], torch.tensor(clipped), rtol=1e-6, atol=1e-6)
    assert record.metrics["half"] == 1.0
    assert record.metrics["grad_norm"] == pytest.approx(5.0)
    assert model.theta.grad is None


@pytest.mark.parametrize("part", [1, 2, 4, 5])
def test_accumulation_equals_one_big_batch(part):
    whole, whole_records = trained(SETTINGS, part=6, spread=0.5)
    parts, records = trained(SETTINGS, part=part, spread=0.5)
    torch.testing.assert_close(parts.theta, whole.theta, rtol=1e-12, atol=1e-12)
    for one, other in zip(records, whole_records, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-12)


def test_nothing_depends_on_the_global_generator_and_everything_on_the_seed():
    torch.manual_seed(1)
    first, _ = trained(SETTINGS, spread=0.5)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, _ = trained(SETTINGS, spread=0.5)
    other, _ = trained(replace(SETTINGS, seed=1), spread=0.5)
    assert torch.equal(first.theta, again.theta) and not torch.equal(first.theta, other.theta)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_pass_takes_each_sample_once_in_a_new_order():
    samples, settings = list(range(10)), replace(SETTINGS, batch_size=4)
    drawn = [draw.sample for update in range(5) for draw in draw_batch(samples, settings, update)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == samples  # 5 · 4 draws are two passes of 10
    assert drawn[:10] != drawn[10:]


def test_each_place_has_its_own_noise_whatever_was_drawn_before():
    settings = replace(SETTINGS, batch_size=4)
    noise = [
        torch.randn(3, generator=draw.generator)
        for update in range(3)
        for draw in draw_batch([None], settings, update)
    ]
    assert len({tuple(one.tolist()) for one in noise}) == 12
    last = draw_batch([None], settings, 2)[-1]
    assert torch.equal(torch.randn(3, generator=last.generator), noise[-1])


@dataclass
class Poisoned:
    """Distance until an update in which the metric or only the gradient is not a number."""

    distance: Distance
    update: int
    where: str

    def gradients(self, batch):
        self.update -= 1
        for metrics in self.distance.gradients(batch):
            if self.update == 0 and self.where == "grad_norm":
                self.distance.model.theta.grad.fill_(math.inf)
            yield {"loss": math.nan} if self.update == 0 and self.where == "loss" else metrics


@pytest.mark.parametrize("where", ["loss", "grad_norm"])
def test_a_number_that_is_none_stops_it_and_the_last_good_adapter_stays(tmp_path, where):
    good, _ = trained(replace(SETTINGS, updates=4), dtype=torch.float32)
    model = Point()
    with Run.create(tmp_path, {}) as run:
        records = train(model, Poisoned(Distance(model), 5, where), TARGETS, SETTINGS, run)
        with pytest.raises(
            TrainingStopped, match=f"stopped in update 5: {where} is (nan|inf). .* update 4 is kept"
        ):
            list(records)
    assert torch.equal(model.theta, good.theta)
    state = latest_state(tmp_path)  # saved although 4 is no multiple of 3
    assert state and state.step == 4 and torch.equal(adapter_of(state)["point.theta"], good.theta)
    assert [record.step for record in read_metrics(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(("stop", "averaging"), [(1, 0.0), (3, 0.9), (5, 0.0), (5, 0.9), (8, 0.9)])
def test_closed_and_resumed_it_continues_bit_for_bit(tmp_path, stop, averaging):
    settings = replace(SETTINGS, averaging=averaging)
    with Run.create(tmp_path / "unbroken", {}) as run:
        whole, _ = trained(settings, dtype=torch.float32, run=run, spread=0.5)
    model = Point()
    with Run.create(tmp_path / "run", {}) as run:
        with closing(train(model, Distance(model, spread=0.5), TARGETS, settings, run)) as records:
            list(islice(records, stop))
        state = latest_state(tmp_path / "run")
        assert state and state.step == stop
    torch.manual_seed(stop)  # a foreign state of the global generator
    with Run.open(tmp_path / "run") as run:
        resumed, records = trained(settings, dtype=torch.float32, run=run, spread=0.5)
    assert [record.step for record in records] == list(range(stop + 1, 9))
    assert torch.equal(resumed.theta, whole.theta)
    for name in ("metrics.jsonl", "state/step-00000008.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name


def test_a_running_average_is_what_the_run_gives_and_training_goes_on_beneath_it(tmp_path):
    # Averages by hand: of the past, min(0.75, n / (n + 9)) after n updates: 0.1, 2/11, 0.25, 4/13.
    path = [trained(replace(SETTINGS, updates=n), dtype=torch.float64)[0].theta.detach() for n in range(1, 5)]
    mean = torch.zeros(3, dtype=torch.float64)
    for theta, past in zip(path, (1 / 10, 2 / 11, 3 / 12, 4 / 13), strict=True):
        mean = past * mean + (1 - past) * theta
    with Run.create(tmp_path, {}) as run:
        model, _ = trained(replace(SETTINGS, updates=4, averaging=0.75), run=run)
    state = latest_state(tmp_path)
    assert state and torch.equal(model.theta, path[-1])
    torch.testing.assert_close(adapter_of(state)["point.theta"], mean)
    assert (mean - path[-1]).norm() > 0.01


def test_a_finished_run_goes_on_when_more_updates_are_asked_for(tmp_path):
    whole, _ = trained(SETTINGS, dtype=torch.float32)
    with Run.create(tmp_path, {}) as run:
        trained(replace(SETTINGS, updates=2), dtype=torch.float32, run=run)
        assert trained(replace(SETTINGS, updates=2), dtype=torch.float32, run=run)[1] == []
        longer, _ = trained(SETTINGS, dtype=torch.float32, run=run)
    assert torch.equal(longer.theta, whole.theta)


def test_a_consumer_that_fails_leaves_a_state_to_resume(tmp_path):
    # The `for` drops its iterator, and so closes it, before the `with` around it gives up the run.
    model = Point()
    with pytest.raises(RuntimeError, match="the consumer"), Run.create(tmp_path, {}) as run:
        for record in train(model, Distance(model), TARGETS, SETTINGS, run):
            if record.step == 5:
                raise RuntimeError("the consumer")
    state = latest_state(tmp_path)
    assert state and state.step == 5


def test_the_state_of_another_adapter_is_refused(tmp_path):
    with Run.create(tmp_path, {}) as run:
        trained(replace(SETTINGS, updates=1), run=run)
        model = Point(dim=4)
        with pytest.raises(ValueError, match="of another adapter"):
            next(train(model, Distance(model), TARGETS, SETTINGS, run))


def test_settings_out_of_their_limits_and_no_samples_are_refused():
    model = Point()
    with pytest.raises(ValueError, match="batch_size must lie between 1 and"):
        next(train(model, Distance(model), TARGETS, replace(SETTINGS, batch_size=0)))
    with pytest.raises(ValueError, match="nothing to train on"):
        next(train(model, Distance(model), [], SETTINGS))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_memory_and_handles_stay_flat(tmp_path):
    model, settings = Point(dim=3), replace(SETTINGS, updates=400, checkpoint_every=50)
    open_files, tensors, pages = [], [], []
    with Run.create(tmp_path, {}) as run:
        for record in train(model, Distance(model), TARGETS, settings, run):
            if record.step % 200 == 0:  # the first 200 are for torch's own caches
                gc.collect()
                open_files.append(len(list(Path("/proc/self/fd").iterdir())))
                tensors.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
                pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
    assert open_files[0] == open_files[-1] and tensors[0] == tensors[-1]
    assert (pages[-1] - pages[0]) * 4 < 1024, "kB in 200 updates"
