"""Find the attention of any network by what it computes. Needs torch only.

A *gate* is a product of a feature map x and one value g per image and channel that depends on the input,
y = x · g, or y = x + x · g = x · (1 + g). It is found by watching the multiplications of one run, so neither
the library nor the class matters.

A gate is either a module that receives x and returns y, or a multiplication in the code of a larger module.
Such code is captured as a ``torch.fx.GraphModule``, in which the product becomes a module of its own. In both
cases a :class:`Switch` takes its place, which computes either the attention or constants.
"""

import contextlib
import copy
import dataclasses
import inspect
import itertools
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from ..core.class_surgery import replace_module
from ..core.differences import tensors
from ..errors import one_line
from .trace import Call, Trace

_PRODUCTS = {'mul', 'mul_', 'multiply', 'multiply_', '__mul__', '__rmul__', '__imul__'}
_SUMS = {'add', 'add_', '__add__', '__radd__', '__iadd__'}


#: Types of arguments that control flow may depend on.
_PLAIN = (bool, int, float, str, types.NoneType)


class Switch(nn.Module):
    """Attention that can be replaced by constants v: it computes x · g or x · (1 + g), or x · v.

    Args:
        dim (int): Dimension of the channels of x, counted from the end.
        attention (nn.Module, optional): The module that maps x to the product; None if :meth:`forward`
            receives the product.

    Attributes:
        v (Tensor, optional): Constants of shape (C,); None while the attention is in use.
        observe (callable, optional): Called with x and the values of the attention, of shape (N, C), whenever
            the attention is used.
    """

    def __init__(self, dim: int, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.attention = attention
        self.v: torch.Tensor | None = None
        self.observe: Callable[[torch.Tensor, torch.Tensor], None] | None = None

    def forward(self, *args, **kwargs) -> torch.Tensor:
        """Map x to its product with the attention or the constants.

        Args:
            *args: The arguments of :attr:`attention`, of which only x is a tensor. Without such a module: x,
                x · g or x · (1 + g), and g; only x if there are constants.
            **kwargs: Keyword arguments of :attr:`attention`.
        """
        x, *product_and_g = (tensor for _, tensor in tensors('', (args, kwargs)))
        if self.v is not None:
            return x * self.v.to(x.dtype).view(-1, *[1] * (-1 - self.dim))
        if self.attention is None:
            product, g = product_and_g
        elif self.observe is None:
            return self.attention(*args, **kwargs)
        else:
            before = x.clone()  # the attention may write into it
            with Trace(self.attention, self._keep_gate):
                product = self.attention(*args, **kwargs)
            x, g = before, self.last
        if self.observe is not None:
            self.observe(x, self._values(x, product, g))
        return product

    def _keep_gate(self, call: Call, output: object) -> None:
        for _, g, dim in _operands(call, output):
            if dim == self.dim:
                self.last = g

    def _values(self, x: torch.Tensor, product: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Return g or 1 + g, of shape (N, C)."""
        g = g.expand_as(x).movedim(self.dim, 1).flatten(2)[:, :, 0]
        scaled = g.reshape(*g.shape, *[1] * (x.dim() - 2)).movedim(1, self.dim) * x
        return g if (product - scaled).abs().sum() <= (product - scaled - x).abs().sum() else 1 + g


def _operands(call: Call, output: object) -> Iterator[tuple[int, torch.Tensor, int | None]]:
    """Yield the operands of a multiplication as x and g: value of x, tensor g, and dimension of the channels.

    The dimension is None if g is smaller than x but does not have one value per image and channel.
    """
    if call.module is not None or call.name not in _PRODUCTS or len(call.inputs) != 2:
        return
    pairs = list(zip(call.inputs, (a for a in call.args if isinstance(a, torch.Tensor)), strict=False))
    for (value, x), (_, g) in (pairs, pairs[::-1]) if len(pairs) == 2 else ():
        if x.shape == output.shape and x.dim() > 2 and x is not g:
            dim = _channel_dim(g, x)
            # Anything else that broadcasts, other than one factor per image or a parameter.
            if dim is not None or (
                len(x) < g.numel() < x.numel() and g.dim() == x.dim() and len(g) == len(x)
            ):
                yield value, g, dim


def _channel_dim(g: torch.Tensor, x: torch.Tensor) -> int | None:
    """Return the dimension of the channels, from the end, if g has one value per image and channel."""
    first = x.dim() - g.dim()  # dimension of x that the first one of g belongs to
    wide = [first + dim for dim in range(g.dim()) if g.shape[dim] > 1 and g.stride(dim)]  # 0 if expanded
    wide = [dim for dim in wide if dim > 0]
    is_channel = (
        len(wide) == 1 and wide[0] in (1, x.dim() - 1) and g.shape[wide[0] - first] == x.shape[wide[0]]
    )
    if not is_channel or x.numel() == x.shape[0] * x.shape[wide[0]]:  # a product of features has no positions
        return None
    return wide[0] - x.dim()


@dataclasses.dataclass(eq=False)
class Gate:
    """One gate of a network.

    Attributes:
        name (str): Name of the module that is the gate; or of the module whose code multiplies, and in
            brackets of the node in its graph.
        kind (str): Class of that module.
        switch (Switch): Its switch.
        owner (str): Name of the module that the switch replaces, or that is captured as a graph.
        nodes (tuple[int, int, int], optional): Numbers of the nodes of x, of the product and of g in that
            graph; None if the gate is a module.
        arguments (dict[str, Any]): Arguments of the captured module that its code may depend on.
    """

    name: str
    kind: str
    switch: Switch
    owner: str
    nodes: tuple[int, int, int] | None = None
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Product:
    """A product of one run that may be a gate.

    Attributes:
        x (int): Value of the map.
        product (int): Value of x · g.
        y (int): Value of the result, x · g or x + x · g.
        g (int): Value of g.
        dim (int, optional): Dimension of the channels from the end; None if g has other dimensions too.
        call (Call): The call that returns y.
    """

    x: int
    product: int
    y: int
    g: int
    dim: int | None
    call: Call


class _Finder:
    """Trace of one run with all products in it that may be gates."""

    def __init__(self, model: nn.Module) -> None:
        self.trace = Trace(model, self._observe)
        self.inputs: list[int] | None = None
        self.products: list[_Product] = []

    def _observe(self, call: Call, output: torch.Tensor) -> None:
        for x, g, dim in itertools.islice(_operands(call, output), 1):
            product = call.outputs[0]
            self.products.append(_Product(x, product, product, self.trace.value(g), dim, call))

    def gates(self) -> list[_Product]:
        """Return the products whose g depends on the input, the sums x + x · g among them."""
        readers, depends = self.trace.readers(), self.trace.descendants(self.inputs)
        for product in self.products:
            following = readers[product.y]
            if len(following) == 1 and following[0].name in _SUMS:
                sum_ = following[0]
                if set(sum_.inputs) == {product.x, product.y} and len(sum_.outputs) == 1 and not sum_.kwargs:
                    product.y, product.call = sum_.outputs[0], sum_
        found = [product for product in self.products if product.g in depends]
        # Attention to channels and then to positions, or the reverse, is not taken apart.
        before, after = ({getattr(p, end) for p in found if p.dim is None} for end in ('x', 'y'))
        for product in found:
            if product.y in before or product.x in after:
                product.dim = None
        return found

    def gates_in_code(self) -> list[_Product]:
        """Return the gates that no module computes, which is traced from inside its code."""
        return [p for p in self.gates() if p.dim is not None and _owner(p) == (None, False)]


def find_gates(
    model: nn.Module, run: Callable[[], object], capture: bool = True
) -> tuple[list[Gate], dict[str, str]]:
    """Find the gates of a network, and say why other attention stays.

    Args:
        model (nn.Module): A network in eval mode. It is the same afterwards.
        run (callable): Runs it once.
        capture (bool): Also find gates in the code of larger modules. Default: True.

    Returns:
        tuple[list[Gate], dict[str, str]]: The gates, in the order in which they run; and attention that has
        more than one value per image and channel, or that cannot be taken out: name -> reason.
    """
    finder = _Finder(model)
    with torch.no_grad(), finder.trace:
        run()
    gates: dict[str, Gate] = {}
    reasons: dict[str, str] = {}
    captured: dict[str, list[Gate]] = {}
    found = [(product, *_owner(product)) for product in finder.gates()]
    found = [(product, owner, is_gate) for product, owner, is_gate in found if owner is not None]
    for product, owner, _ in found:
        if product.dim is None:
            reasons[owner.name] = f'{type(owner.module).__name__} also weighs positions or branches'
    for product, owner, is_gate in found:
        kind = type(owner.module).__name__
        if product.dim is None:
            continue
        if is_gate:
            gates.setdefault(
                owner.name, Gate(owner.name, kind, Switch(product.dim, owner.module), owner.name)
            )
        elif not capture:
            reasons[owner.name] = f'its product is in the code of {kind}, and not in a module of its own'
        elif owner.name not in captured:
            try:
                captured[owner.name] = _capture(model, owner, run)
            except Exception as error:  # code can fail to be captured in many ways
                captured[owner.name] = []
                reasons[owner.name] = one_line(f"the code of {kind} can't be captured as a graph", error)
            gates.update({gate.name: gate for gate in captured[owner.name]})
    return list(gates.values()), reasons


def _owner(product: _Product) -> tuple[Call | None, bool]:
    """Return the call of the module that is the gate, or else whose code multiplies; and whether it is it."""
    outermost = None
    for call in product.call.owners():
        if call.outputs == [product.y] and set(call.inputs) == {product.x}:
            return call, True
        # Not a module that only multiplies or adds two inputs, as in networks converted from ONNX.
        if not (
            call.outputs == [product.y] and {product.x, product.g, product.product}.issuperset(call.inputs)
        ):
            outermost = outermost or call
    return outermost, False


class _Tracer(fx.Tracer):
    """Tracer that captures the code of one module, with all its children as they are."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


class _Locator(fx.Interpreter):
    """Interpreter that notes which node of a graph has which value of a trace."""

    def __init__(self, module: fx.GraphModule, trace: Trace) -> None:
        super().__init__(module)
        self.trace = trace
        self.node_of: dict[int, int] = {}
        self.numbers = {node: number for number, node in enumerate(module.graph.nodes)}

    def run_node(self, node: fx.Node) -> object:
        result = super().run_node(node)
        if isinstance(result, torch.Tensor):
            with torch._C.DisableTorchFunction():
                self.node_of.setdefault(self.trace.value(result), self.numbers[node])
        return result


def _plain_arguments(owner: Call) -> dict[str, Any]:
    """Return the arguments of a call that control flow may depend on, and the defaults of those not given."""
    signature = inspect.signature(owner.module.forward)
    given = signature.bind(*owner.args, **owner.kwargs).arguments
    plain = {name: value for name, value in given.items() if isinstance(value, _PLAIN)}
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    rest = defaults.keys() - given.keys()
    return plain | {name: defaults[name] for name in rest if defaults[name] is not inspect.Parameter.empty}


def _graph(module: nn.Module, arguments: dict[str, Any]) -> fx.GraphModule:
    """Return a module whose code is captured as a graph.

    Args:
        module (nn.Module): The module.
        arguments (dict[str, Any]): Arguments whose values the code may depend on.
    """
    graph = _Tracer().trace(module, concrete_args=arguments or None)
    # torch.fx numbers the arguments whose values it knows, so callers could not pass them by name.
    placeholders = (n for n in graph.nodes if n.op == 'placeholder' and not n.target.startswith('*'))
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(module.forward).parameters.values()
    names = (parameter.name for parameter in parameters if parameter.kind not in variable)
    for node, name in zip(placeholders, names, strict=True):
        node.target = name
    captured = fx.GraphModule(module, graph, type(module).__name__)
    for name, child in module.named_children():  # those that its code does not call, such as auxiliary heads
        if name not in captured._modules:
            captured.add_module(name, child)
    return captured


def _capture(model: nn.Module, owner: Call, run: Callable[[], object]) -> list[Gate]:
    """Return the gates in the code of a module."""
    module = owner.module
    arguments = _plain_arguments(owner)
    graph = _graph(module, arguments)
    names = [node.name for node in graph.graph.nodes]
    finder = _Finder(graph)
    locator = _Locator(graph, finder.trace)

    def locate(_: nn.Module, args: tuple, kwargs: dict) -> None:
        if finder.trace.calls:
            return
        bound = inspect.signature(module.forward).bind(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        bound.apply_defaults()
        finder.inputs = [finder.trace.value(tensor) for _, tensor in tensors('', bound.args)]
        with finder.trace:
            locator.run(*bound.args)

    handle = module.register_forward_pre_hook(locate, with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    found = []
    for product in finder.gates_in_code():
        nodes = tuple(locator.node_of[value] for value in (product.x, product.y, product.g))
        name = f'{owner.name}[{names[nodes[1]]}]'
        found.append(Gate(name, type(module).__name__, Switch(product.dim), owner.name, nodes, arguments))
    return found


@contextlib.contextmanager
def switched(box: nn.ModuleList, gates: list[Gate], constant: bool = False) -> Iterator[None]:
    """While active, the gates of a network are their switches.

    Args:
        box (nn.ModuleList): A list with the network, which may be replaced as a whole.
        gates (list[Gate]): Gates of the network, from :func:`find_gates`.
        constant (bool): Leave out the attention in captured code, so that all switches must have constants.
            Default: False.
    """
    modules = {gate.owner: gate.switch for gate in gates if gate.nodes is None}
    for owner, found in _by_graph(gates).items():
        modules[owner] = _with_switches(box[0].get_submodule(owner), found, constant)
    with replaced(box, modules):
        yield


@contextlib.contextmanager
def replaced(box: nn.ModuleList, modules: dict[str, nn.Module]) -> Iterator[Callable[[], None]]:
    """While active, modules of a network are replaced; yields a function that keeps it so.

    Args:
        box (nn.ModuleList): A list with the network.
        modules (dict[str, nn.Module]): Name of a module in the network, empty for itself -> its replacement.
    """
    network, originals, kept = box[0], [], []
    try:
        for name in sorted(modules, key=lambda name: (name != '', name.count('.'))):  # outer ones first
            module = box.get_submodule(f'0.{name}'.rstrip('.'))
            places = [p for p, m in box.named_modules(remove_duplicate=False) if m is module]
            for place in places:
                originals.append((place, module))
                replace_module(box, place, modules[name])
        yield lambda: kept.append(True)
    finally:
        if kept and box[0] is not network:
            _adopt(network, box[0])
            box[0] = network
        for place, module in reversed(originals if not kept else []):
            replace_module(box, place, module)


def _adopt(network: nn.Module, captured: fx.GraphModule) -> None:
    """Let a network compute what its captured code does, in place."""
    network._modules.clear()
    network._modules.update(captured._modules)
    if isinstance(network, fx.GraphModule):
        network.graph = captured.graph
    else:
        network.forward = types.MethodType(type(captured).forward, network)


def without_gates(model: nn.Module, gates: list[Gate]) -> dict[str, nn.Module]:
    """Return what remains of the modules of gates without these gates: name of a module -> its replacement.

    Nothing of the attention is computed in them.

    Args:
        model (nn.Module): The network, which does not change.
        gates (list[Gate]): Gates of it.
    """
    modules: dict[str, nn.Module] = {gate.owner: nn.Identity() for gate in gates if gate.nodes is None}
    for owner, found in _by_graph(gates).items():
        modules[owner] = _without_products(model.get_submodule(owner), found)
    return modules


def _by_graph(gates: list[Gate]) -> dict[str, list[Gate]]:
    found = defaultdict(list)
    for gate in gates:
        if gate.nodes is not None:
            found[gate.owner].append(gate)
    return found


def _with_switches(module: nn.Module, gates: list[Gate], constant: bool) -> fx.GraphModule:
    """Return the captured code of a module with the switches of its gates."""
    captured = _graph(module, gates[0].arguments)
    nodes = list(captured.graph.nodes)
    for number, gate in enumerate(gates):
        x, product, g = (nodes[index] for index in gate.nodes)
        captured.add_submodule(f'switch{number}', gate.switch)
        with captured.graph.inserting_after(product):
            switch = captured.graph.call_module(f'switch{number}', (x,) if constant else (x, product, g))
        product.replace_all_uses_with(switch, delete_user_cb=lambda user, new=switch: user is not new)
        _erase_unused(captured.graph, product)
    captured.recompile()
    return captured


def _without_products(module: nn.Module, gates: list[Gate]) -> fx.GraphModule:
    """Return the captured code of a module without its gates and all that only they need."""
    captured = _graph(module, gates[0].arguments)
    nodes = list(captured.graph.nodes)
    erased = []
    for gate in gates:
        x, product, _ = (nodes[index] for index in gate.nodes)
        product.replace_all_uses_with(x)
        erased += _erase_unused(captured.graph, product)
    used = {node.target for node in captured.graph.nodes if node.op == 'call_module'}
    for node in erased:
        if node.op == 'call_module' and node.target not in used:
            captured.delete_submodule(node.target)
    captured.recompile()
    return captured


def _erase_unused(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """Erase a node that nothing uses, and all that only it uses. Others may change tensors in place."""
    unused, erased = [node], []
    while unused:
        node = unused.pop()
        if not node.users and node.op not in ('placeholder', 'output') and node not in erased:
            unused += node.all_input_nodes
            graph.erase_node(node)
            erased.append(node)
    return erased
