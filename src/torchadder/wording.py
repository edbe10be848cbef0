"""Words of messages and reports that several parts need."""


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "epoch"), counted(5000, "image")
    ('1 epoch', '5,000 images')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
