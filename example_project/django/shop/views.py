"""Two views: one takes orders, one tells how they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction
from django.http import Http404, JsonResponse

from shop.models import Order
from shop.tasks import fulfil

if TYPE_CHECKING:
    from django.http import HttpRequest


class SoldOutError(Exception):
    """The shop has none left."""


@transaction.atomic
def _placed(item: str) -> tuple[Order, str]:
    """Store the order and its run: both, or neither."""
    order = Order.objects.create(item=item)
    run = fulfil.delay_on_commit(order.pk)
    if item == "unicorn":
        raise SoldOutError
    return order, run.id


def orders(request: HttpRequest) -> JsonResponse:
    """Take an order."""
    try:
        order, run_id = _placed(request.GET.get("item", "tea"))
    except SoldOutError:
        return JsonResponse({"error": "sold out"}, status=409)
    return JsonResponse({"order": order.pk, "run": run_id}, status=201)


def order(request: HttpRequest, pk: int) -> JsonResponse:  # noqa: ARG001
    """Tell how an order is."""
    try:
        found = Order.objects.get(pk=pk)
    except Order.DoesNotExist:
        raise Http404 from None
    return JsonResponse({"item": found.item, "receipt": found.receipt})
