"""Random damage to files of labels."""

import json

TOKENS = [
    *("-1", "0", "1e400", "nan", "99999999999999999999", "1.5", "", "\0", "é", "\ud7ff", "..", "/"),
    *("<a>", "</object>", "<object>", "&x;", "]]>", "<!--", '"', "{", "[", "null", "true", "[[]]"),
    *("<!DOCTYPE a>", "../../a.png", "C:\\a.png", "<name/>", "<![CDATA[", "1,2;3", "=", ">", "\n"),
]


def damaged(data, rng):
    """The bytes with one to three random changes."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        end = min(start + rng.choice((0, 1, 1, 2, 5, 20, 100)), len(data))
        kind = rng.randrange(6)
        if kind == 0:  # a byte or a few
            data = data[:start] + rng.randbytes(end - start) + data[end:]
        elif kind == 1:
            data = data[:start] + data[end:]
        elif kind == 2:  # twice
            data = data[:end] + data[start:end] + data[end:]
        elif kind == 3:
            data = data[:start]
        elif kind == 4:
            data = data[:start] + rng.choice(TOKENS).encode() + data[end:]
        else:  # a number or a word
            words = data.split(b'"') if rng.random() < 0.5 else data.split(b">")
            place = rng.randrange(len(words))
            words[place] = rng.choice(TOKENS).encode()
            data = (b'"' if data.count(b'"') + 1 == len(words) else b">").join(words)
    return data


def reshaped(data, rng):
    """A JSON file with one value replaced, removed or repeated."""
    content = json.loads(data)
    places = []

    def note(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                note(value[key])

    note(content)
    container, key = rng.choice(places)
    values = (None, -1, 0, 1e308, 10**30, "", "a", [], {}, [[]], True, [1], {"a": [1]}, 0.5, "0")
    if rng.random() < 0.2 and isinstance(container, list):
        container.append(container[key])
    elif rng.random() < 0.2:
        del container[key]
    else:
        container[key] = rng.choice(values)
    return json.dumps(content).encode()
