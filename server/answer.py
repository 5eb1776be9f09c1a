"""The answer to a unary call, made while its tokens come.

Were it made at the end, an answer of 16 completions with 20 log probabilities for each token would
hold up the event loop, and with it every other call, for seconds.
"""

from __future__ import annotations

from niyama.v1 import inference_pb2 as pb
from server.convert import outbound
from server.generation import Piece


class Answer:
    """The answer of n completions: `add` what comes of each, `end` each, then take `response`."""

    def __init__(self, n: int) -> None:
        self._completions = [pb.Completion(index=index) for index in range(n)]
        self._texts: list[list[str]] = [[] for _ in range(n)]

    def add(self, piece: Piece) -> None:
        """Appends new output to the completion that it belongs to."""
        completion = self._completions[piece.completion]
        completion.token_ids.extend([token.id for token in piece.tokens])
        completion.logprobs.extend(outbound.to_logprobs(piece.tokens))
        self._texts[piece.completion].append(piece.text)

    def restart(self, index: int) -> None:
        """Forgets what came of the completion: the engine begins it again."""
        self._completions[index] = pb.Completion(index=index)
        self._texts[index].clear()

    def end(self, index: int, finished: pb.Finished) -> None:
        """Notes how the completion ended; its text is whole."""
        self._completions[index].text = "".join(self._texts[index])
        self._completions[index].finished.CopyFrom(finished)

    def response(self, request_id: str, targets: pb.ResolvedTargets) -> pb.GenerateResponse:
        """Returns the whole answer, once all completions have ended."""
        return pb.GenerateResponse(
            request_id=request_id, targets=targets, completions=self._completions
        )
