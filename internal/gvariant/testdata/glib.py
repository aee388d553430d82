#!/usr/bin/python3
"""Writes glib.txt: serialized data and what GLib, the reference implementation, makes of it.

Each line is TYPE HEX JSON: a type string, the data ("-" for none), and "-" if GLib does not find it in normal form, else the
value: a string for what is text, {"data": HEX} for a number, [TYPE, child] for a variant, a list of the children for every
other container. Needs python3-gi; runs only to renew glib.txt.
"""

import json
import random

from gi.repository import GLib

rng = random.Random(20240229)

VALUES = [
    "true", "false", "byte 0x07", "int16 -2", "uint16 65535", "-5", "uint32 7", "int64 -9", "uint64 9",
    "1.5", "'text'", "''", "'h\\u00fcte'", "objectpath '/org/x'", "signature 'a{sv}'", "handle 3",
    "@ay []", "[byte 1, 2, 3]", "@as []", "['a', 'bc', '']", "@a(yu) [(1, 2), (3, 4)]",
    "@mi nothing", "@mi 3", "@ms 'x'", "@ms nothing", "@mms just nothing", "@amy [nothing, 1, 2]",
    "()", "(1, 'two', byte 3)", "(byte 1, uint64 2)", "('a', 'b', 'c')", "@(ayay) ([1], [])",
    "@a{sv} {}", "{'a': <1>, 'b': <'two'>, 'c': <(byte 3, <uint64 4>)>}", "<1>", "<<'x'>>", "{1: 'a', 2: 'b'}",
    "@a(say) [('name', [byte 1, 2])]", "@(a(say)a(sayay)) ([('f', [1])], [('d', [2], [3])])",
    "@(uuua(ayay)) (1, 2, 3, [(b'user.x', b'y')])", "@aas [[], ['x'], ['y', 'z']]",
    "@a(sv) [('k', <@ay []>), ('l', <uint64 1>)]", "@(ttsas) (1, 2, 'x', ['y'])", "[(), (), ()]",
    "'" + "x" * 300 + "'", "['" + "y" * 254 + "']", "['" + "y" * 253 + "']", "('" + "p" * 253 + "', 'q')", "('" + "p" * 252 + "', 'q')",
    "{'target': <{'name': <'c.0'>, 'osname': <'debian'>}>, 'locked': <true>}",
    "{'backing-root-device-inode': <(uint64 2049, uint64 131)>}",
]


def line(typ, data):
    variant = GLib.Variant.new_from_bytes(GLib.VariantType.new(typ), GLib.Bytes.new(data), False)
    value = json.dumps(show(variant), separators=(",", ":")) if is_normal(variant, data) else "-"
    return f"{typ} {data.hex() or '-'} {value}"


def is_normal(variant, data):
    """GLib takes a tuple in 0 bytes for normal even where no serializer would write that, so serialize it again."""
    if not variant.is_normal_form():
        return False
    again = GLib.Variant.parse(variant.get_type(), variant.print_(False), None, None)
    return (again.get_data_as_bytes().get_data() or b"") == data


def show(variant):
    typ = variant.get_type_string()
    if typ in ("s", "o", "g"):
        return variant.get_string()
    if typ == "v":
        child = variant.get_variant()
        return [child.get_type_string(), show(child)]
    if variant.is_container():
        return [show(variant.get_child_value(i)) for i in range(variant.n_children())]
    return {"data": variant.get_data_as_bytes().get_data().hex()}


def mutate(data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(4)
        if kind == 0 and data:
            data[rng.randrange(len(data))] = rng.choice([0, 1, 2, 255, rng.randrange(256)])
        elif kind == 1 and data:
            del data[rng.randrange(len(data))]
        elif kind == 2:
            data.insert(rng.randint(0, len(data)), rng.choice([0, 0, 1, 97]))
        elif data:
            data = data[: rng.randrange(len(data))]
    return bytes(data)


lines = []
for text in VALUES:
    value = GLib.Variant.parse(None, text, None, None)
    typ, data = value.get_type_string(), value.get_data_as_bytes().get_data() or b""
    lines.append(line(typ, data))
    if len(data) < 1000:
        lines += [line(typ, mutate(data)) for _ in range(40)]

with open("glib.txt", "w") as f:
    f.write("\n".join(dict.fromkeys(lines)) + "\n")
