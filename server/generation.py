"""One call that generates: n completions of a prompt, from engine tokens to what a client sees.

Tokens arrive as they are sampled, and in batches when the client reads slowly. Each batch becomes
one piece for each completion. A stop string is found here, where there is text: then the text is
cut, the engine is told to stop, and the end is reported when the engine confirms it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from engine.checkpoint.detokenizer import Detokenizer
from engine.deciding.plan import Accepted, Finished, Relegated, Token
from engine.deciding.request import Sampling
from engine.deciding.sequence import FinishReason
from engine.linking.streams import RequestStream, Restarted
from server.stops import StopChecker


class Piece(NamedTuple):
    """New output of one completion. Its text may lag its tokens."""

    completion: int  # which, 0 to n - 1
    text: str
    tokens: Sequence[Token]


class RelegatedAt(NamedTuple):
    """One completion was moved behind other requests."""

    completion: int  # which, 0 to n - 1
    event: Relegated


class RestartedAt(NamedTuple):
    """What came of one completion so far is void: it is begun again."""

    completion: int  # which, 0 to n - 1


class Ended(NamedTuple):
    """The end of one completion; `num_tokens` of its tokens were handed out."""

    completion: int  # which, 0 to n - 1
    finished: Finished
    matched_stop: str
    num_tokens: int


class GenerationFailed(Exception):
    """The engine ended a completion for a reason that is no result."""

    def __init__(self, finished: Finished) -> None:
        super().__init__(finished.detail or f"the engine ended it: {finished.reason.value}")
        self.reason, self.retry_s = finished.reason, finished.retry_s
        self.expected = finished.expected


class Text:
    """The text of one completion, piece by piece."""

    def __init__(self, detokenizer: Detokenizer, sampling: Sampling, stops: Sequence[str]) -> None:
        self._feed, self._finish = detokenizer.feed, detokenizer.finish
        self._specials = detokenizer.specials
        self._min_tokens = sampling.min_tokens
        self._stop_ids = sampling.stop_token_ids
        self._checker = StopChecker(stops) if stops else None
        self.is_free = not stops  # whether its text needs no more than `spell`
        self.num_tokens = 0
        self.matched_stop = ""

    def take(self, tokens: Sequence[Token]) -> tuple[str, Sequence[Token]]:
        """Returns the text that the tokens add, and those of them that belong to the completion,
        which are all of them until a stop string is complete.
        """
        checker, text = self._checker, ""
        if checker is None:
            return "".join([self.spell(token.id) for token in tokens]), tokens
        for taken, token in enumerate(tokens, start=1):
            text += self._examine(checker, token.id)
            if self.matched_stop:
                return text, tokens[:taken]
        return text, tokens

    def spell(self, token_id: int) -> str:
        """Returns the text of one more token, in which nobody has looked for a stop string yet."""
        self.num_tokens += 1
        if token_id in self._stop_ids and self.num_tokens > self._min_tokens:
            return ""  # a token that ends the output is none of its text
        return self._feed(token_id)

    def rest(self) -> str:
        """Returns the text that was held back, once no more tokens come."""
        if self.matched_stop:
            return ""
        text = self._finish()
        checker = self._checker
        if checker is None:
            return text
        text, matched = checker.feed(text, self.num_tokens > self._min_tokens)
        self.matched_stop = matched or ""
        return text if matched else text + checker.finish()

    def _examine(self, checker: StopChecker, token_id: int) -> str:
        """Returns the text of one more token, without what a stop string cuts off and what may yet
        turn out to begin one.
        """
        text = self.spell(token_id)
        counts = self.num_tokens > self._min_tokens
        special = self._specials.get(token_id)
        if special is None:
            text, matched = checker.feed(text, counts)
        else:  # even one that ends the output: which tokens do is nothing to a stop string
            text, matched = checker.feed_special(special, counts)
        self.matched_stop = matched or ""
        return text


Output = Accepted | Piece | RelegatedAt | RestartedAt | Ended


class Generation:
    """The completions of one call. Read with `next` until `is_done`, and `close` in a `finally`.

    `renew(index)` makes a new text for a completion that the engine begins again. Without it no
    completion is begun again that has text.
    """

    def __init__(
        self,
        stream: RequestStream,
        prompt_len: int,
        texts: Sequence[Text],
        renew: Callable[[int], Text] | None = None,
    ) -> None:
        self._stream = stream
        self._texts = list(texts)
        self._renew = renew
        self.is_restarted = False
        self.promised: bool | None = None  # `on_time` of the Accepted that was handed out
        self.prompt_len = prompt_len

    @property
    def is_done(self) -> bool:
        """Returns whether every completion has ended and been handed out."""
        return self._stream.is_done

    @property
    def num_tokens(self) -> int:
        """Returns how many tokens were handed out, of all completions."""
        return sum(text.num_tokens for text in self._texts)

    def close(self, reason: FinishReason) -> None:
        """Frees what the engine still holds for the call."""
        self._stream.close(reason)

    def abandon(self, error: Exception, reason: FinishReason) -> None:
        """Does as `close`, and whoever reads gets the error."""
        self._stream.abandon(error, reason)

    async def next(self) -> list[Output]:
        """Returns all that came since the last call, in order, with the tokens of a completion in
        one piece. Waits for the first of it.

        `Accepted` comes once, whatever the number of completions. Raises EngineLost and
        GenerationFailed.
        """
        while not (outputs := self.take()):
            await self.arrival()
        return outputs

    def arrival(self) -> Awaitable[None]:
        """Returns an awaitable that is done when `take` has something to return, or to raise."""
        return self._stream.arrival()

    def take(self) -> list[Output]:
        """Returns what `next` would, without waiting, so perhaps nothing."""
        outputs: list[Output] = []
        items = self._stream.take()
        if len(items) == 1:  # by far the most frequent
            index, item = items[0]
            if type(item) is Token and (output := self._texts[index]).is_free:
                return [Piece(index, output.spell(item.id), [item])]
        if len(self._texts) == 1 and items:
            sampled = [item for _, item in items if type(item) is Token]
            if len(sampled) == len(items):
                self._spell(0, sampled, outputs)
                return outputs
        tokens: dict[int, list[Token]] = {}
        for index, item in items:
            if isinstance(item, Token):
                tokens.setdefault(index, []).append(item)
            elif isinstance(item, Finished):
                self._spell(index, tokens.pop(index, ()), outputs)
                self._end(index, item, outputs)
            elif isinstance(item, Relegated):
                outputs.append(RelegatedAt(index, item))
            elif isinstance(item, Restarted):
                self._restart(index, outputs)
            elif self.promised is None:
                self.promised = item.on_time
                outputs.append(item)
        for index, sampled in tokens.items():
            self._spell(index, sampled, outputs)
        return outputs

    def _spell(self, index: int, sampled: Sequence[Token], outputs: list[Output]) -> None:
        output = self._texts[index]
        if output.matched_stop:
            return
        text, tokens = output.take(sampled)
        if tokens:
            outputs.append(Piece(index, text, tokens))
        if output.matched_stop:
            self._stream.cancel(index, FinishReason.STOP)

    def _restart(self, index: int, outputs: list[Output]) -> None:
        self.is_restarted = True
        if self._renew is not None:
            self._texts[index] = self._renew(index)
            outputs.append(RestartedAt(index))

    def _end(self, index: int, finished: Finished, outputs: list[Output]) -> None:
        output = self._texts[index]
        if finished.reason not in (FinishReason.STOP, FinishReason.LENGTH):
            raise GenerationFailed(finished)
        if rest := output.rest():
            outputs.append(Piece(index, rest, ()))
        outputs.append(Ended(index, finished, output.matched_stop, output.num_tokens))
