"""Identity-preserving reward-guided optimisation (IPRO) of image-to-video models.

| paper | module |
|---|---|
| Section 5.1, clips | `clips.measures`, `clips.curation` |
| φ: detection, alignment, ArcFace, pools | `faces` |
| Eq. 5, 6: facial scoring mechanism | `rewards.face_pool` |
| v_θ, v_ref | `models` |
| Eq. 3: sample(θ, x_T) | `sampling.flow`, `sampling.rollout` |
| Eq. 4: the truncated gradient | `sampling.gradient` |
| Eq. 7: the KL anchor | `sampling.anchor` |
| J(θ) and its recipe | `training.ipro`, `training.loop`, `training.presets` |
| FaceSim, Tables 1 to 6 | `evaluation` |
"""
