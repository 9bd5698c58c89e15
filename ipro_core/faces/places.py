"""Everyone in a video, followed by place first: who stands there is asked later, so that a swap can be seen.

`tracks` follows a person and lets go where somebody else stands; here the place goes on, and the person
counts only where places leave a doubt: where people cross, or after a cut.
"""

import numpy as np

from .matching import match
from .tracks import SAME_PERSON, SAME_PLACE, SeenFaces, overlap

PATIENCE = 8
"""Frames for which a place waits for a face that was lost."""


def follow_places(
    seen: SeenFaces, *, same: float = SAME_PERSON, cut_crossings: bool = False
) -> list[dict[int, int]]:
    """The faces of each place, frame → index of the face, in order of appearance.

    Args:
        same: the cosine from which a face that stands elsewhere may go on a place's track.
        cut_crossings: end the tracks of people who pass each other, and begin new ones; else each goes on
            with the face that is more like its last.
    """
    tracks: list[dict[int, int]] = []
    waiting: list[dict[int, int]] = []
    for t, faces in enumerate(seen.detections):
        waiting = [track for track in waiting if t - max(track) <= PATIENCE]
        place, person = np.zeros((2, len(waiting), len(faces)))
        for row, track in enumerate(waiting):
            at, last = max(track), track[max(track)]
            place[row] = [overlap(seen.detections[at][last], face).item() for face in faces]
            person[row] = (seen.embeddings[t] @ seen.embeddings[at][last]).numpy()
        near = place >= SAME_PLACE
        # Two who were near one face, or two faces near one's last: here the place does not tell who is who.
        doubtful = near & ((near.sum(axis=0) > 1) | (near.sum(axis=1) > 1)[:, None])
        # A face that stays where it was outweighs one elsewhere that is more like the last.
        worth = np.where(doubtful, 2 * SAME_PLACE, 2 * place) + person
        worth[~near & (person < same)] = -np.inf
        if cut_crossings:
            worth[doubtful.any(axis=1)] = worth[:, doubtful.any(axis=0)] = -np.inf
        matched = match(worth, missing=-1.0)
        for track, column in zip(waiting, matched, strict=True):
            if column is not None:
                track[t] = column
        if cut_crossings:
            waiting = [track for track, ends in zip(waiting, doubtful.any(axis=1), strict=True) if not ends]
        begun = [{t: column} for column in range(len(faces)) if column not in matched]
        tracks += begun
        waiting += begun
    return tracks
