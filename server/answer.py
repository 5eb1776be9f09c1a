"""The answer to a unary call, made while its tokens come.

Made at the end, of 16 completions with 20 log probabilities for each token, it would hold the event
loop, and with it everybody, for seconds.
"""

from __future__ import annotations

from proto.niyama.v1 import inference_pb2 as pb
from server.convert import outbound
from server.generation import Piece


class Answer:
    """`add` what comes of each of n completions, `end` each, then take `response`."""

    def __init__(self, n: int) -> None:
        self._completions = [pb.Completion(index=index) for index in range(n)]
        self._texts: list[list[str]] = [[] for _ in range(n)]

    def add(self, piece: Piece) -> None:
        completion = self._completions[piece.completion]
        completion.token_ids.extend([token.id for token in piece.tokens])
        completion.logprobs.extend(outbound.to_logprobs(piece.tokens))
        self._texts[piece.completion].append(piece.text)

    def restart(self, index: int) -> None:
        """What came of the completion is void."""
        self._completions[index] = pb.Completion(index=index)
        self._texts[index].clear()

    def end(self, index: int, finished: pb.Finished) -> None:
        self._completions[index].text = "".join(self._texts[index])
        self._completions[index].finished.CopyFrom(finished)

    def response(self, request_id: str, targets: pb.ResolvedTargets) -> pb.GenerateResponse:
        return pb.GenerateResponse(
            request_id=request_id, targets=targets, completions=self._completions
        )
