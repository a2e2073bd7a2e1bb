"""Trees of three levels: a record's questions share its scenario, and the options of a question share its condition.

If the condition follows the scenario, the prompts of a record differ only near their ends. Joined, what they share is
the prefix, the rest of each prompt is a stem, and the candidates are branches of their question's stem.
"""

from collections.abc import Sequence
from dataclasses import replace

from pft_core.encoding.examples import BranchedExample, common_prefix_length


def group_questions(examples: Sequence[BranchedExample], *, max_tokens: int) -> list[list[BranchedExample]]:
    """Cut examples, in order, into groups to join: questions of one record that share at least half of each prompt.

    Less is not worth it, as stems attend more slowly than prefixes. A joined group has at most `max_tokens` tokens.
    """
    groups: list[list[BranchedExample]] = []
    for example in examples:
        if groups and _can_join([*groups[-1], example], max_tokens):
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def joined(examples: Sequence[BranchedExample]) -> BranchedExample:
    """Return one tree that holds the branches of all these two-level trees, in order; a single one is unchanged."""
    if len(examples) == 1:
        return examples[0]
    shared = _num_shared(examples)
    branches = [replace(branch, stem=stem) for stem, example in enumerate(examples) for branch in example.branches]
    stems = tuple(example.prefix_ids[shared:] for example in examples)
    return replace(examples[0], prefix_ids=examples[0].prefix_ids[:shared], branches=tuple(branches), stems=stems)


def _can_join(examples: Sequence[BranchedExample], max_tokens: int) -> bool:
    if len({example.id for example in examples}) > 1:
        return False
    longest = max(len(example.prefix_ids) for example in examples)
    return 2 * _num_shared(examples) >= longest and joined(examples).num_tokens <= max_tokens


def _num_shared(examples: Sequence[BranchedExample]) -> int:
    """Return the length of the common start of all prefixes, without the last token of any: stems are never empty."""
    prefixes = [example.prefix_ids for example in examples]
    return min(common_prefix_length(prefixes), min(map(len, prefixes)) - 1)
