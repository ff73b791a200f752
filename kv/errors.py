"""The error that ends the server, for the parts of the supervisor that can raise it."""


class CannotServe(Exception):
    """The server cannot start, or cannot go on; the message is for the user, the status is what the process ends with.

    The message is empty when the reason has been logged already.
    """

    def __init__(self, message: str = "", status: int = 1) -> None:
        super().__init__(message)
        self.status = status
