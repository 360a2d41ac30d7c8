"""The values of steps, runs and signals as bytes, with errors that name the place that cannot be stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.exceptions import SerializationError
from celery_durable.serialization.hints import MISSING
from celery_durable.serialization.lowering import Lowering, is_plain
from celery_durable.serialization.refusals import Refused, too_large, type_name
from celery_durable.serialization.restoring import restore
from celery_durable.serialization.serializers import PLAIN_TREE_FORMATS
from celery_durable.serialization.shapes import shape_of

if TYPE_CHECKING:
    from celery_durable.serialization.serializers import Serializer


class ValueCodec:
    """Encodes values to bytes and decodes them to equal values of the same type.

    What a body is given should always be `decode(encode(value))`, on the first execution as on a replay: it
    shares nothing with the value that was encoded.

    Args:
        serializer: The byte format. "json", "msgpack" and "yaml" get a lowered tree, others the value itself.
        max_bytes: The largest encoded size, None for no limit.
    """

    def __init__(self, serializer: Serializer, *, max_bytes: int | None = None) -> None:
        self.serializer = serializer
        self.max_bytes = max_bytes
        self._dumps = serializer.dumps
        self._loads = serializer.loads
        self._is_json = serializer.name == "json"
        self._is_plain_tree = serializer.name in PLAIN_TREE_FORMATS
        self._lowering = Lowering(sorts_keys=serializer.name == "yaml")

    def encode(self, value: object, annotation: object = MISSING, *, where: str) -> bytes:
        """Turn a value into bytes.

        Args:
            value: What to store.
            annotation: The type the value was declared with, such as the step's return annotation.
            where: Words that begin an error's message, such as "step 'download'".

        Raises:
            SerializationError: A part of the value cannot be stored; has `where`, `path` and `type`.
            PayloadTooLargeError: The bytes exceed `max_bytes`; has `where`, `size` and `limit`.
        """
        try:
            if not self._is_plain_tree or (self._is_json and is_plain(value)):
                data = self._dumps(value)
            else:
                data = self._dumps(self._lowering.tree(value, shape_of(annotation)))
        except Refused as refusal:
            raise refusal.error(where, serializer=self.serializer.name) from refusal.__cause__
        except Exception as error:
            raise self._failed(value, where, error) from error
        if self.max_bytes is not None and len(data) > self.max_bytes:
            raise too_large(len(data), self.max_bytes, where)
        return data

    def decode(self, data: bytes, annotation: object = MISSING) -> object:
        """Turn bytes back into the value they were made from.

        Args:
            data: What `encode` returned, in this process or another, by this release or an older one.
            annotation: The declared type; its classes are built, whatever they were called when stored.

        Raises:
            SerializationError: The bytes are damaged, or a class they need cannot be found.
        """
        try:
            if self._is_plain_tree and not data:
                raise ValueError("no data")  # noqa: TRY301  (kombu would return the empty data itself)
            tree = self._loads(data)
            # Every tag has a "~"; JSON without one is already the value.
            if not self._is_plain_tree or (self._is_json and b"~" not in data):
                return tree
            return restore(tree, shape_of(annotation))
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(
                f"A stored value cannot be read as {self.serializer.name}: {type(error).__name__}: {error}"
            ) from error

    def _failed(self, value: object, where: str, error: Exception) -> SerializationError:
        kind = type_name(type(value))
        return SerializationError(
            f"{where}: a value of type {kind} cannot be stored as {self.serializer.name}: "
            f"{type(error).__name__}: {error}. Return something plain instead, such as an id or a path.",
            where=where,
            path="value",
            type=kind,
        )
