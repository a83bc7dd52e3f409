"""Hides secrets in records of a user's callbacks: names, texts and hyperparameters."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from functools import cache, wraps
from typing import Any

from torch import Tensor

from xftrain.utils.read_variables import READ
from xftrain.utils.redaction import hidden, hidden_throughout

# Methods of torch's SummaryWriter whose names bypass `add_event` or are encoded as bytes.
_UNHOOKED_METHODS = (
    *("add_scalars", "add_hparams", "add_embedding", "add_custom_scalars"),
    *("add_custom_scalars_multilinechart", "add_custom_scalars_marginchart"),
)
_HPARAMS = "hparams"  # the plugin of TensorBoard whose records have names and values


def hidden_values(value: Any) -> Any:
    """Applies `hidden_throughout`, also to the text of other objects, such as paths."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {hidden_throughout(key): hidden_values(child) for key, child in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [hidden_values(child) for child in value]
    if isinstance(value, bool | int | float | Tensor | None):
        return value
    text = str(value)
    shown = hidden(text)
    return value if shown == text else shown


@cache
def hiding_writer() -> type[Any]:
    """A SummaryWriter class that hides secrets; created late, as TensorBoard's import is slow."""
    from torch.utils.tensorboard import SummaryWriter

    class HidingWriter(SummaryWriter):
        def _get_file_writer(self) -> Any:
            writer = super()._get_file_writer()
            add = writer.event_writer.add_event
            if not hasattr(add, "hides"):

                @wraps(add)
                def add_hidden(event: Any) -> None:
                    hide_in_event(event)
                    add(event)

                add_hidden.hides = True  # type: ignore[attr-defined]
                writer.event_writer.add_event = add_hidden
            return writer

    for name in _UNHOOKED_METHODS:
        setattr(HidingWriter, name, _hiding(getattr(SummaryWriter, name)))
    return HidingWriter


def _hiding(method: Any) -> Any:
    @wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *hidden_throughout(args), **hidden_throughout(kwargs))

    return called


def hide_in_event(event: Any) -> None:
    """Replaces secrets in the names and texts of a TensorBoard event, in place."""
    if not READ.values:
        return
    for value in event.summary.value:
        value.tag = hidden(value.tag)
        plugin = value.metadata.plugin_data
        if plugin.plugin_name == _HPARAMS:
            from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

            data = HParamsPluginData.FromString(plugin.content)
            _hide_in_message(data)
            plugin.content = data.SerializeToString()
        for index, content in enumerate(value.tensor.string_val):
            value.tensor.string_val[index] = _hidden_bytes(content)


def _hidden_bytes(content: bytes) -> bytes:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return content
    return hidden(text).encode("utf-8")


def _hide_in_message(message: Any) -> None:
    """Replaces secrets in all strings of a protobuf message, keys of maps included."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            if isinstance(value, str):
                setattr(message, field.name, hidden(value))
            else:
                value[:] = map(hidden, value)
        elif field.type == field.TYPE_MESSAGE:
            if not field.message_type.GetOptions().map_entry:
                for child in [value] if hasattr(value, "ListFields") else value:
                    _hide_in_message(child)
                continue
            for key in list(value):
                _hide_in_message(value[key])
                if (shown := hidden_throughout(key)) != key:
                    value[shown].CopyFrom(value[key])
                    del value[key]
