"""Models brought to another opset: nothing is lost, functions of other opsets come along, and ONNX Runtime loads it."""

import numpy as np
import onnx
import onnx_models
import pytest
from insides import opset_of, prepared
from onnx import TensorProto, helper
from onnx_models import run, sqnr, tensor, value

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore.onnx import ModelWarning

pytestmark = pytest.mark.any_build


def annotated():
    """A model in which something is said of everything that something can be said of."""
    model = onnx_models.branches()
    graph = model.graph
    graph.doc_string = "of the graph"
    branch = next(a.g for a in graph.node[1].attribute if a.name == "then_branch")
    inner = next(a.g for a in branch.node[1].attribute if a.name == "else_branch")
    told = [graph, branch, inner, *graph.node, *branch.node, *inner.node, *graph.initializer, *graph.input]
    for number, each in enumerate(told):
        each.metadata_props.add(key="number", value=str(number))
    for each in (*graph.node, *branch.node, *inner.node, *graph.initializer, *graph.input):
        each.doc_string = f"of {each.name}"
    graph.input[0].type.denotation = "TENSOR"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["several"], "sequence"))
    graph.node.append(helper.make_node("SequenceLength", ["several"], ["count"], "length"))
    graph.output.append(value("count", [], TensorProto.INT64))
    graph.value_info.append(helper.make_tensor_sequence_value_info("several", TensorProto.FLOAT, ["N", 16]))
    graph.initializer.append(tensor("scale_of_y", np.float32(0.5)))
    annotation = graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale_of_y")
    training = model.training_info.add()
    training.algorithm.name = "training"
    training.algorithm.node.append(helper.make_node("Identity", ["x"], ["gradient"]))
    model.doc_string, model.domain, model.model_version = "of the model", "org.example", 7
    model.ir_version = 10
    return model


@pytest.mark.parametrize("opset", [13, 19, 21])
def test_what_is_said_of_a_model_stays(opset):
    model = annotated()
    ready = prepared(model, opset)
    assert opset_of(ready) == opset
    for name in ("doc_string", "domain", "model_version", "metadata_props", "training_info", "producer_name"):
        assert getattr(ready, name) == getattr(model, name)
    for name in ("doc_string", "metadata_props", "quantization_annotation", "input", "output", "value_info", "name"):
        assert getattr(ready.graph, name) == getattr(model.graph, name)
    stored = {each.name: each for each in ready.graph.initializer}
    assert all(stored[each.name] == each for each in model.graph.initializer)
    graphs = [(model.graph, ready.graph)]
    n = 0
    for before, after in graphs:
        n += 1
        assert (before.doc_string, before.metadata_props) == (after.doc_string, after.metadata_props)
        made = {node.output[0]: node for node in after.node}
        for node in before.node:
            found = made[node.output[0]]
            assert (found.metadata_props, found.doc_string) == (node.metadata_props, node.doc_string)
            assert [a.name for a in found.attribute if a.HasField("g")] != [] or node.op_type != "If"
            inside = {a.name: a.g for a in found.attribute if a.HasField("g")}
            graphs += [(a.g, inside[a.name]) for a in node.attribute if a.HasField("g")]
    assert n == 5
    batch = {"x": onnx_models.normal(3, 16), "condition": np.array(True)}
    for exact, found in zip(run(model, batch), run(ready, batch), strict=True):
        np.testing.assert_array_equal(found, exact)


