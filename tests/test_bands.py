"""The limits that real clips set for suspicions, and the errors of rates, on drawn numbers."""

import numpy as np
import pytest

from ipro_core.evaluation.bands import KINDS, band_of
from ipro_core.evaluation.guards import GuardResults
from ipro_core.evaluation.guards_page import guard_sections
from ipro_core.evaluation.hacking import ClipSigns, judge_signs
from ipro_core.evaluation.rates import Rate, corrected_rate
from ipro_core.evaluation.signs import (
    NAMES,
    SIGNS,
)


def drawn(generator, count, shift=0.0):
    """Rows of signs of which every scale is normal; `shift` moves face_change, in deviations."""
    rows = []
    for _ in range(count):
        values = generator.normal(size=len(SIGNS))
        values[NAMES.index("face_change")] += shift
        rows.append(
            {
                sign.name: float(np.exp(value) if sign.ratio else value)
                for sign, value in zip(SIGNS, values, strict=True)
            }
        )
    return rows


def test_all_kinds_together_fall_on_as_many_further_real_clips_as_they_may():
    generator = np.random.default_rng(0)
    suspected, shares = [], {kind.name: [] for kind in KINDS}
    for _ in range(120):
        band = band_of(drawn(generator, 39))
        for row in drawn(generator, 12):
            found = band.suspicions(row)
            suspected.append(bool(found))
            for kind in KINDS:
                shares[kind.name].append(kind.name in found)
    # 39 clips: the 37th of 39 is passed with probability 1 − 37/40 = 7.5 %; 120 limits, 1440 clips.
    assert np.mean(suspected) == pytest.approx(0.075, abs=0.02)
    # No kind has it all: of equal tails each would have a tenth or so.
    assert max(np.mean(share) for share in shares.values()) < 0.03


def test_a_kind_without_a_number_is_no_suspicion_and_hides_none():
    generator = np.random.default_rng(3)
    rows = drawn(generator, 30)
    for row in rows:
        row["background"] = float("nan")  # heads fill the picture
    band = band_of(rows)
    (clip,) = drawn(generator, 1, shift=-8)
    assert "pasted face" in band.suspicions(clip) and "still background" not in band.suspicions(clip)


def test_few_real_clips_say_little_and_say_so():
    generator = np.random.default_rng(1)
    few = band_of(drawn(generator, 11))
    assert "for 8% false alarms at least 12 real clips are needed, and there are 11" in few.reason
    assert few.suspicions(drawn(generator, 1, shift=-50)[0]) == ()
    with pytest.raises(ValueError, match="3 of them say too little"):
        band_of(drawn(generator, 3))
    lonely = judge_signs(
        [ClipSigns("a", 0, dict.fromkeys(("base", "tuned", "real"), drawn(generator, 1)[0]))]
    )
    assert lonely.band is None and lonely.flags == ()
    assert "1 of them say too little" in lonely.figures()["reason"]
    assert "say too little" in guard_sections(GuardResults(hacking=lonely))


def test_a_rise_from_base_to_tuned_is_told_and_chance_is_not():
    generator = np.random.default_rng(2)

    def clips(shift):
        rows = zip(*(drawn(generator, 30, s) for s in (0, shift, 0)), strict=True)
        return [
            ClipSigns(f"scene {n}", 0, dict(zip(("base", "tuned", "real"), row, strict=True)))
            for n, row in enumerate(rows)
        ]

    frozen = judge_signs(clips(-3))
    assert any(flag.startswith("Suspected pasted face") for flag in frozen.flags)
    assert frozen.rate("tuned", "pasted face").count > frozen.rate("base", "pasted face").count
    told = frozen.figures()["suspected"]["pasted face"]
    assert told["rise"] > 1 and told["rise_ci95"][0] > 0
    assert judge_signs(clips(0)).flags == ()


def test_wilsons_interval_and_rogan_and_gladens_rate():
    assert Rate(5, 10).ci95 == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert Rate(0, 10).ci95 == pytest.approx((0, 0.2775), abs=1e-4)
    # (0.3 − 0.1) / (0.9 − 0.1).
    rate = corrected_rate(Rate(30, 100), Rate(90, 100), Rate(10, 100))
    assert rate.value == pytest.approx(0.25)
    assert rate.ci95[0] < 0.17 and rate.ci95[1] > 0.33
    assert corrected_rate(Rate(5, 100), Rate(90, 100), Rate(10, 100)).value == 0, "never below nothing"
    blind = corrected_rate(Rate(30, 100), Rate(60, 100), Rate(40, 100))
    assert blind.value is None and "cannot tell" in blind.reason
    assert corrected_rate(Rate(1, 2), Rate(0, 0), Rate(1, 2)).value is None
