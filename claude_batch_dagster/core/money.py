"""How money reads: the same in every message, log and screen."""


def usd(amount: float | None) -> str:
    """Return an amount of money; small ones keep two significant digits.

    >>> usd(12.345), usd(0.01389), usd(0.00123), usd(0), usd(None)
    ('$12.35', '$0.014', '$0.0012', '$0.00', 'unknown')
    """
    if amount is None:
        return "unknown"
    # Beside a cap of $0.01 a worst case of $0.014 must not read $0.01.
    if amount == 0 or abs(amount) >= 0.1:
        return f"${amount:,.2f}"
    return "$" + f"{float(f'{amount:.2g}'):.9f}".rstrip("0")