def with_function(opset, inner, *, squeezed=True):
    """A product behind a function of another opset, with an attribute that is given where it is called."""
    axes = (["axes"], {}) if inner >= 13 else ([], {"axes": [0]})
    constant = [helper.make_node("Constant", [], ["axes"], value_ints=[0])] if inner >= 13 else []
    elu = helper.make_node("Elu", ["i"], ["e"])
    reference = elu.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    assert reference.ref_attr_name == "slope"
    form = [
        *constant,
        helper.make_node("Unsqueeze", ["e", *axes[0]], ["u"], **axes[1]),
        helper.make_node("Squeeze", ["u", *axes[0]], ["o"], **axes[1]),
    ]
    body = [elu, *form] if squeezed else [elu, helper.make_node("Identity", ["e"], ["o"])]
    function = helper.make_function("of.tests", "Act", ["i"], ["o"], body, [helper.make_opsetid("", inner)], ["slope"])
    graph = helper.make_graph(
        [
            helper.make_node("Act", ["x"], ["a"], "called", domain="of.tests", slope=0.25),
            helper.make_node("MatMul", ["a", "w"], ["y"], "product"),
        ],
        "tested",
        [value("x", ["N", 32])],
        [value("y", ["N", 8])],
        [tensor("w", onnx_models.normal(32, 8))],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("of.tests", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(
    "options",
    [{}, {"weights": "int4", "activations": "none"}, {"weights": "fp8", "activations": "fp8"}],
)
@pytest.mark.parametrize(("opset", "inner"), [(17, 17), (17, 13), (17, 11), (13, 17), (12, 18)])
def test_functions_of_other_opsets(opset, inner, options):
    model, batches = with_function(opset, inner), onnx_models.rows(32)
    made = qatcore.onnx.quantize_model(model, batches, **options)
    assert not made.functions
    x = batches[0]["x"]
    # ONNX Runtime takes functions of newer opsets than the model's for wrong: the oracle is the formula.
    exact = np.where(x > 0, x, 0.25 * np.expm1(x)) @ onnx_models.normal(32, 8)
    assert sqnr(exact, run(made, batches[0])[0]) > 10


@pytest.mark.parametrize("outer", [17, 13, 11])
@pytest.mark.parametrize("place", ["nested", "in a branch", "twice", "passed on"])
def test_functions_of_other_opsets_in_other_places(place, outer):
    """Softmax of opset 11 flattens what is behind its axis, so its conversion needs shapes, also in other graphs."""
    body = [helper.make_node("Softmax", ["i"], ["o"], axis=1)]
    made = [helper.make_function("of.tests", "Soft", ["i"], ["o"], body, [helper.make_opsetid("", 11)])]
    soft = {"domain": "of.tests"}
    ours = [helper.make_opsetid("", outer), helper.make_opsetid("of.tests", 1)]
    if place == "nested":
        nodes = [helper.make_node("Outer", ["x"], ["a"], domain="of.tests")]
        inside = [helper.make_node("Soft", ["i"], ["s"], domain="of.tests"), helper.make_node("Abs", ["s"], ["o"])]
        made.append(helper.make_function("of.tests", "Outer", ["i"], ["o"], inside, ours))
    elif place == "in a branch":
        branches = [
            helper.make_graph([helper.make_node("Soft", ["x"], [name], **soft)], name, [], [value(name, ["N", 4, 8])])
            for name in ("yes", "no")
        ]
        nodes = [helper.make_node("If", ["condition"], ["a"], then_branch=branches[0], else_branch=branches[1])]
    elif place == "twice":
        nodes = [helper.make_node("Soft", ["x"], ["p"], **soft), helper.make_node("Soft", ["p"], ["a"], **soft)]
    else:
        made.append(helper.make_function("of.tests", "Same", ["i"], ["i"], [], [helper.make_opsetid("", 11)]))
        nodes = [helper.make_node("Same", ["x"], ["p"], **soft), helper.make_node("Soft", ["p"], ["a"], **soft)]
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["a", "w"], ["y"], "product")],
        "tested",
        [value("x", ["N", 4, 8]), value("condition", [], TensorProto.BOOL)],
        [value("y", ["N", 4, 5])],
        [tensor("w", onnx_models.normal(8, 5))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("of.tests", 1)]
    model = helper.make_model(graph, functions=made, opset_imports=opsets, ir_version=8)
    ready = prepared(model, 19)
    assert not ready.functions
    assert len({name for node in ready.graph.node for name in node.output}) == sum(
        len(node.output) for node in ready.graph.node
    )
    x = onnx_models.normal(3, 4, 8)
    exact = x
    for _ in range(2 if place == "twice" else 1):
        powers = np.exp(exact.reshape(3, -1).astype(np.float64))
        exact = (powers / powers.sum(axis=1, keepdims=True)).reshape(x.shape)
    [found] = run(ready, {"x": x, "condition": np.array(True)})
    np.testing.assert_allclose(found, exact @ onnx_models.normal(8, 5), rtol=1e-4, atol=1e-6)


