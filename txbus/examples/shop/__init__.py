"""A shop of three services on one bus, each killed at every step, and its books.

Begin with `orders`, `stock` and `payment`: they are what an application of yours would look like.
`naive` is the same shop without txbus. The rest kills them (`supervisor`, `windows`) and reads
the books afterwards (`books`). ``txbus demo`` or ``python -m txbus.examples.shop`` runs it.
"""
