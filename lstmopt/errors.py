"""Errors that a user can cause, each one line: what, where, how to mend."""

from __future__ import annotations


class LstmoptError(Exception):
    """A fault of the input or of the call, shown as one line without a traceback.

    Args:
        where: the file, option, tensor or stage at fault.
        fault: what is wrong with it.
        mend: what the user can do.
    """

    exit_code = 2

    def __init__(self, where: str, fault: str, mend: str) -> None:
        super().__init__(where, fault, mend)
        self.where = where
        self.fault = fault
        self.mend = mend

    def __str__(self) -> str:
        return " ".join(f"{self.where}: {self.fault}; {self.mend}".split())


class ContractError(LstmoptError):
    """The accuracy or speed that was asked for is not met; nothing was written over."""

    exit_code = 1