def test_a_function_that_cannot_be_brought_along_is_told():
    model = with_function(17, 9)
    model.functions[0].node[0].op_type = "Upsample"
    with pytest.raises(InvalidArgumentError, match="its local functions, of opset 9, cannot be brought to opset 17: "):
        prepared(model)


def sparse(dense, name, *, linear):
    places = np.flatnonzero(dense) if linear else np.argwhere(dense)
    return helper.make_sparse_tensor(
        tensor(name, dense[dense != 0]), tensor(f"{name}_places", places.astype(np.int64)), dense.shape
    )


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("opset", [11, 17])
def test_sparse_weights_are_weights(opset, linear):
    w, v = (np.where(np.abs(a) > 1, a, 0).astype("f") for a in (onnx_models.normal(48, 24), onnx_models.normal(24, 5)))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], "first"),
            helper.make_node("Constant", [], ["v"], sparse_value=sparse(v, "", linear=linear)),
            helper.make_node("MatMul", ["p", "v"], ["y"], "second"),
        ],
        "tested",
        [value("x", ["N", 48])],
        [value("y", ["N", 5])],
        sparse_initializer=[sparse(w, "w", linear=linear)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    batches = onnx_models.rows()
    made = qatcore.onnx.quantize_model(model, batches)
    assert not made.graph.sparse_initializer
    exact = batches[0]["x"] @ w @ v
    assert sqnr(exact, run(made, batches[0])[0]) > 30
    np.testing.assert_allclose(run(prepared(model), batches[0])[0], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "places", [np.array([0, 48 * 24]), np.array([[0, 0], [0, 24]]), np.array([0]), np.array([-1, 2])]
)
def test_sparse_weights_out_of_place_are_told(places):
    model = onnx_models.product()
    del model.graph.initializer[:]
    values = tensor("w", np.ones(2, np.float32))
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, tensor("places", np.array(places)), [48, 24])
    )
    with pytest.raises(InvalidArgumentError, match="model: it is not valid: Sparse tensor"):
        qatcore.onnx.quantize_model(model, activations="none")


def with_node(domain):
    """A product and an operator that nobody has."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
            helper.make_node("Nonsense", ["p"], ["y"], "strange", domain=domain),
        ],
        "tested",
        [value("x", ["N", 48])],
        [value("y", ["N", 24])],
        [tensor("w", onnx_models.normal(48, 24))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_operators_of_other_makers_are_told():
    with pytest.warns(ModelWarning, match="operators of org.example, which ONNX Runtime lacks, so it was not loaded"):
        made = qatcore.onnx.quantize_model(with_node("org.example"), activations="none")
    assert [node.op_type for node in made.graph.node] == ["DequantizeLinear", "MatMul", "Nonsense"]


def test_what_onnx_runtime_cannot_load_is_not_written(tmp_path):
    path = tmp_path / "q.onnx"
    with pytest.raises(InvalidArgumentError, match=r"quantised model: ONNX Runtime \S+ cannot load it: .*Nonsense"):
        qatcore.onnx.quantize_model(with_node("com.microsoft"), activations="none", output=path)
    assert not path.exists()


def test_operators_of_others_with_names_of_onnx_are_left_alone():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
        helper.make_node("Add", ["p", "b"], ["a"], domain="of.nobody"),
        helper.make_node("Relu", ["a"], ["r"], domain="of.nobody"),
        helper.make_node("MatMul", ["r", "w"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "strange",
        [onnx_models.value("x", ["N", 8])],
        [onnx_models.value("y", ["N", 8])],
        [onnx_models.tensor("w", onnx_models.normal(8, 8)), onnx_models.tensor("b", onnx_models.normal(8))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("of.nobody", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.warns(ModelWarning, match="operators of of.nobody"):
        made = qatcore.onnx.quantize_model(model, activations="none")
    assert [node.op_type for node in made.graph.node if node.domain == "of.nobody"] == ["Add", "Relu"]
