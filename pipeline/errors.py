"""Every error that Weft raises deliberately.

An error carries data; ``__str__`` makes one sentence of it that ends with a hint, and the command line prints that sentence. Any
other exception is a defect.
"""

from dataclasses import dataclass


class WeftError(Exception):
    """Base of all errors that are shown to a user."""


@dataclass
class ConfigError(WeftError):
    """The configuration is invalid; the error names the place and what to write instead."""

    where: str
    problem: str
    hint: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}; {self.hint}"


@dataclass
class InputError(WeftError):
    """An input cannot be decoded from the named place on; rows before it are kept."""

    path: str
    problem: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.hint}"


@dataclass
class CodecError(WeftError):
    """A message on the bus does not match its headers."""

    problem: str

    def __str__(self) -> str:
        return f"message not decodable: {self.problem}"


@dataclass
class BusError(WeftError):
    """The bus is unreachable or refuses; the caller may retry."""

    problem: str
    hint: str

    def __str__(self) -> str:
        return f"bus: {self.problem}; {self.hint}"


@dataclass
class FencedError(WeftError):
    """Another member owns these partitions now; the transaction was aborted."""

    problem: str

    def __str__(self) -> str:
        return f"fenced: {self.problem}"


@dataclass
class StoreError(WeftError):
    """The store cannot be opened, written or read."""

    problem: str
    hint: str

    def __str__(self) -> str:
        return f"store: {self.problem}; {self.hint}"


@dataclass
class ServiceError(WeftError):
    """A service cannot start or has given up."""

    problem: str
    hint: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.hint}"
