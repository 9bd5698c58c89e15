"""The text encoder: UMT5 files as ComfyUI has them, against transformers' own network."""

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ipro_core.models.text import PROMPT_TOKENS, load_text_encoder

WORDS = (
    *("a", "person", "turns", "left", "right", "smiles", "frowns", "looks"),
    *("up", "down", "walks", "closer", "and", "keeps", "calm"),
)


def tokenizer() -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 20),
        model_writer=model, vocab_size=36, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def network(width: int = 32):
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = UMT5Config(
            vocab_size=64, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
            is_encoder_decoder=False, feed_forward_proj="gated-gelu", use_cache=False,
        )  # fmt: skip
        return UMT5EncoderModel(config).eval()


def official(model) -> dict[str, Tensor]:
    """The tensors as in ComfyUI's files: the shared embedding once, the tokenizer inside."""
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    tensors.pop("encoder.embed_tokens.weight", None)
    return tensors | {"spiece_model": torch.frombuffer(bytearray(tokenizer()), dtype=torch.uint8)}


def written(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "umt5.safetensors")
    return folder / "umt5.safetensors"


def expected(model, encoder, prompt: str) -> Tensor:
    ids = [*encoder.tokenizer.encode(prompt), 1]
    embedding = model(input_ids=torch.tensor([ids])).last_hidden_state[0].detach()
    return torch.cat([embedding, torch.zeros(PROMPT_TOKENS - len(ids), 32)])


def test_a_prompt_is_embedded_as_by_transformers_and_filled_up_with_zeros(tmp_path):
    model = network()
    encoder = load_text_encoder(written(tmp_path, official(model)), dtype=torch.float32)
    for prompt in ("a person turns left and smiles", "", "walks"):
        out = encoder(prompt)
        assert out.shape == (512, 32)
        torch.testing.assert_close(out, expected(model, encoder, prompt), rtol=1e-4, atol=1e-5)
    assert encoder("walks left " * 600)[-1].any()  # cut to the length, which then is full


def test_scaled_fp8_weights_stay_fp8_and_count_with_their_scale(tmp_path):
    model, tensors = network(), {}
    for key, tensor in official(model).items():
        if tensor.ndim == 2 and "bias" not in key and "shared" not in key:
            scale = tensor.abs().max() / 448
            tensors[key] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[key.removesuffix("weight") + "scale_weight"] = scale.reshape(())
            model.state_dict()[key].copy_(tensors[key].float() * scale)
        else:
            tensors[key] = tensor
    tensors["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    encoder = load_text_encoder(written(tmp_path, tensors), dtype=torch.float32)
    prompt = "a person looks up"
    torch.testing.assert_close(encoder(prompt), expected(model, encoder, prompt), rtol=1e-4, atol=1e-5)
    held = encoder.network.encoder.block[0].layer[0].SelfAttention.q
    assert held.stored.dtype == torch.float8_e4m3fn


NORM = "encoder.final_layer_norm.weight"
SECOND_BIAS = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda tensors: tensors.pop("spiece_model"), "holds no tokenizer"),
        (lambda tensors: tensors.pop(NORM), f"{NORM} missing"),
        (lambda tensors: tensors.pop(SECOND_BIAS), "no UMT5 text encoder"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "extra missing, unknown"),
        (lambda tensors: tensors.update(spiece_model=torch.ones(9, dtype=torch.uint8)), "tokenizer inside"),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(tmp_path, change, told):
    tensors = official(network())
    change(tensors)
    with pytest.raises(ValueError, match=told) as error:
        load_text_encoder(written(tmp_path, tensors))
    assert "umt5" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_damaged_file_is_called_what_it_should_be(tmp_path):
    with pytest.raises(ValueError, match="There is no text encoder at"):
        load_text_encoder(tmp_path / "absent.safetensors")
    path = written(tmp_path, official(network()))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as a text encoder"):
        load_text_encoder(path)
