"""The messages of the WebSockets, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ChannelsMessageModel", "ServerEventModel"]


class MessageHeaderModel(BaseModel):
    """The header of a Jupyter message."""

    model_config = ConfigDict(extra="allow")

    msg_id: str = Field(description="Its id.")
    msg_type: str = Field(description="Its type.", examples=["execute_request", "stream"])
    session: str = Field(description="The session of who has sent it.")
    username: str | None = None
    date: str | None = Field(
        None, description="When it was made.", examples=["2026-11-22T14:49:48.797413Z"]
    )
    version: str | None = Field(None, description="Of the Jupyter protocol.", examples=["5.3"])


class ChannelsMessageModel(BaseModel):
    """A Jupyter message on the channels WebSocket, in the legacy framing.

    As a text frame; with buffers, before them in a binary frame. In the framing
    `v1.kernel.websocket.jupyter.org` the same four parts and the channel have no envelope. Of what
    clients send, `header` and `channel` are needed.
    """

    channel: Literal["shell", "iopub", "stdin", "control"]
    header: MessageHeaderModel
    parent_header: dict[str, Any] = Field(
        description="The header of the request that it belongs to; empty if there is none."
    )
    metadata: dict[str, Any]
    content: dict[str, Any] = Field(description="What the Jupyter protocol says for its type.")
    msg_id: str | None = Field(None, description="As in the header.")
    msg_type: str | None = Field(None, description="As in the header.")
    buffers: list[Any] = Field(
        default_factory=list, description="Empty, or absent: they lie behind it in the frame."
    )
    seq: int | None = Field(
        None, description="Its number in the log, for connections that ask for it by `after`."
    )


class ServerEventModel(BaseModel):
    """An event of this server: what its schema says, and which schema that is."""

    model_config = ConfigDict(extra="allow")

    schema_id: str = Field(examples=["https://events.jupyter.org/jupyter_server/kernel_actions/v1"])
