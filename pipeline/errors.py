"""Every error that Weft raises on purpose.

An error carries data; its text is made in ``__str__`` and is one sentence with the mend, because the
command line prints it as it is. What is not a ``WeftError`` is a defect.
"""

from dataclasses import dataclass


class WeftError(Exception):
    """Base of all errors meant for a user."""


@dataclass
class ConfigError(WeftError):
    """The configuration cannot be used; says where and what to write instead."""

    where: str
    problem: str
    hint: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}; {self.hint}"


@dataclass
class InputError(WeftError):
    """An input cannot be decoded, from the named place on; what came before it is kept."""

    path: str
    problem: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.hint}"


@dataclass
class CodecError(WeftError):
    """A message on the bus is not what its headers say."""

    problem: str

    def __str__(self) -> str:
        return f"message not decodable: {self.problem}"


@dataclass
class BusError(WeftError):
    """The bus cannot be reached or refuses; the caller may try again."""

    problem: str
    hint: str

    def __str__(self) -> str:
        return f"bus: {self.problem}; {self.hint}"


@dataclass
class FencedError(WeftError):
    """Another member owns these partitions now; the transaction did not happen."""

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
