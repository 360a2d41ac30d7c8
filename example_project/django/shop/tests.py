"""How a Django project tests its durable tasks: `python manage.py test`."""

from __future__ import annotations

from unittest.mock import patch

from django.test import TestCase, TransactionTestCase

from shop.celery import app
from shop.models import Order
from shop.tasks import fulfil


class EagerTests(TestCase):
    """The task as a function, in the transaction that each test is in."""

    def setUp(self) -> None:
        """Call tasks instead of starting runs."""
        app.conf.task_always_eager = True
        self.addCleanup(app.conf.update, task_always_eager=False)

    def test_an_order_is_fulfilled_with_its_commit(self) -> None:
        """Nothing happens before the commit, which Django's `captureOnCommitCallbacks` stands for."""
        with self.captureOnCommitCallbacks() as callbacks:
            placed = self.client.get("/orders/").json()
        self.assertEqual(Order.objects.get(pk=placed["order"]).receipt, "")

        callbacks[0]()

        self.assertEqual(Order.objects.get(pk=placed["order"]).receipt, f"receipt-{placed['order']}")


class StoredTests(TransactionTestCase):
    """What is stored; celery-durable's tables are in the test database."""

    def test_a_run_comes_with_its_order(self) -> None:
        """The run is there when the order is."""
        placed = self.client.get("/orders/").json()

        self.assertTrue(app.backend.task_result_exists(placed["run"]))

    def test_an_order_that_is_rolled_back_has_no_run(self) -> None:
        """Neither is there."""
        with patch("shop.tasks.fulfil.delay_on_commit", wraps=fulfil.delay_on_commit) as started:
            response = self.client.get("/orders/?item=unicorn")

        started.assert_called_once()
        self.assertEqual(response.status_code, 409)
        self.assertFalse(Order.objects.exists())
