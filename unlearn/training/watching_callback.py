"""What the callbacks of training libraries have in common: the record, one optimizer step a batch, the end."""

from __future__ import annotations

from typing import Any, ClassVar

from unlearn.errors import RecordError
from unlearn.extras import extra_module
from unlearn.training.record import TrainingRecord
from unlearn.training.watched_steps import WatchedSteps


class WatchingCallback:
    """A callback that watches the steps of a training and leaves their record.

    A class made of this one gets the callback class of its library as a further base, which is imported when the first
    callback is made and not before.

    Attributes:
        LIBRARY: module of the callback class, its name there, and the extra that brings it.
        TRAINING: what makes the record, for messages.
    """

    LIBRARY: ClassVar[tuple[str, str, str]]
    TRAINING: ClassVar[str]

    _watched: WatchedSteps | None
    _record: TrainingRecord | None
    _steps: int

    def __new__(cls, *args: Any, **options: Any) -> WatchingCallback:
        """Return a callback of the library."""
        module, base, extra = cls.LIBRARY
        library = extra_module(module, extra, f"{cls.__name__} is a callback of {module.partition('.')[0]}")
        mixed: type[WatchingCallback] = type(cls.__name__, (cls, getattr(library, base)), {})
        callback = object.__new__(mixed)
        callback._watched = callback._record = None
        callback._steps = 0
        return callback

    @property
    def record(self) -> TrainingRecord:
        """The record of the training that ended last.

        Raises:
            RecordError: none has ended.
        """
        if self._record is None:
            raise RecordError(f"there is no record yet; it is made at the end of {self.TRAINING}")
        return self._record

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Write the record."""
        if self._watched is not None:
            watched, self._watched = self._watched, None
            self._record = watched.finish()

    def _count(self) -> None:
        """Note how many steps were made before a batch."""
        self._steps = 0 if self._watched is None else self._watched.steps

    def _made(self) -> int:
        """Return how many steps the batch took; 1 where none are watched."""
        return 1 if self._watched is None else self._watched.steps - self._steps
