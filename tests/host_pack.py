"""A pack beside ours in the real host: networks of Wan as narrow as the tests', where sizes are fixed there.

The host runs it, from a copy that host.py puts into custom_nodes.
"""

import json
from pathlib import Path

import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.sd
import comfy.text_encoders.t5
import comfy.text_encoders.wan
import torch


class Vae21(comfy.ldm.wan.vae.WanVAE):
    def __init__(self, **sizes):
        super().__init__(**{**sizes, "dim": 2})


class Vae22(comfy.ldm.wan.vae2_2.WanVAE):
    def __init__(self, **sizes):
        super().__init__(**{**sizes, "dim": 2, "dec_dim": 4})


class Umt5(comfy.text_encoders.wan.sd1_clip.SDClipModel):
    def __init__(self, **given):
        file = Path(comfy.text_encoders.wan.__file__).with_name("umt5_config_xxl.json")
        small = {"num_layers": 2, "d_ff": 48, "d_kv": 8, "num_heads": 4, "vocab_size": 64}
        sizes = json.loads(file.read_text()) | small
        kind = {"special_tokens": {"end": 1, "pad": 0}, "model_class": comfy.text_encoders.t5.T5}
        kind |= {"enable_attention_masks": True, "zero_out_masked": True}
        super().__init__(**{"layer": "last", **given, **kind, "textmodel_json_config": sizes})


def encoder_of(tensors):
    """The host knows UMT5 by its layers' number and width."""
    key = tensors.get("encoder.block.0.layer.0.SelfAttention.k.weight", torch.empty(0, 0))
    return comfy.sd.TEModel.T5_XXL if key.shape[1] == 4096 else known(tensors)


known = comfy.sd.detect_te_model
comfy.sd.detect_te_model = encoder_of
comfy.ldm.wan.vae.WanVAE = Vae21
comfy.ldm.wan.vae2_2.WanVAE = Vae22
comfy.text_encoders.wan.UMT5XXlModel = Umt5


class Words:
    """Stands for CLIP Text Encode."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "test"

    def make(self):
        return ([[torch.zeros(1, 8, 4096), {}]],)


class TooLarge(Words):
    """Stands for what no memory holds."""

    RETURN_TYPES = ("VIDEO", "IPRO_MODEL")

    def make(self):
        return (self, self)

    def get_components(self, *_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    open_studio = get_components


NODE_CLASS_MAPPINGS = {"TestConditioning": Words, "TestTooLarge": TooLarge}
