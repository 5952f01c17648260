"""Says of each text of a JSON list whether PyYAML makes a mapping, or nothing, of it."""

import json
import sys

import yaml


def problem(text):
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise
    except Exception as error:  # not only YAMLError: a value can fail to be made in any way
        return f"{type(error).__name__}: {error}"
    return None if value is None or isinstance(value, dict) else "not a mapping"


json.dump([problem(text) for text in json.load(sys.stdin)], sys.stdout)
