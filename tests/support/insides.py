"""Internal functions on protocol buffers, as tests make and read them, and an index of a protocol buffer's graph."""

import json

from onnx import AttributeProto, ModelProto, numpy_helper

from qatcore._onnx import correction, data, inspection, judging, kernels, plan, prepare, session, skeleton, speed
from qatcore._onnx import model as files
from qatcore._onnx.description import METADATA
from qatcore._onnx.model import read_model

as_proto = skeleton.proto_of


class Graph:
    """The nodes that make and read each tensor of a ModelProto, its inputs and outputs, and its constants."""

    def __init__(self, model):
        graph = model.graph
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.readers = {}
        for node in graph.node:
            for name in filter(None, node.input):
                self.readers.setdefault(name, []).append(node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        given = [value.name for value in graph.input]
        self.constants = {name: tensor for name, tensor in self.initializers.items() if name not in given}
        self.inputs = [name for name in given if name not in self.initializers]
        self.outputs = [value.name for value in graph.output]
        self.captured = {name for node in graph.node for inner in subgraphs(node) for name in names_within(inner)}

    def value_of(self, name):
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


def subgraphs(node):
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def names_within(graph):
    names = {value.name for value in graph.output}
    for node in graph.node:
        names |= {*node.input, *node.output}.union(*(names_within(inner) for inner in subgraphs(node)))
    return names


def description(model):
    """Return what a model's metadata say of how qatcore made it."""
    return next((json.loads(entry.value) for entry in model.metadata_props if entry.key == METADATA), {})


def scales_of(model):
    """Return the scale and the zero point of each tensor that is quantised, by its name."""
    index = Graph(model)
    return {
        node.input[0]: (float(index.value_of(node.input[1])), index.value_of(node.input[2]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def opset_of(model):
    return next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 1)


def read(path):
    return as_proto(read_model(path))


def prepared(model, *arguments, **options):
    """Prepare a model, which may not be valid."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return as_proto(prepare.prepared(files._of_proto(copy, {}), *arguments, **options))


def initializers_among_inputs(model):
    return prepare.initializers_among_inputs(read_model(model))


def planned(model, *arguments, **options):
    return plan.plan(read_model(model), *arguments, **options)


def spec_of(model):
    return data.InputSpec(read_model(model))


def with_biases(model, biases):
    return as_proto(correction.with_biases(read_model(model), biases))


def model_rows(model):
    return inspection.model_rows(read_model(model))


def why_slower(model, before, after):
    return speed.why_slower(read_model(model), before, after)


def kernels_of(model):
    return kernels.kernels_of(read_model(model))


def session_of(model):
    return session.session_of(read_model(model))


class Judge(judging.Judge):
    def __init__(self, exact, inside, batches):
        super().__init__(read_model(exact), inside, batches)

    def errors(self, model):
        return super().errors(read_model(model))
