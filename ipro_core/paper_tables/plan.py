"""Every row of the tables and every number they rest on, settled before anything is run.

The paper's rows on Wan 2.2 A14B become rows on the embedded world of turns, where a clip goes from one far
side of the face to the other while its expression changes: there, copying the first frame pays a reward that
looks at the first frame alone, and shows. All rows share the samples, the noise, the batch and the number of
passes of the network; what a row changes, it changes for a reason that the paper gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..training.presets import TINY, Preset
from ..training.settings import SamplingSettings

WORLD = "turns"
SEEDS = (0, 1, 2)
"""Of tuning: the order of scenes, all noise, the adapter's first values."""
BATCH = 10
PASSES = 33_000
"""Of the network in one run, or what takes as long: 120 updates of IPRO."""
BACKWARD = 2
"""Forward passes that a backward one takes as long as; measured 1.8."""
LOOK = 9
"""And that decoding a video, finding its faces and pulling their reward back takes; measured 8.7."""
SCENES = 1_200
"""Tuned on: no run of IPRO's sees one twice."""
HELD_OUT = 48
"""People and prompts that no network has seen; judged on with one noise each."""


@dataclass(frozen=True)
class Row:
    """One tuned model of the tables."""

    name: str
    told: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of IPRO's settings in this world."""
    by_scorer: bool = False
    """Whether faces are embedded by the tiny CLIP's image tower in the place of the recogniser."""

    def plan(self, seed: int, passes: float = 0) -> Preset:
        """The settings of one run, its updates as many as the passes allow; 0: the tables'."""
        plan = TINY.changed(**{"batch_size": BATCH, "seed": seed, **self.changes})
        updates = round((passes or PASSES) / (plan.loop.batch_size * passes_of(plan.method)))
        return replace(plan, loop=replace(plan.loop, updates=updates))


def passes_of(method: SamplingSettings) -> float:
    """One draw's, in forward passes: nothing is run again in this world, and what lies before the first tuned
    step is sampled too."""
    passes = method.passes()
    taken = passes.forward + BACKWARD * passes.backward + LOOK * passes.decodes
    begun = getattr(method, "candidates", 1) if method.samples else 0  # a group begins with one noise
    return taken + begun * method.first_tuned_step


ROWS = (
    Row("ipro", "IPRO"),
    Row("sft", "SFT with the face loss", {"method": "sft"}),
    Row("clip", "reward by CLIP's image encoder", by_scorer=True),
    # Pairs and groups take many videos: fewer of them an update, so that there are updates enough. With
    # IPRO's learning rate both lost what they were to gain, in a few updates on the other world's scenes.
    Row("dpo", "DPO", {"method": "dpo", "batch_size": 5, "learning_rate": 3e-4, "beta": 500.0}),
    Row("grpo", "GRPO", {"method": "grpo", "batch_size": 4, "learning_rate": 3e-4}),
    Row("high-noise", "gradient of the first steps", {"placement": "high-noise", "first_tuned_step": 0}),
    Row("no-kl", "without KL", {"kl_weight": 0.0, "measure_kl": True}),
    Row("no-fsm", "without FSM: the first frame is the reference", {"reward": "reference"}),
)


@dataclass(frozen=True)
class Claim:
    """A direction that the paper's numbers have, and the two rows that show it here; "base" is the untuned
    model."""

    table: str
    told: str
    measure: str
    """A key of `page.MEASURES`."""
    more: str
    less: str
    paper: tuple[float, float]
    """The paper's values of `more` and `less`, on Wan 2.2 A14B."""


