"""Turns what comes of a call into responses of VllmEngine: of token ids, without any text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as vllm

from engine.deciding.plan import Token
from niyama.v1 import inference_pb2 as pb
from server.call import Call
from server.generation import Ended, Output, Piece, RestartedAt

_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class Responses:
    """The responses to one call: chunks as its output comes and one that completes each completion,
    or of a call that is not streamed the latter alone, with all of the output.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        n = call.asked.n
        self._num_tokens = [0] * n
        self._last_ids = [-1] * n  # of each completion's tokens
        self._last = [vllm.GenerateResponse() for _ in range(n)]  # of each, filled in as it comes

    def to_message(self, output: Output) -> Any:
        """Returns the response of a stream for one output, None where it has none. Raises as
        `Call.to_message` does.
        """
        if isinstance(output, Piece):
            self._call.add(output)
            return self._chunk(output) if output.tokens else None
        if isinstance(output, Ended):
            return self._complete(output)
        return None  # what is expected of a call has no field

    async def gather(self) -> list[Any]:
        """Returns the responses to a call that is not streamed, once all of it has ended."""
        generation, complete = self._call.generation, []
        while not generation.is_done:
            for output in await generation.next():
                if isinstance(output, Piece):
                    self._call.add(output)
                    self._add(output)
                elif isinstance(output, RestartedAt):
                    self._restart(output.completion)
                elif isinstance(output, Ended):
                    complete.append(self._complete(output))
        return complete

    def _note(self, piece: Piece) -> None:
        if piece.tokens:
            self._num_tokens[piece.completion] += len(piece.tokens)
            self._last_ids[piece.completion] = piece.tokens[-1].id

    def _chunk(self, piece: Piece) -> Any:
        self._note(piece)
        response = vllm.GenerateResponse()
        chunk = response.chunk  # filled in where it is: a message that is passed in is copied
        chunk.token_ids.extend([token.id for token in piece.tokens])
        chunk.index = piece.completion
        chunk.prompt_tokens = self._call.generation.prompt_len
        chunk.completion_tokens = self._num_tokens[piece.completion]
        _add_logprobs(chunk, piece.tokens)
        return response

    def _add(self, piece: Piece) -> None:
        self._note(piece)
        whole = self._last[piece.completion].complete
        whole.output_ids.extend([token.id for token in piece.tokens])
        _add_logprobs(whole, piece.tokens)

    def _restart(self, index: int) -> None:
        """Forgets what came of the completion: the engine begins it again."""
        self._call.restart(index)
        self._last[index] = vllm.GenerateResponse()
        self._num_tokens[index], self._last_ids[index] = 0, -1

    def _complete(self, ended: Ended) -> Any:
        """Returns the response that ends a completion, with what was gathered of it."""
        finished, index = self._call.finish(ended), ended.completion
        response = self._last[index]
        complete = response.complete
        complete.index = index
        complete.finish_reason = _REASONS[finished.reason]
        complete.prompt_tokens = finished.usage.prompt_tokens
        complete.completion_tokens = finished.usage.output_tokens
        complete.cached_tokens = finished.usage.cached_tokens
        if finished.matched_stop:
            complete.matched_stop_str = finished.matched_stop
        elif complete.finish_reason == "stop" and self._is_stop(last := self._last_ids[index]):
            complete.matched_token_id = last
        return response

    def _is_stop(self, token_id: int) -> bool:
        """Returns whether the request itself names the token as one that ends the output."""
        return token_id in self._call.asked.sampling["stop_token_ids"]


def _add_logprobs(message: Any, tokens: Sequence[Token]) -> None:
    """Adds the tokens' log probabilities, where they were asked for."""
    if not tokens or tokens[0].logprob is None:
        return
    logprobs = message.output_logprobs
    logprobs.token_ids.extend([token.id for token in tokens])
    logprobs.token_logprobs.extend([token.logprob for token in tokens])
    for token in tokens:
        top = logprobs.top_logprobs.add()
        top.token_ids.extend([token_id for token_id, _ in token.top])
        top.values.extend([value for _, value in token.top])
