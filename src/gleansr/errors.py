"""The errors that a user can cause, each one line that says what was wrong, the value, what was expected and how to mend it."""


class GleansrError(Exception):
    """Base of all errors that gleansr raises on purpose. The command line prints its message and exits with `exit_code`."""

    exit_code = 1


class RequestError(GleansrError, ValueError):
    """The request itself cannot be met: an unknown model, a missing device, options that exclude each other."""

    exit_code = 2


class CheckpointError(RequestError):
    """A file that should hold weights is missing, truncated, hostile, of another kind, or does not fit its architecture."""


class ImageError(GleansrError, ValueError):
    """An image cannot be read or written."""


class TooLargeError(ImageError):
    """An image has more pixels than are allowed."""


class NoObjectError(ImageError):
    """A photo shows nothing of the model's category, and something is required."""

    exit_code = 3


class DownloadError(GleansrError):
    """A file could not be fetched: the network, the server or the disk failed, or the contents are not the expected."""


class InternalError(GleansrError):
    """A fault of this program in another process, not of data or a request: it stops the work. A note of it holds the traceback."""

    exit_code = 70


def one_line(error: BaseException) -> str:
    """What an error of the system or of a library says, without line breaks; its kind where it says nothing."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
