"""What an error means for whoever starts the next worker.

Promises: every exception gets one of the classes of the agent protocol, from the texts in FIELD-NOTES 2 and 3, and one
sentence that says what happened.
"""

MODEL_UNREADABLE = "model_unreadable"
MODEL_UNSUPPORTED = "model_unsupported"
OUT_OF_MEMORY = "out_of_memory"
GPU_FAULT = "gpu_fault"
LINK_FAULT = "link_fault"
# The ranks did not find one another in time, before anything was loaded: another try costs next to nothing.
APART = "apart"
CANARY_FAILED = "canary_failed"
CRASHED = "crashed"

# Memory first: Metal reports it inside "Command buffer execution failed" too.
_TEXTS = (
    (
        OUT_OF_MEMORY,
        (
            "[malloc] Unable to allocate",
            "[metal::malloc]",
            "Insufficient Memory",
            "kIOGPUCommandBufferCallbackErrorOutOfMemory",
            "Attempting to allocate",
            "std::bad_alloc",
        ),
    ),
    (
        LINK_FAULT,
        ("[ring]", "[jaccl]", "Couldn't bind socket", "distributed backend", "[mpi]"),
    ),
    (
        GPU_FAULT,
        ("[METAL]", "kIOGPUCommandBufferCallbackError", "Command buffer execution failed", "GPU Timeout", "GPU Hang"),
    ),
)

# A sentence for a log line, not a dump.
_MAX_MESSAGE_CHARS = 500


class Fatal(Exception):
    """An error after which this process cannot go on."""

    def __init__(self, fault, message):
        super().__init__(message)
        self.fault = fault
        self.message = one_sentence(message)


def classify(error, otherwise=CRASHED):
    """The class of an exception: `otherwise` where its text says nothing."""
    if isinstance(error, Fatal):
        return error.fault
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    text = str(error)
    for fault, signs in _TEXTS:
        if any(sign in text for sign in signs):
            return fault
    return otherwise


def describe(error):
    """One line about an exception: its type where the text alone would not tell."""
    text = one_sentence(str(error))
    name = type(error).__name__
    return text if isinstance(error, RuntimeError) and text else f"{name}: {text}" if text else name


def one_sentence(text):
    """The text on one line, of bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 1] + "…"
