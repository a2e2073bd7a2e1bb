"""The Python programs of a model card, which load an exported policy and ask it under both poles of an axis."""

import json
from dataclasses import dataclass
from textwrap import indent

from pipelines.export.prompts import CardPrompts

VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)  # values of vLLM's `max_lora_rank`, from its default up
NEW_TOKENS = 64


@dataclass(frozen=True)
class Loading:
    """How to load an exported policy. model: the folder or name of the full model. adapter: the folder of its adapter,
    None if it has none. rank: of the adapter."""

    model: str
    adapter: str | None
    rank: int | None


def transformers_program(loading: Loading, prompts: CardPrompts) -> str:
    """Return a program that asks the policy with transformers, and peft if it is an adapter."""
    model, adapter = literal(loading.model), literal(loading.adapter)
    lines = ["from peft import PeftModel"] if loading.adapter else []
    lines += ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", _prompts(prompts), ""]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({model})"]
    lines += [f'model = AutoModelForCausalLM.from_pretrained({model}, dtype="float32")']
    lines += [f"model = PeftModel.from_pretrained(model, {adapter})"] if loading.adapter else []
    return "\n".join([*lines, _ASK_TRANSFORMERS.format(add=prompts.add_special_tokens, new_tokens=NEW_TOKENS)])


_ASK_TRANSFORMERS = """\
for pole, prompt in PROMPTS.items():
    inputs = tokenizer(prompt, add_special_tokens={add}, return_tensors="pt")
    output = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens={new_tokens},
        do_sample=False,
        repetition_penalty=1.0,
    )
    answer = output[0, inputs["input_ids"].shape[1] :]
    print(f"{{pole}}: {{tokenizer.decode(answer, skip_special_tokens=True)}}")"""


def vllm_program(loading: Loading, prompts: CardPrompts) -> str:
    """Return a program that asks the policy with vLLM."""
    model, adapter = literal(loading.model), literal(loading.adapter)
    lines = ["from transformers import AutoTokenizer", "from vllm import LLM, SamplingParams"]
    lines += ["from vllm.lora.request import LoRARequest"] if loading.adapter else []
    options = f", enable_lora=True, max_lora_rank={_max_rank(loading.rank)}" if loading.adapter else ""
    main = _ASK_VLLM.format(
        model=model,
        options=options,
        add=prompts.add_special_tokens,
        new_tokens=NEW_TOKENS,
        lora=f", lora_request=LoRARequest({adapter}, 1, {adapter})" if loading.adapter else "",
    )
    return "\n".join([*lines, "", _prompts(prompts), "", 'if __name__ == "__main__":', indent(main, "    ")])


_ASK_VLLM = """\
tokenizer = AutoTokenizer.from_pretrained({model})
llm = LLM({model}, dtype="float32"{options})
prompts = [
    {{"prompt_token_ids": tokenizer(text, add_special_tokens={add})["input_ids"]}} for text in PROMPTS.values()
]
greedy = SamplingParams(temperature=0, max_tokens={new_tokens})
for pole, output in zip(PROMPTS, llm.generate(prompts, greedy{lora})):
    print(f"{{pole}}: {{output.outputs[0].text}}")"""


def _prompts(prompts: CardPrompts) -> str:
    lines = [f"    {literal(pole)}: {literal(text)}," for pole, text in prompts.texts.items()]
    return "\n".join(["PROMPTS = {", *lines, "}"])


def _max_rank(rank: int | None) -> int:
    return next((each for each in VLLM_RANKS if each >= (rank or 0)), VLLM_RANKS[-1])


def literal(text: str | None) -> str:
    """Return a text as Python writes it in double quotes; JSON's escapes are Python's, but for pairs of surrogates."""
    return json.dumps(text, ensure_ascii=False)
