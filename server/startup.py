"""What a server reads before it can start, and how it says that it cannot."""

from __future__ import annotations

from pathlib import Path

import structlog

from engine.checkpoint import generation_config
from engine.checkpoint.model_config import GENERATION
from engine.checkpoint.opening import open_source
from engine.checkpoint.tokenizer import Tokenizer
from engine.deciding.request import Sampling
from server.config import ServerConfig, StartError
from server.configuration import Configuration
from server.identity import files
from server.identity.files import Files

log = structlog.get_logger()


def read_configuration(config: ServerConfig) -> Configuration:
    """Returns what the operator's file says, of which only tiers, applications and tenants count:
    the configuration has been made without it. Raises StartError where it is no good.
    """
    try:
        return Configuration(config.config, config=config)
    except ValueError as error:
        raise StartError(str(error)) from error


def read_identity(config: ServerConfig) -> Files:
    """Returns what the files of identities say. Raises StartError where one is no good."""
    try:
        return files.read(config)
    except ValueError as error:
        raise StartError(str(error)) from error


def default_sampling(config: ServerConfig) -> Sampling:
    """Returns the sampling of requests that leave it out.

    What the checkpoint's file asks for and the engine does not do goes to the log. Raises
    CheckpointError for a file that is no good.
    """
    if config.generation_config == "none":
        return Sampling()
    source = open_source(config.engine.model)
    if unused := generation_config.unused_keys(source):
        place = source.place(GENERATION).name
        log.warning("generation", note=f"not done, of {place}: {', '.join(unused)}")
    return generation_config.read_sampling(source)


def load_tokenizer(path: Path) -> Tokenizer:
    """Returns the checkpoint's tokenizer. Raises StartError where there is none that can be used.

    Special tokens that the chat template writes and the model does not name go to the log: chats
    would silently lack them.
    """
    try:
        tokenizer = Tokenizer.load(path)
    except (ValueError, OSError) as error:
        raise StartError(str(error)) from error
    if names := tokenizer.unknown_names:
        log.warning(
            "the chat template writes special tokens that the model does not name", names=names
        )
    return tokenizer