CLAIMS = (
    Claim("1", "IPRO keeps the face better than the base model", "facesim", "ipro", "base", (0.6942, 0.5780)),
    Claim("3", "DPO helps", "facesim", "dpo", "base", (0.6284, 0.5780)),
    Claim("3", "GRPO helps", "facesim", "grpo", "base", (0.6334, 0.5780)),
    Claim("3", "IPRO helps more than DPO", "facesim", "ipro", "dpo", (0.6942, 0.6284)),
    Claim("3", "IPRO helps more than GRPO", "facesim", "ipro", "grpo", (0.6942, 0.6334)),
    Claim("4", "SFT with the face loss helps", "facesim", "sft", "base", (0.6392, 0.5780)),
    Claim("4", "a reward by CLIP helps", "facesim", "clip", "base", (0.6099, 0.5780)),
    Claim("4", "IPRO helps more than SFT", "facesim", "ipro", "sft", (0.6942, 0.6392)),
    Claim("4", "IPRO helps more than a reward by CLIP", "facesim", "ipro", "clip", (0.6942, 0.6099)),
    Claim("5", "the last steps help more than the first", "facesim", "ipro", "high-noise", (0.6942, 0.6456)),
    Claim("5", "and leave more motion", "motion", "ipro", "high-noise", (19.17, 18.98)),
    Claim("6", "without KL FaceSim rises further", "facesim", "no-kl", "ipro", (0.7544, 0.6942)),
    Claim("6", "without FSM FaceSim rises further", "facesim", "no-fsm", "ipro", (0.7388, 0.6942)),
    Claim("6", "without KL more is hacked", "hacked", "no-kl", "ipro", (0.58, 0.10)),
    Claim("6", "without FSM more is hacked", "hacked", "no-fsm", "ipro", (0.52, 0.10)),
    Claim("6", "IPRO hacks hardly more than the base model", "hacked", "ipro", "base", (0.10, 0.07)),
)


@dataclass(frozen=True)
class Table:
    """One of the paper's tables: its rows here, and beside them its own numbers."""

    title: str
    rows: tuple[str, ...]
    measures: tuple[str, ...]
    """Keys of `page.MEASURES`."""
    paper: Mapping[str, Mapping[str, str]]
    """By measure, then by row: Wan 2.2 A14B's."""
    note: str = ""


TABLES = (
    Table(
        "Table 1: before and after",
        ("base", "ipro", "real"),
        ("facesim", "judge", "motion", "turn", "sharpness", "coverage"),
        {
            "FaceSim": {"base": "0.5780", "ipro": "0.6942"},
            "dynamic degree": {"base": "19.45", "ipro": "19.17"},
            "imaging quality": {"base": "0.7273", "ipro": "0.7253"},
        },
        "VBench's networks say nothing of drawn faces of 48 pixels: head motion stands where the paper has "
        "the dynamic degree, sharpness where it has imaging quality; its other columns have no counterpart.",
    ),
    Table(
        "Table 2: against other ways to keep a face",
        ("base", "ipro"),
        ("facesim", "judge"),
        {"FaceSim": {"base": "0.5780", "ipro": "0.6942"}},
        "MoCA (0.5820) and Concat-ID (0.6056) are other networks, not other ways to tune one; not rebuilt.",
    ),
    Table(
        "Table 3: DPO and GRPO",
        ("base", "dpo", "grpo", "ipro"),
        ("facesim", "judge", "motion"),
        {"FaceSim": {"base": "0.5780", "dpo": "0.6284", "grpo": "0.6334", "ipro": "0.6942"}},
    ),
    Table(
        "Table 4: supervised tuning, and CLIP in the recogniser's place",
        ("base", "sft", "clip", "ipro"),
        ("facesim", "judge", "motion"),
        {"FaceSim": {"base": "0.5780", "sft": "0.6392", "clip": "0.6099", "ipro": "0.6942"}},
    ),
    Table(
        "Table 5: which steps carry the gradient",
        ("base", "high-noise", "ipro"),
        ("facesim", "judge", "motion"),
        {
            "FaceSim": {"base": "0.5780", "high-noise": "0.6456", "ipro": "0.6942"},
            "dynamic degree": {"base": "19.45", "high-noise": "18.98", "ipro": "19.17"},
        },
    ),
    Table(
        "Table 6: what keeps the reward from being hacked",
        ("base", "no-kl", "no-fsm", "ipro", "real"),
        ("facesim", "judge", "hacked", "motion", "turn"),
        {
            "FaceSim": {"base": "0.5780", "no-kl": "0.7544", "no-fsm": "0.7388", "ipro": "0.6942"},
            "hacking": {"base": "7 %", "no-kl": "58 %", "no-fsm": "52 %", "ipro": "10 %"},
        },
        "The paper asks Gemini 2.5 Pro; here a clip is suspect where its face is stiffer, more pasted or "
        "more frontal than real clips are (8 % of real clips at most are suspect of anything).",
    ),
)
