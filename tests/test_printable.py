"""What a model writes cannot steer the terminal that shows it."""

from common.printable import printable


def test_control_characters_are_shown_as_such_and_lines_kept():
    assert printable("a\x1b]0;title\x07\x1b[2Jb\r\x9bc\n\td\x7f") == "a�]0;title��[2Jb��c\n\td�"
    assert printable("naïve 日本 😀") == "naïve 日本 😀"
