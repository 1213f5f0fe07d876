"""What can go wrong in an exchange. After any of these, ``close`` is the only legal call."""


class ExchangeError(RuntimeError):
    """The exchange cannot go on; the text names ranks, iteration and cause."""


class PeerError(ExchangeError):
    """Another rank failed, or closed before an iteration that this rank waits for."""


class LateError(ExchangeError, TimeoutError):
    """The deadline passed; the text lists every rank that is behind, and by how much."""


class BlockError(ExchangeError):
    """A block arrived with another size than ``recv_counts`` promised."""


def in_words(error: BaseException) -> str:
    """An error's kind and text, whatever its text does: others wait to hear of it."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, whose text cannot be had"
