"""`ipro evaluate`: base against tuned, from the same noise, with a report."""

import argparse
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from ..clips.scenes import Scene, find_clips
from ..clips.video import write_video
from ..evaluation.compare import SceneVideos, compare_videos
from ..evaluation.film import side_by_side
from ..evaluation.guards import GuardResults, Guards
from ..evaluation.guards_page import guard_sections
from ..evaluation.report import write_report
from ..evaluation.study_sources import keep_videos
from ..evaluation.verdict import Comparison
from ..files import write_atomically
from ..job import check_judge, recent_kl, shareable, showing_faces
from ..runs import read_metrics
from ..studio import Sampler, Studio
from ..tinyworld.scenes import PROMPTS_HELD_OUT, tiny_scenes
from ..training.settings import SamplingSettings
from .evaluate_videos import compare_files, given_videos, told, videos_arguments
from .flags import given_knobs, progress
from .guards import add_guards, guard_lines, open_guards
from .opening import (
    PERSON,
    SAMPLING,
    add_networks,
    add_person,
    add_sampling,
    check_adapter,
    judged_config,
    open_job,
    open_tuned,
    prepare,
    scenes_of_person,
    warn_of_known_clips,
)

FILM_SCENES = 8


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Compare base and tuned on people, prompts and seeds never trained on; writes a report."""
    if given_videos(options):
        comparison, report = compare_files(options), options.report or Path("report.html")
        print(table(comparison, report))
        return {"report": str(report), **told(comparison)}
    if bool(options.run) == bool(options.lora):
        raise ValueError(
            "Give what is to be judged: either --run with a run's folder, or --lora with a file, or videos "
            "with --base-videos and --tuned-videos."
        )
    config = judged_config(options)
    job = open_job(options, config, given_knobs(options, *SAMPLING))
    studio = job.studio
    check_judge(studio)
    if "pictures" in job.plan.method.wants:  # the same person, with other prompts where the world has them
        references = options.references or [Path(file) for file in config.get("clips", [])]
        person = options.person or config.get("person", PERSON)
        scenes = scenes_of_person(references, job, person, PROMPTS_HELD_OUT)
    else:
        if job.is_wan and not options.clips:
            raise ValueError("Wan is judged on clips of people it was not tuned on: give them with --clips.")
        warn_of_known_clips(options.clips, config.get("clips", []))
        scenes = studio.read_clips(find_clips(options.clips, "evaluation"))
    report = options.report or (options.run or Path()) / "report.html"

    def show(scene: str, film_TCHW: Tensor) -> None:
        if options.run:
            write_video(options.run / "samples" / f"{scene}.mp4", film_TCHW, studio.framing.fps)

    guards = open_guards(options, studio, report)
    comparison = judge(options, studio, scenes, job.plan.method, show, guards)
    found = guards.results() if guards else GuardResults()
    write_reports(report, comparison, config, options.run, found)
    print("\n".join([*guard_lines(found), table(comparison, report)]))
    return {"report": str(report), **comparison.figures(), **found.figures()}


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, help="The run whose newest adapter is judged.")
    parser.add_argument("--lora", type=Path, help="Or a LoRA file.")
    clips = "Clips of people never trained on, folders of them, or a manifest of `ipro curate`."
    parser.add_argument("--clips", nargs="+", type=Path, default=[], help=clips)
    add_person(parser)
    parser.add_argument("--report", type=Path, help="The page to write; default: report.html in the run.")
    videos_arguments(parser)
    add_networks(parser)
    add_judging(parser)
    add_sampling(parser)
    add_guards(parser)


def add_judging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--held-out", type=int, default=48, help="Scenes of the embedded world to judge on.")
    parser.add_argument("--seeds", type=int, default=2, help="Videos of each scene by each model.")
    kept = "A folder to leave all videos in, one folder a model, for `ipro study make`."
    parser.add_argument("--keep-videos", type=Path, help=kept)


def judge(
    options: argparse.Namespace,
    studio: Studio,
    scenes: Sequence[Scene],
    settings: SamplingSettings,
    show: Callable[[str, Tensor], None],
    guards: Guards | None = None,
) -> Comparison:
    """Base against the adapter of options.run or options.lora.

    Args:
        scenes: none: held-out ones of the embedded world.
        show: is given the first scenes' names and films: real, base, tuned.
        guards: measure every pair too.
    """
    check_adapter(options, studio)
    scenes = showing_faces(studio, scenes or tiny_scenes("held_out", options.held_out))
    if not scenes:
        raise ValueError("No clip shows a face in its first frame, to compare with: choose others.")
    seeds = range(options.seeds)
    prepare(studio.prepare(scenes, settings, seeds, faces=False))
    model, shown = open_tuned(options, studio), 0
    sampler = Sampler(studio, model, studio.codec.open(), settings)

    def watched() -> Generator[SceneVideos, None, None]:
        nonlocal shown
        for pair in progress(sampler.pairs(scenes, seeds), "judging", total=len(scenes) * len(seeds)):
            if pair.seed == 0 and shown < FILM_SCENES and pair.real_TCHW is not None:
                shown += 1
                videos = {"real": pair.real_TCHW, "base": pair.base_TCHW, "tuned": pair.tuned_TCHW}
                show(pair.scene, side_by_side(videos))
            if options.keep_videos:
                keep_videos(
                    options.keep_videos,
                    pair.scene,
                    pair.seed,
                    {"base": pair.base_TCHW, "tuned": pair.tuned_TCHW},
                    studio.framing.fps,
                    image_CHW=pair.reference_CHW,
                    prompt=pair.prompt,
                )
            yield pair

    kl = recent_kl(options.run) if options.run else None
    other = studio.judge.open() if studio.judge else None
    # The guards' own, because they pass on what they found with them.
    faces = guards.faces if guards and guards.faces else studio.faces.open()
    with closing(watched()) as pairs:  # the bar goes before a refusal is told
        return compare_videos(guards.watch(pairs) if guards else pairs, *faces, other, kl=kl)


def write_reports(
    path: Path,
    comparison: Comparison,
    config: Mapping[str, Any],
    run: Path | None,
    guards: GuardResults | None = None,
) -> None:
    """`guards`: a section of the page, and a file of their own beside it."""
    guards = guards or GuardResults()
    environment = json.loads((run / "environment.json").read_text()) if run else {}
    write_report(
        path,
        comparison,
        steps=read_metrics(run) if run else [],
        settings=shareable(config),
        environment=environment,
        sections=guard_sections(guards),
    )
    if guards.figures():
        told = json.dumps(guards.figures(), indent=2).encode() + b"\n"
        write_atomically(path.with_suffix(".guards.json"), told)


def table(comparison: Comparison, report: Path) -> str:
    """The figures for a terminal."""
    gain, judge = comparison.gain, comparison.judge_gain
    lines = [
        f"FaceSim        base {comparison.facesim_base:.3f}   tuned {comparison.facesim_tuned:.3f}   "
        f"real clips {comparison.real_ceiling:.3f}   strangers {comparison.stranger_floor:.3f}",
        f"gain           {gain.mean:+.3f}   95 % {gain.ci95[0]:+.3f} to {gain.ci95[1]:+.3f}   "
        f"({gain.scenes} scenes, {gain.pairs} pairs)",
    ]
    if judge and comparison.transfer:
        lines.append(
            f"judge's gain   {judge.mean:+.3f}   95 % {judge.ci95[0]:+.3f} to {judge.ci95[1]:+.3f}   "
            f"transfer {comparison.transfer.value:.2f}"
        )
    lines.append(f"head motion    tuned / base {comparison.motion_ratio:.2f}")
    for one in comparison.guards:
        change = f"{one.unit} {one.change:+.3f}, least {one.margin:g}"
        lines.append(f"guard          {one.name}: {one.verdict} ({change})")
    lines.append(f"quality        rests on {comparison.rests_on}")
    lines += _people_lines(comparison)
    lines.append(
        f"face found in  base {comparison.coverage('base'):.0%}   tuned {comparison.coverage('tuned'):.0%}   "
        f"real {comparison.coverage('real'):.0%}"
    )
    if comparison.kl is not None:
        lines.append(f"KL             {comparison.kl:.4f}")
    lines += [f"Sign of a hack: {flag}" for flag in comparison.hack_flags]
    return "\n".join([*lines, f"report         {report}"])


def _people_lines(comparison: Comparison) -> list[str]:
    """Of videos with several people: who was lost or swapped by the tuned model."""
    lines = []
    for pair in comparison.pairs:
        if pair.tuned.people is None:
            continue
        people, swaps = pair.tuned.people.people, pair.tuned.people.swaps
        faults = [f"{person.name} is missing" for person in people if person.missing]
        faults += [f"{swap.before} becomes {swap.after} at frame {swap.frame}" for swap in swaps]
        lines += [f"people         {pair.scene}: {'; '.join(faults)}"] if faults else []
    return lines
