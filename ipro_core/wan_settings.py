"""What a job may be told of Wan: knobs, and what its models were trained on; a menu imports no network."""

from dataclasses import dataclass
from typing import Literal

from .types import Framing, knob

BOUNDARY = {"I2V-A14B": 0.9, "T2V-14B": 0.875}
"""Where the low-noise expert takes over, of the kinds with two experts."""
A14B_FRAMING, TI2V_5B_FRAMING = Framing(832, 480, 81, 16.0), Framing(1280, 704, 121, 24.0)
"""What they were trained on."""
EMBEDDED = "tiny world"
SIZES = {"I2V-A14B": A14B_FRAMING, "TI2V-5B": TI2V_5B_FRAMING}
"""The jobs with files, see `doctor`: what is planned for where no size is given."""


@dataclass(frozen=True)
class WanFiles:
    """The files of one job, as ComfyUI users have them."""

    model: str = knob("", "The Wan network to tune: I2V-A14B's low-noise expert, or TI2V-5B.")
    high_noise: str = knob("", "I2V-A14B's high-noise expert: it samples the first steps and stays as it is.")
    vae: str = knob("", "wan_2.1_vae for A14B, wan2.2_vae for TI2V-5B.")
    text_encoder: str = knob("", "umt5_xxl, fp8 or fp16.")
    lightning: str = knob("", "The model's own few-step LoRA, laid beneath the one that is tuned.")
    high_lightning: str = knob("", "The high-noise expert's few-step LoRA.")
    draft: str = knob(
        "", "taew2_2 for TI2V-5B, taew2_1 for A14B: finds faces sooner, so that an update decodes only them."
    )
    judge: str = knob("", "A second face pack or recogniser, which measures and is never a reward.")
    cache: str = knob("runs/cache", "A folder for what is made of clips once; any number of runs share it.")


SCORER = "prompt-scorer"
"""As the face encoder: the text-image scorer's own image tower."""


@dataclass(frozen=True)
class OtherFiles:
    """Files beside the model's, for Wan and for the embedded world alike."""

    prompt_scorer: str = knob(
        "",
        "HPSv2 or CLIP, which say how well frames show a prompt: a .safetensors file with CLIP's tokeniser "
        "beside it, or a folder from Hugging Face. For PersonalVideo.",
    )
    face_encoder: str = knob(
        "",
        "CLIP, whose image encoder compares faces for the reward in the recogniser's place (Table 4); "
        f"'{SCORER}': the prompt scorer's own. Measures stay the recogniser's.",
    )
    prompts: str = knob(
        "", "A text file with a prompt a line, as `ipro prompts` writes it; none: the shipped fifty."
    )


@dataclass(frozen=True)
class DeviceSettings:
    """Where the work is done; changes no result but for rounding."""

    device: str = knob("", "cuda, cuda:1, cpu, …; by default the first GPU, if there is one.")
    resident_blocks: int = knob(
        -1, "Blocks of the network kept on the GPU, the others stream; -1: by its memory."
    )
    states_on_host: Literal["auto", "yes", "no"] = knob(
        "auto", "Whether what the backward pass needs of each block waits in the computer's memory."
    )
    kept_attentions: int = knob(
        -1,
        "In how many blocks of passes that are run twice attention's result waits in memory instead of being "
        "made again; -1: as many as leave 8 GiB free, none where the two above are both set by hand.",
    )
