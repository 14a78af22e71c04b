"""Classes that are known by a name: quadrature rules and integrators."""

from collections.abc import Callable
from typing import Any

import keras


class Named:
    """The classes of a kind by name, as those of users are registered and found.

    Args:
        base: The class that all of them are subclasses of.
        argument: The argument that takes a name or an object, such as `"quadrature"`.
        noun: What one is called, such as `"quadrature rule"`; its last word for short.
        decorator: The name of the function that registers one.
        signature: The arguments that an object is called with.
    """

    def __init__(self, base: type, argument: str, noun: str, decorator: str, signature: str):
        self.base = base
        self.argument = argument
        self.noun = noun
        self.decorator = decorator
        self.signature = signature
        self.classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """A decorator that gives a class its name."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"`name` must be a string, not empty. Received: name={name!r}")
        short = self.noun.split()[-1]

        def register(cls: type) -> type:
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise ValueError(
                    f"A registered {self.noun} must be a subclass of {self.base.__name__}. "
                    f"Received: {cls!r}"
                )
            try:
                cls()
            except TypeError as error:
                raise ValueError(
                    f"A registered {self.noun} must be made without arguments, as by its name. "
                    f"Received: {cls.__name__}, for which Python says: {error}"
                ) from error
            taken = self.classes.get(name, cls)
            if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"`name` must be one that no other {short} has; {taken.__qualname__} of "
                    f"{taken.__module__} has it. Received: name={name!r}"
                )
            if keras.saving.get_registered_name(cls) == cls.__name__:
                keras.saving.register_keras_serializable(f"mf_zoo_{short}", name)(cls)
            self.classes[name] = cls
            return cls

        return register

    def get(self, identifier: Any) -> Any:
        """The object of a name, of a serialised one, or the callable that it is already."""
        if isinstance(identifier, str) and identifier in self.classes:
            return self.classes[identifier]()
        if isinstance(identifier, dict):
            identifier = keras.saving.deserialize_keras_object(identifier)
        if callable(identifier) and not isinstance(identifier, type):
            return identifier
        raise ValueError(
            f"`{self.argument}` must be one of {list(self.classes)}, a {self.base.__name__} or a "
            f"callable of {self.signature}; a name of your own is known once the module with "
            f"`{self.decorator}` is imported. Received: {self.argument}={identifier!r}"
        )

    def serialize(self, found: Any) -> str | dict:
        """The name by which `get` makes an equal object, where there is one, else Keras's form."""
        for name, cls in self.classes.items():
            # An instance with arguments of its own is more than its name says.
            if type(found) is cls and found.get_config() == cls().get_config():
                return name
        return keras.saving.serialize_keras_object(found)
