"""The exception that a failing call of CUDA raises."""


class Error(RuntimeError):
    """A call of CUDA that failed. Out of memory is MemoryError instead.

    Attributes:
        code: CUDA's number of the error.
        name: CUDA's name of it, such as "cudaErrorLaunchFailure".
        place: the call that reported it, which may be one after the call that went wrong.
    """

    def __init__(self, message: str, code: int, name: str, place: str) -> None:
        super().__init__(f"{message}, code {code}")
        self.code = code
        self.name = name
        self.place = place

    def __reduce__(self) -> tuple[type["Error"], tuple[str, int, str, str]]:
        message = str(self).removesuffix(f", code {self.code}")
        return type(self), (message, self.code, self.name, self.place)
