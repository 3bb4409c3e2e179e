"""What the services of the shop tell one another."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from txbus import Topic

__all__ = ["MailWanted", "OrderPlaced", "PaymentTaken", "StockReserved", "Topics"]


class OrderPlaced(BaseModel):
    """The order service took an order; ``cents`` is its total in hundredths of ``currency``."""

    model_config = ConfigDict(frozen=True)

    order_id: str
    customer: str
    sku: str
    quantity: int
    cents: int
    currency: str


class MailWanted(BaseModel):
    """The customer is to be told that the order was taken. Sent together with `OrderPlaced`."""

    model_config = ConfigDict(frozen=True)

    order_id: str
    customer: str


class StockReserved(BaseModel):
    """The stock service took the pieces off the shelf."""

    model_config = ConfigDict(frozen=True)

    order_id: str
    customer: str
    sku: str
    quantity: int
    cents: int
    currency: str


class PaymentTaken(BaseModel):
    """The payment service moved the money from the customer's account to the shop's."""

    model_config = ConfigDict(frozen=True)

    order_id: str
    customer: str
    cents: int
    currency: str


@dataclass(frozen=True, slots=True)
class Topics:
    """The shop's topics. Messages of one customer keep their order in each of them."""

    orders: Topic[OrderPlaced]
    mails: Topic[MailWanted]
    reserved: Topic[StockReserved]
    paid: Topic[PaymentTaken]

    @classmethod
    def named(cls, prefix: str = "") -> Topics:
        """With ``prefix`` before each name, so that runs on a shared broker stay apart."""
        return cls(
            orders=Topic(f"{prefix}orders", OrderPlaced, key=lambda m: m.customer),
            mails=Topic(f"{prefix}mails", MailWanted, key=lambda m: m.customer),
            reserved=Topic(f"{prefix}reserved", StockReserved, key=lambda m: m.customer),
            paid=Topic(f"{prefix}paid", PaymentTaken, key=lambda m: m.customer),
        )
