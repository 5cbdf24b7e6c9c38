"""The protocol's messages, made from open_inference.binpb, which is open_inference.proto compiled.

They live in a descriptor pool of their own: tritonclient and KServe's SDK bring messages of the same names, and a pool
takes each name once. So both can be imported into one process, and no generated code asks for one release of protobuf.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from rm_runtime.serving.errors import BadBodyError

POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(files(__package__).joinpath("open_inference.binpb").read_bytes()).file:
    POOL.AddSerializedFile(_file.SerializeToString())

SERVICE = "inference.GRPCInferenceService"


def message(name: str) -> Any:
    """The class of a message of the protocol."""
    return GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


def parsed(message_class: Any, body: bytes) -> Any:
    """A message from its bytes. Raises BadBodyError if they are none."""
    try:
        return message_class.FromString(body)
    except DecodeError:
        raise BadBodyError(
            f"the message is no {message_class.DESCRIPTOR.full_name}; is it the same protocol?"
        ) from None
