"""Errors that users can cause: one line with the problem, the value, what was expected and what to do."""


class GleansrError(Exception):
    """Base of all errors that gleansr raises. The command line prints the message and exits with `exit_code`."""

    exit_code = 1


class RequestError(GleansrError, ValueError):
    """An invalid request: an unknown model, a missing device, conflicting options."""

    exit_code = 2


class CheckpointError(RequestError):
    """A file of weights is missing, truncated, hostile, of another kind, or does not fit its architecture."""


class ImageError(GleansrError, ValueError):
    """An image cannot be read or written."""


class TooLargeError(ImageError):
    """An image exceeds the limit of pixels."""


class NoObjectError(ImageError):
    """No object of the model's category was detected in a photo, and one is required."""

    exit_code = 3


class DownloadError(GleansrError):
    """A download failed: the network, the server or the disk failed, or the contents are not the expected ones."""


class InternalError(GleansrError):
    """A bug of gleansr in another process, not a fault of data or a request: it stops the job. Its note holds the traceback."""

    exit_code = 70


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; its type if the message is empty."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
