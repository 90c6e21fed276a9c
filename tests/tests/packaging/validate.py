"""Says what a schema has against a document, and which keys of it could be misspelt without the schema's knowing."""

import copy
import json
import sys

from jsonschema import validators


def keys(node, path=()):
    """The places of all keys."""
    for key, below in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(node, dict):
            yield (*path, key)
        yield from keys(below, (*path, key))


def misspelt(document, place):
    """The document with one key that is written wrongly."""
    document = copy.deepcopy(document)
    node = document
    for key in place[:-1]:
        node = node[key]
    node[place[-1] + "x"] = node.pop(place[-1])
    return document


with open(sys.argv[1]) as file:
    schema = json.load(file)
# Which of its definitions.
if len(sys.argv) > 2:
    schema["$ref"] = "#/$defs/" + sys.argv[2]
document = json.load(sys.stdin)
validator = validators.validator_for(schema)
validator.check_schema(schema)
validator = validator(schema)
complaints = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
free = [place[-1] for place in keys(document) if validator.is_valid(misspelt(document, place))]
json.dump({"complaints": complaints, "free": free}, sys.stdout)
