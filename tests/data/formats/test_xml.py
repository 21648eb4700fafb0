"""XML files: encodings, lines, and those made to exhaust or mislead whoever reads them."""

import pytest

from visionkit.data.formats import xml
from visionkit.data.formats.xml import XmlFault, fits, number, read_children, typed

TEXT = "<annotation>\n  <name>\n  Zürich\n  </name>\n  <a k='v'><b>1</b><b>2</b></a>\n</annotation>"


def read(tmp_path, data, root="annotation"):
    (tmp_path / "a.xml").write_bytes(data.encode() if isinstance(data, str) else data)
    return [*read_children(tmp_path / "a.xml", root)]


def fault(tmp_path, data, root="annotation"):
    with pytest.raises(XmlFault) as caught:
        read(tmp_path, data, root)
    return caught.value


def test_elements_have_their_text_children_and_line(tmp_path):
    name, other = read(tmp_path, TEXT)
    assert (name.tag, name.text, name.line) == ("name", "Zürich", 2)
    assert (other.attributes, other.line) == ({"k": "v"}, 5)
    assert [one.text for one in other.children] == ["1", "2"]
    assert other.text_of("b") == "1" and other.text_of("c") == "" and other.child("c") is None


@pytest.mark.parametrize(
    ("encoding", "head"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("utf-16", "<?xml version='1.0' encoding='utf-16'?>"),
        ("utf-16", ""),
        ("latin-1", "<?xml version='1.0' encoding='ISO-8859-1'?>"),
        ("cp1252", "<?xml version='1.0' encoding='windows-1252'?>"),
    ],
)
def test_encodings(tmp_path, encoding, head):
    assert read(tmp_path, (head + TEXT).encode(encoding))[0].text == "Zürich"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TEXT.encode("latin-1"), "invalid token"),
        (b"<?xml version='1.0' encoding='gb2312'?>" + TEXT.encode(), "cannot be decoded"),
        (b"<?xml version='1.0' encoding='nonsense'?>" + TEXT.encode(), "cannot be decoded"),
    ],
)
def test_an_unknown_encoding_has_a_hint(tmp_path, data, words):
    found = fault(tmp_path, data)
    assert words in found.what and found.hint == "save it as UTF-8"


BOMB = "<!DOCTYPE a [" + '<!ENTITY l0 "ha">' + "".join(
    f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9)
) + "]>"  # fmt: skip


@pytest.mark.parametrize(
    "head",
    [
        BOMB,
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">',
        '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>',
        "<!DOCTYPE annotation>",
    ],
)
def test_declarations_are_refused(tmp_path, head):
    text = f"<?xml version='1.0'?>\n{head}\n<annotation><name>&l9;&x;</name></annotation>"
    found = fault(tmp_path, text)
    assert "DTD" in found.what and found.line == 2 and found.hint == "remove the declaration"


def test_an_entity_that_is_not_defined(tmp_path):
    assert "undefined entity" in fault(tmp_path, "<annotation><a>&x;</a></annotation>").what


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "is empty"),
        ("PK\3\4....", "zip archive"),
        ("id,x\n1,2", "another format"),
        ("<annotation><a></annotation>", "mismatched tag"),
        ("<annotation><a>", "no element found"),
        ("<annotations/>", "the root element is <annotations>: must be <annotation>"),
        ("<annotation><a>\0</a></annotation>", "not well-formed"),
        ("<annotation>" + "<a>" * 60, "more than 50 elements are in each other"),
    ],
)
def test_what_is_not_such_a_file(tmp_path, data, words):
    assert words in fault(tmp_path, data).what


def test_missing_files_and_folders(tmp_path):
    for name, words in (("none.xml", "does not exist"), ("", "is a folder")):
        with pytest.raises(XmlFault, match=words):
            [*read_children(tmp_path / name, "annotation")]


def test_the_size_of_one_element_is_limited(tmp_path, monkeypatch):
    """But not that of the file."""
    monkeypatch.setattr(xml, "CHUNK", 100)
    monkeypatch.setattr(xml, "LARGEST", 1000)
    monkeypatch.setattr(xml, "MOST", 40)
    assert len(read(tmp_path, "<annotation>" + "<a>x</a>" * 500 + "</annotation>")) == 500
    for inside, words in (("<b/>" * 50, "more than 40 in it"), ("x" * 2000, "more than 0 MB")):
        assert words in fault(tmp_path, f"<annotation><a>{inside}</a></annotation>").what
    huge = f"<annotation><a k='{'x' * 3000}'/></annotation>"
    assert "more than 0 MB" in fault(tmp_path, huge).what


@pytest.mark.parametrize(
    "text", ["nan", "inf", "1_0", "0x1", "1e99", "", "12,5", "1 2", "١", "--1"]
)
def test_what_is_not_a_number(text):
    with pytest.raises(ValueError, match="point instead" if text == "12,5" else "number"):
        number(text)


def test_numbers_and_types():
    assert [number(t) for t in ("1", "-2.5", ".5", "3.", "1e2", "+4")] == [1, -2.5, 0.5, 3, 100, 4]
    assert [typed(t) for t in ("True", "false", "12", "-1.5", "007", "x", "1e3")] == [
        *(True, False, 12, -1.5, "007", "x", "1e3")
    ]


def test_texts_that_xml_can_hold():
    assert all(map(fits, ("a", "Zürich", "a b", "<&>\"'", "😀", "")))
    assert not any(map(fits, (" a", "a\n", "a\x07b", "\ud800", "￾", "a\tb")))
