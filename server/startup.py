"""What a server reads before it can start, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import structlog

from engine.checkpoint import generation_config
from engine.checkpoint.model_config import GENERATION
from engine.checkpoint.tokenizer import Tokenizer
from engine.deciding.request import Sampling
from server.admin import Admin
from server.config import ServerConfig
from server.configuration import Configuration

log = structlog.get_logger()


class StartError(Exception):
    """The server cannot start; the message is one line for the operator."""


def read_configuration(config: ServerConfig) -> Configuration:
    """Raises StartError."""
    try:
        return Configuration(config.config)
    except ValueError as error:
        raise StartError(str(error)) from error


def read_admin(config: ServerConfig) -> Admin:
    """Raises StartError."""
    try:
        return Admin.of_file(config.admin_token_file)
    except ValueError as error:
        raise StartError(str(error)) from error


def default_sampling(config: ServerConfig) -> Sampling:
    """Of requests that leave it out. Raises CheckpointError for a file that is no good."""
    if config.generation_config == "none":
        return Sampling()
    folder = config.engine.model
    if unused := generation_config.unused_keys(folder):
        log.warning("generation", note=f"not done, of {GENERATION}: {', '.join(unused)}")
    return generation_config.read_sampling(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Raises StartError. What is left unsaid and chats would silently lack goes to the log."""
    try:
        tokenizer = Tokenizer.load(folder)
    except (ValueError, OSError) as error:
        raise StartError(str(error)) from error
    if names := tokenizer.unknown_names:
        log.warning(
            "the chat template writes special tokens that the model does not name", names=names
        )
    return tokenizer
