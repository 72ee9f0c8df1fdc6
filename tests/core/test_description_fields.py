"""Every field of a description in JSON, missing or of a wrong type: refused, or taken for what it says."""

from __future__ import annotations

import copy
import json

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, State, Tensor, Unit

DELETED = object()
WRONG = [DELETED, None, True, 0, -1, 1.5, 10**30, "", "x", "../x", "é", "image", "HW"]
WRONG += [[], [1], ["a"], [[]], {}, {"a": 1}, float("inf")]


def places(value, at=()):
    """Every place in parsed JSON."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def test_a_field_that_is_missing_or_of_a_wrong_type_is_refused_or_means_what_it_says():
    frame = Input(Tensor("frame", "uint8", (1, "H", "W", 3)), Frame("image", 0))
    outputs = (
        Output(Tensor("large", "uint8", (1, "2*H", "2*W", 3)), "picture"),
        Output(Tensor("moves", "int32", (1, "H/2", "W/2")), "displacement", 3),
        Output(Tensor("trace", "float32", (1, 4, "H/2", 7)), "state"),
        Output(Tensor("heat", "float32", (1, "H", "W")), "map", unit=Unit("degrees", 40.0, -5)),
    )
    later = Input(Tensor("trace_in", "float32", (1, 4, "H/2", 7)), State("trace"))
    interface = Interface(
        family="x",
        variant="y",
        settings={"a": 1},
        graphs=(Graph("only", (frame,), outputs), Graph("next", (frame, later), outputs)),
        size=Size(2, 4, 3),
        scale=2,
        int8_layers=("a",),
        ops={"Op": {"version": 1}},
    )
    whole = interface.to_dict()
    good = json.loads(json.dumps(whole))
    told = set()
    for place in places(good):
        for wrong in WRONG:
            fields = copy.deepcopy(good)
            parent = fields
            for key in place[:-1]:
                parent = parent[key]
            if not place:
                fields = None if wrong is DELETED else wrong
            elif wrong is DELETED:
                del parent[place[-1]]
            else:
                parent[place[-1]] = wrong
            try:
                found = Interface.from_dict(fields, "x.json")
            except InvalidInputError as error:
                assert "x.json has a broken description (" in str(error) and "\n" not in str(error)
                told.add(str(error))
            else:
                assert json.loads(json.dumps(found.to_dict())) == fields
    for name in whole:
        assert f"x.json has a broken description (lacks '{name}'): export the model again" in told
