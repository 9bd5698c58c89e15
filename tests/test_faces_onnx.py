"""Running .onnx files in torch: equal to onnxruntime, batched, and safe against damaged files."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from face_networks import SmallIResNet, SmallScrfd, randomise, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ipro_core.faces.onnx_file import read_onnx
from ipro_core.faces.onnx_graph import OnnxGraph

onnxruntime.set_default_logger_severity(3)  # it warns of every batch the file does not declare


def reference(path: Path, image: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})


def assert_equals_onnxruntime(path: Path, size: tuple[int, int], bound: float = 1e-5) -> OnnxGraph:
    """Batch 4 of ours against four times batch 1 of onnxruntime, and against four times batch 1 of ours."""
    network = OnnxGraph(read_onnx(path))
    images = np.random.default_rng(0).standard_normal((4, 3, *size)).astype(np.float32)
    with torch.no_grad():
        batched = network(torch.from_numpy(images))
        for index in range(4):
            image = images[index : index + 1]
            expected, single = reference(path, image), network(torch.from_numpy(image))
            for ours, one, theirs in zip(batched, single, expected, strict=True):
                ours = ours.reshape(4, *one.shape)[index].numpy()
                scale = np.abs(theirs).max()
                assert np.abs(ours.reshape(theirs.shape) - theirs).max() <= bound * scale
                assert np.abs(ours - one.numpy()).max() <= bound * scale
    return network


def test_an_iresnet_equals_onnxruntime_at_any_batch(tmp_path):
    network = assert_equals_onnxruntime(write(randomise(SmallIResNet()), tmp_path / "r.onnx"), (112, 112))
    assert network.output_shapes == ((1, 32),)


def test_an_scrfd_equals_onnxruntime_at_any_batch_and_size(tmp_path):
    path = write(randomise(SmallScrfd()), tmp_path / "d.onnx", size=None)
    assert_equals_onnxruntime(path, (64, 64))
    assert_equals_onnxruntime(path, (96, 160))


def test_a_network_with_a_size_written_into_it_still_takes_batches(tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x.mean(dim=1).reshape(1, -1)[:, :64].reshape(1, 64)

    network = OnnxGraph(read_onnx(write(Fixed(), tmp_path / "fixed.onnx")))
    images = torch.rand(3, 3, 112, 112)
    torch.testing.assert_close(network(images)[0], images.mean(dim=1).reshape(3, -1)[:, :64])


def one_node(path: Path, operator: str, inputs: list, opset: int, **attributes) -> Path:
    """A graph x → operator(x, *inputs) → y on a 3 × 10 × 10 image."""
    weights = [numpy_helper.from_array(value, f"i{k}") for k, value in enumerate(inputs)]
    names = ["x", *(weight.name for weight in weights)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def ints(*values):
    return np.array(values, dtype=np.int64)


def floats(*values):
    return np.array(values, dtype=np.float32)


WEIGHT = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
CASES = {
    "conv same upper": ("Conv", [WEIGHT], 11, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv same lower": ("Conv", [WEIGHT], 11, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "conv uneven padding": ("Conv", [WEIGHT], 11, {"pads": [0, 1, 2, 0]}),
    "conv dilated": ("Conv", [WEIGHT], 11, {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    "max pool, rounded up": ("MaxPool", [], 11, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "max pool, uneven padding": ("MaxPool", [], 11, {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}),
    "average pool": ("AveragePool", [], 11, {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "average pool with border": ("AveragePool", [], 11, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "global average pool": ("GlobalAveragePool", [], 11, {}),
    "prelu": ("PRelu", [floats(0.1, 0.2, -0.3).reshape(3, 1, 1)], 11, {}),
    "prelu by position": ("PRelu", [np.linspace(0, 1, 300, dtype=np.float32).reshape(3, 10, 10)], 11, {}),
    "clip by inputs": ("Clip", [np.float32(-0.5), np.float32(0.5)], 11, {}),
    "clip below": ("Clip", [np.float32(0.0)], 11, {}),
    "clip by attributes": ("Clip", [], 6, {"min": -0.5, "max": 0.5}),
    "leaky relu": ("LeakyRelu", [], 11, {"alpha": 0.2}),
    "hard sigmoid": ("HardSigmoid", [], 11, {}),
    "flatten from the third axis": ("Flatten", [], 11, {"axis": -2}),
    "reshape keeps a zero side": ("Reshape", [ints(0, -1, 5)], 11, {}),
    "slice": ("Slice", [ints(1, -4), ints(9, 10**9), ints(2, 3), ints(2, 1)], 11, {}),
    "slice backwards": ("Slice", [ints(-1), ints(-(2**31)), ints(1), ints(-1)], 11, {}),
    "slice by attributes": ("Slice", [], 9, {"starts": [1], "ends": [3], "axes": [1]}),
    "gather swaps red and blue": ("Gather", [ints(2, 1, -3)], 11, {"axis": 1}),
    "gather by a scalar": ("Gather", [np.array(1)], 11, {"axis": 2}),
    "unsqueeze": ("Unsqueeze", [ints(0, -1)], 13, {}),
    "transpose": ("Transpose", [], 11, {"perm": [0, 2, 3, 1]}),
    "pad": ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(7.0)], 11, {}),
    "mean": ("ReduceMean", [], 11, {"axes": [2, 3], "keepdims": 0}),
    "resize to the nearest": ("Resize", [floats(), floats(1, 1, 2, 2)], 11, {"mode": "nearest"}),
    "resize as SCRFD": (
        "Resize",
        [floats(), floats(), ints(1, 3, 20, 30)],
        11,
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "resize down, rounded up": (
        "Resize",
        [floats(), floats(), ints(1, 3, 4, 7)],
        11,
        {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    ),
    "resize linear": ("Resize", [floats(), floats(1, 1, 2, 3)], 11, {"mode": "linear"}),
    "resize corners": (
        "Resize",
        [floats(), floats(), ints(1, 3, 17, 5)],
        11,
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "resize of old files": ("Resize", [floats(1, 1, 2, 2)], 10, {"mode": "nearest"}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_operator_equals_onnxruntime(tmp_path, case):
    operator, inputs, opset, attributes = case
    path = one_node(tmp_path / "o.onnx", operator, inputs, opset, **attributes)
    image = np.random.default_rng(0).standard_normal((1, 3, 10, 10)).astype(np.float32)
    (ours,) = OnnxGraph(read_onnx(path))(torch.from_numpy(image))
    (theirs,) = reference(path, image)
    assert tuple(ours.shape) == theirs.shape
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-5)


def test_weights_are_frozen_and_the_input_gets_the_gradient(tmp_path):
    source = randomise(SmallIResNet())
    network = OnnxGraph(read_onnx(write(source, tmp_path / "r.onnx")))
    assert not list(network.parameters())
    source.requires_grad_(False)
    image = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    ours, theirs = image.clone().requires_grad_(), image.clone().requires_grad_()
    network(ours)[0].square().sum().backward()
    source(theirs).square().sum().backward()
    assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm()


def test_the_gradient_equals_the_slope_in_double_precision(tmp_path):
    network = OnnxGraph(read_onnx(write(randomise(SmallIResNet()), tmp_path / "r.onnx"))).double()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 112, 112, generator=generator, dtype=torch.float64).requires_grad_()
    direction = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    score = lambda x: network(x)[0].tanh().sum()  # noqa: E731
    (gradient,) = torch.autograd.grad(score(image), image)
    step = 1e-6  # small beside the distance to the next PReLU kink, large beside rounding
    with torch.no_grad():
        slope = (score(image + step * direction) - score(image - step * direction)) / (2 * step)
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


# Damaged and hostile files: one sentence, no deep traceback, no memory on a file's word.

SENTENCE = "cannot be read as an ONNX network"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    return write(
        randomise(SmallIResNet(dim=16, width=4)), tmp_path_factory.mktemp("s") / "r.onnx"
    ).read_bytes()


def open_bytes(folder: Path, content: bytes) -> OnnxGraph:
    path = folder / "some.onnx"
    path.write_bytes(content)
    return OnnxGraph(read_onnx(path))


def opens_or_says_why(folder: Path, content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of odd but legal numbers
        try:
            open_bytes(folder, content)
        except ValueError as error:
            assert "some.onnx" in str(error) and "\n" not in str(error) and len(str(error)) < 600


shared_folder = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@shared_folder
@given(cut=st.floats(0, 1))
@example(cut=0.0)
def test_a_truncated_file_says_so(tmp_path, sound, cut):
    with pytest.raises(ValueError, match=SENTENCE):
        open_bytes(tmp_path, sound[: int(cut * (len(sound) - 1))])


@shared_folder
@given(content=st.binary(max_size=400))
def test_random_bytes_are_no_network(tmp_path, content):
    with pytest.raises(ValueError, match=SENTENCE):
        open_bytes(tmp_path, content)


@shared_folder
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8)
)
def test_flipped_bytes_open_or_say_why(tmp_path, sound, flips):
    content = bytearray(sound)
    for place, mask in flips:
        content[int(place * len(content))] ^= mask
    opens_or_says_why(tmp_path, bytes(content))


def test_flipped_structure_opens_or_says_why(tmp_path, sound):
    # Most bytes are weights: here bytes outside of them are broken, one bit of one byte at a time.
    weights = [tensor.raw_data for tensor in onnx.load_from_string(sound).graph.initializer]
    inside = np.zeros(len(sound), dtype=bool)
    for raw in weights:
        inside[(start := sound.find(raw)) : start + len(raw)] = True
    for place in np.flatnonzero(~inside)[::67]:
        content = bytearray(sound)
        content[place] ^= 1 << int(place % 7)
        opens_or_says_why(tmp_path, bytes(content))


def test_a_tensor_may_not_claim_more_than_its_bytes(tmp_path):
    path = one_node(tmp_path / "o.onnx", "Conv", [WEIGHT], 11)
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 1 << 40
    with pytest.raises(ValueError, match="with 108 numbers"):
        open_bytes(tmp_path, model.SerializeToString())


@pytest.mark.parametrize("operator", ["Concat", "Mul"])
def test_a_graph_may_not_grow_without_bound(tmp_path, operator):
    # Doubling 64 times, or an outer product with itself: a bomb of some hundred bytes.
    if operator == "Concat":
        nodes = [helper.make_node("Concat", [f"x{k}", f"x{k}"], [f"x{k + 1}"], axis=1) for k in range(64)]
    else:
        shapes = [("tall", ints(1, -1, 1)), ("wide", ints(1, 1, -1))]
        nodes = [helper.make_node("Reshape", ["x0", name], [f"{name}_x"]) for name, _ in shapes]
        nodes += [helper.make_node("Mul", ["tall_x", "wide_x"], ["x64"])]
    graph = helper.make_graph(
        nodes,
        "bomb",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, 3, 320, 320])],
        [helper.make_tensor_value_info("x64", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(ints(1, -1, 1), "tall"), numpy_helper.from_array(ints(1, 1, -1), "wide")],
    )
    with pytest.raises(ValueError, match="makes a value of the shape"):
        open_bytes(tmp_path, helper.make_model(graph).SerializeToString())


def test_an_unknown_operator_is_named(tmp_path):
    path = one_node(tmp_path / "o.onnx", "Einsum", [WEIGHT], 12, equation="nchw,ochw->no")
    with pytest.raises(ValueError, match=r"o\.onnx uses Einsum, which is not known here"):
        OnnxGraph(read_onnx(path))


def test_weights_in_another_file_are_refused(tmp_path):
    path = one_node(tmp_path / "o.onnx", "Conv", [WEIGHT], 11)
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="w.bin")
    with pytest.raises(ValueError, match="its weights lie in another file"):
        OnnxGraph(read_onnx(path))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    broken = WEIGHT.copy()
    broken[0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        OnnxGraph(read_onnx(one_node(tmp_path / "o.onnx", "Conv", [broken], 11)))


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_weights_of_any_float_width_become_float32(tmp_path, kind):
    wide = one_node(tmp_path / "a.onnx", "PRelu", [np.array([0.25, 0.5, 1], dtype=kind).reshape(3, 1, 1)], 11)
    image = torch.linspace(-1, 1, 300).reshape(1, 3, 10, 10)
    (ours,) = OnnxGraph(read_onnx(wide))(image)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours[0, 0, 0, 0], torch.tensor(-0.25))  # slope 1/4 of the first channel


def test_writing_in_place_changes_no_value_that_is_needed_again(tmp_path):
    class Twice(torch.nn.Module):
        """The convolution's value is needed beside its Relu: it must not be overwritten."""

        def __init__(self):
            super().__init__()
            self.one, self.two = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

        def forward(self, x):
            a = self.one(x)
            return self.two(torch.relu(a)).relu() - (self.one(x) + a).relu()

    network = assert_equals_onnxruntime(write(Twice().eval(), tmp_path / "t.onnx"), (112, 112))
    # The second convolution's Relu; the sum, which takes what one convolution gave anew, and its Relu.
    written = [node.operator for node, may in zip(network.nodes, network._in_place, strict=True) if may]
    assert sorted(written) == ["Add", "Relu", "Relu"]
    images = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        kept = images.clone()
        without = network(images)[0]
    assert torch.equal(images, kept)
    assert torch.equal(network(images)[0].detach(), without), "with gradients nothing is overwritten"
