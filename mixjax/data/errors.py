"""The one error that says a data set cannot be obtained."""


class DataError(ValueError):
    """Data that is absent, unreachable, damaged or foreign; the message says what to do."""
