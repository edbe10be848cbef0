"""What cannot be exported."""


class ExportError(ValueError):
    """A net that cannot be exported; the message is one line with the layer and the reason."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the error's name."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
