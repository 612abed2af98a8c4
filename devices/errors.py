"""The one error tree of haversack.

    HaversackError
    ├── UnitError           a size that is not a number with a unit ("6GiB")
    ├── BindingError        a llama.cpp build whose layout this version does not know
    ├── BudgetError         the bytes given do not suffice; carries need_bytes and have_bytes
    ├── ModelFileError      not a GGUF, truncated, a part missing, an architecture llama.cpp refuses
    │   └── NotFiniteError  the model computed numbers that are not finite
    ├── StorageError        a read, a write or the disk space failed
    │   └── DamagedTrunkError  a trunk file is not as it was written; loading writes it anew
    ├── PromptError         a prompt, template, grammar or sampling value that cannot be used
    │   └── ContextError    more tokens than the context holds
    ├── CancelledError      the call was cancelled by its owner
    ├── AbortedError        llama.cpp gave up in the middle of a call
    ├── DeviceError         a device, or the backend of one, that is not there or cannot be used
    └── ClosedError         the model is closed, broken, of another process, or busy with another
                            call of the same thread

Every message says what was found, what was needed and which knob to turn.
"""


class HaversackError(Exception):
    """Base of all errors; `exit_code` is what the command line returns for it."""

    exit_code = 2


class UnitError(HaversackError, ValueError):
    """A size string without a number, without a unit or with an unknown one."""


class BindingError(HaversackError, ImportError):
    """The installed llama.cpp is not the build whose struct layouts we know."""


class BudgetError(HaversackError):
    """The budget is below what the work needs."""

    exit_code = 3

    def __init__(self, message: str, *, need_bytes: int, have_bytes: int) -> None:
        super().__init__(message)
        self.need_bytes = need_bytes
        self.have_bytes = have_bytes


class ModelFileError(HaversackError, ValueError):
    """The model file is not one that can be run."""


class NotFiniteError(ModelFileError):
    """The model computed numbers that are not finite."""


class StorageError(HaversackError, OSError):
    """Reading or writing a file failed: a short read, a device error, no space."""


class DamagedTrunkError(StorageError):
    """A trunk file is not as it was written."""


class PromptError(HaversackError, ValueError):
    """A prompt, chat template, grammar or sampling value that cannot be used."""


class ContextError(PromptError):
    """More tokens than the context holds."""


class CancelledError(HaversackError):
    """The call was cancelled before it finished."""


class AbortedError(HaversackError):
    """llama.cpp gave up: an assertion of its own failed, or an exception escaped from it."""


class DeviceError(HaversackError):
    """A device, or the backend that brings it, is not there or cannot be used."""


class ClosedError(HaversackError, RuntimeError):
    """The model is closed, broken, of another process, or in use by an unfinished call of the same
    thread."""
