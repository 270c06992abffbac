"""Conversion of gNMI paths and values to and from the elements of the lab's trees."""

import json
from collections.abc import Sequence
from typing import Any

from gnmi_pb import gnmi_pb2

from .tree import DATABASE, MODULES, OPENCONFIG, SONIC, Element, Leaf

JSON, PROTO, JSON_IETF = gnmi_pb2.JSON, gnmi_pb2.PROTO, gnmi_pb2.JSON_IETF
ENCODINGS = (PROTO, JSON, JSON_IETF)
_LOCALHOST = Element("localhost")


class RequestPath:
    """A path of a request: its meaning, and the form that answers must have.

    SONiC's database is named by the target, by the origin, or by the first element, with or without a namespace after it; an answer has the
    form of its request.
    """

    def __init__(self, prefix: gnmi_pb2.Path, path: gnmi_pb2.Path) -> None:
        self.target, self.prefix_origin = prefix.target, prefix.origin
        self.path_origin = path.origin
        elements = [*_elements(prefix), *_elements(path)]
        origin = prefix.origin or path.origin
        if not origin and elements and elements[0].name.startswith("openconfig-"):
            module, _, name = elements[0].name.partition(":")
            elements[0] = Element(name, elements[0].keys)
            self.module = module
        else:
            self.module = ""
        named = bool(elements) and elements[0].name == DATABASE
        # Some clients write the module of the first element as the origin.
        is_open = not origin or origin.startswith(OPENCONFIG)
        self.origin = SONIC if origin == SONIC or prefix.target == DATABASE or named else OPENCONFIG if is_open else origin
        self.by_target = self.origin == SONIC and not named and prefix.target == DATABASE
        if self.by_target:
            elements.insert(0, Element(DATABASE))
        self.localhost = self.origin == SONIC and len(elements) > 1 and elements[1] == _LOCALHOST
        if self.localhost:
            del elements[1]
        self.elements = tuple(elements)

    def prefix(self, elements: Sequence[Element] = ()) -> gnmi_pb2.Path:
        """Return the prefix of an answer: target and origin of the request, and the elements if given."""
        path = self.path(elements) if elements else gnmi_pb2.Path()
        path.target, path.origin = self.target, self.prefix_origin or (self.path_origin if elements else "")
        return path

    def path(self, elements: Sequence[Element]) -> gnmi_pb2.Path:
        """Return absolute elements in the form of the request."""
        form = list(elements)
        if self.localhost:
            form.insert(1, _LOCALHOST)
        if self.by_target:
            del form[0]
        if self.module:
            form[0] = Element(f"{self.module}:{form[0].name}", form[0].keys)
        path = relative(form)
        path.origin = self.path_origin
        return path


def _elements(path: gnmi_pb2.Path) -> list[Element]:
    if path.elem:
        return [Element(element.name, tuple(sorted(element.key.items()))) for element in path.elem]
    return [Element(name) for name in path.element]


def relative(elements: Sequence[Element]) -> gnmi_pb2.Path:
    """Return a path of these elements alone."""
    return gnmi_pb2.Path(elem=[gnmi_pb2.PathElem(name=element.name, key=dict(element.keys)) for element in elements])


def typed(leaf: Leaf, value: Any, encoding: int) -> gnmi_pb2.TypedValue:
    """Return the value of a leaf in an encoding; values of a database are strings in every encoding."""
    if leaf.kind == "text":
        return gnmi_pb2.TypedValue(string_val=str(value))
    if encoding == JSON:
        return gnmi_pb2.TypedValue(json_val=json.dumps(value).encode())
    if encoding == JSON_IETF:
        return gnmi_pb2.TypedValue(json_ietf_val=json.dumps(_ietf(leaf, value)).encode())
    if leaf.kind == "uint":
        return gnmi_pb2.TypedValue(uint_val=value)
    return gnmi_pb2.TypedValue(string_val=value)


def document(found: Sequence[tuple[Leaf, Any]], skip: int, encoding: int) -> gnmi_pb2.TypedValue:
    """Return a JSON tree of leaves below their first ``skip`` elements."""
    tree: dict[Any, Any] = {}
    for leaf, value in found:
        node = tree
        *inner, last = leaf.elements[skip:]
        module = ""
        for element in leaf.elements[:skip]:
            module = MODULES.get(element.name, module)
        for number, element in enumerate(inner):
            changed = MODULES.get(element.name, module) != module
            module = MODULES.get(element.name, module)
            qualified = encoding == JSON_IETF and module and (changed or number == 0)
            node = node.setdefault((f"{module}:{element.name}" if qualified else element.name, element.keys), {})
        name = f"{module}:{last.name}" if encoding == JSON_IETF and module and not inner else last.name
        if leaf.kind == "text":
            node[name, ()] = str(value)
        else:
            node[name, ()] = _ietf(leaf, value) if encoding == JSON_IETF else value
    text = json.dumps(_plain(tree)).encode()
    return gnmi_pb2.TypedValue(json_ietf_val=text) if encoding == JSON_IETF else gnmi_pb2.TypedValue(json_val=text)


def _plain(node: dict[Any, Any]) -> dict[str, Any]:
    """Return a tree of JSON: elements with keys become lists whose entries carry the keys."""
    plain: dict[str, Any] = {}
    for (name, keys), value in node.items():
        inner = _plain(value) if isinstance(value, dict) else value
        if keys:
            plain.setdefault(name, []).append({**dict(keys), **inner})
        else:
            plain[name] = inner
    return plain


def _ietf(leaf: Leaf, value: Any) -> Any:
    """Return a value as in RFC 7951: 64-bit numbers are strings, an identity has its module."""
    if leaf.kind == "uint":
        return value if leaf.elements[-1].name == "ifindex" else str(value)
    return f"openconfig-if-ethernet:{value}" if leaf.kind == "identity" else value
