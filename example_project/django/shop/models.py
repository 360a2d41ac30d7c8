"""What the shop keeps."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order, and its receipt once it is fulfilled."""

    item = models.CharField(max_length=100)
    receipt = models.CharField(max_length=100, blank=True)

    def __str__(self) -> str:
        return self.item
