"""A conversation with a policy: the axis, whether the base answers too, and what was said so far."""

import asyncio
from collections.abc import Iterable
from typing import Any

from pft_core.data import Axis
from pft_core.errors import UserError, did_you_mean
from pipelines.chat.answers import exchange_of, table_of
from pipelines.chat.lines import HELP, Asked, Command, read_line
from pipelines.console import console, printable
from pipelines.serve import CompareRequest, CompareResponse, Gateway
from pipelines.tables import print_table
from pipelines.validated_yaml import build

MAX_TOKENS = 256  # of an answer in free text
FREE_TEXT = (
    "If this policy was trained on items with options (prompt.answer={answer}), free text is outside its training: "
    "`scenario | option | option` asks what it was trained on."
)
BASE = "base"  # the name of the untrained policy in a gateway


class Conversation:
    """Answers lines one by one; each scenario stands alone, without those before it."""

    def __init__(self, gateway: Gateway, runner: asyncio.Runner):
        self._gateway, self._runner = gateway, runner
        self.policy = gateway.catalog.default.ref
        if not self.policy.space.axes:
            raise UserError("this policy has no axis whose poles could answer: give a run of `pft train`")
        self.axis = self.policy.space.axes[0]
        self.shows_base = False
        self.exchanges: list[dict[str, Any]] = []

    def hold(self, lines: Iterable[str], *, echo: bool) -> None:
        """Answer lines until /quit or the last one. echo: print each line first, for a record."""
        self._introduce()
        for line in lines:
            if echo and line.strip():
                console.print(f"> {printable(line.strip())}", highlight=False, soft_wrap=True)
            try:
                said = read_line(line)
                if said == Command("quit", ""):
                    return
                if said is not None:
                    self._answer(said) if isinstance(said, Asked) else self._obey(said)
            except UserError as error:
                console.print(f"error: {printable(str(error))}", style="red", highlight=False, soft_wrap=True)

    def _introduce(self) -> None:
        axes = "; ".join(f"{axis.name} ({_poles(axis)})" for axis in self.policy.space.axes)
        base = self.policy.weights or self.policy.base
        for text in (f"A policy on {base}. Axes: {axes}. Now: {self.axis.name}.", HELP):
            console.print(text, highlight=False, soft_wrap=True)

    def _answer(self, asked: Asked) -> None:
        if not asked.options and all(exchange["options"] for exchange in self.exchanges):
            console.print(FREE_TEXT.format(answer=self.policy.style.answer), style="yellow", soft_wrap=True)
        sides = []
        for model in (None, BASE) if self.shows_base else (None,):
            raw = {"model": model, "scenario": asked.scenario, "axis": self.axis.name, "max_tokens": MAX_TOKENS}
            body = build(CompareRequest, raw | ({"options": list(asked.options)} if asked.options else {}))
            compared: CompareResponse = self._runner.run(self._gateway.compare(body))
            sides += [compared.first, compared.second]
        self.exchanges.append(exchange_of(asked, self.axis.name, sides))
        print_table(table_of(asked, self.axis.name, sides))

    def _obey(self, command: Command) -> None:
        if command.name == "axis":
            self._change_axis(command.argument)
        elif command.name == BASE:
            self._toggle_base()
        else:
            console.print(f"/{command.name}: no such command. {HELP}", highlight=False, soft_wrap=True)

    def _change_axis(self, name: str) -> None:
        axes = {axis.name: axis for axis in self.policy.space.axes}
        if name not in axes:
            raise UserError(f"/axis {name}: no such axis.{did_you_mean(name, axes)}")
        self.axis = axes[name]
        console.print(f"axis {name}: {_poles(self.axis)}", highlight=False)

    def _toggle_base(self) -> None:
        if self.policy.weights is not None:
            raise UserError("/base: this policy was fully fine-tuned, so its base is not loaded beside it")
        self.shows_base = not self.shows_base
        console.print(f"the base model is {'shown' if self.shows_base else 'hidden'}", highlight=False)


def _poles(axis: Axis) -> str:
    return " or ".join(pole.name for pole in axis.poles)
