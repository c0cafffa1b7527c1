"""Captions that are woven around a relation: the groups brought in by it, and what is tied on.

Comes in: mentions of groups, the relations to say, and a random generator for the choice of forms. Goes out: a body, as
`phrasing` has them. Which relations are said, and whether they are true, is not known here, nor is geometry.
"""

from collections.abc import Sequence
from dataclasses import replace

from kandinsky5.demo import place_words
from kandinsky5.demo.claims import Related
from kandinsky5.demo.phrasing import Body, Chooser, Mention, either, is_wide, mostly_first, one_of


def woven(mentions: Sequence[Mention], relations: Sequence[Related], rng: Chooser, *, terse: bool) -> Body:
    """The first relation brings in two groups; a second ties on another; the rest is added before or after."""
    in_order = _in_order(relations, len(mentions))
    if in_order and is_wide(rng) and rng.random() < (0.08 if len(in_order) == 2 else 0.4):
        return _row([mentions[index] for index in in_order], relations[0][1], rng)
    a, relation, b = relations[0]
    body = _pair(mentions[a], relation, mentions[b], rng, alone=len(mentions) == 2, terse=terse)
    text, several = body.text, body.several
    named = {a, b}
    for c, name, d in relations[1:]:
        text += _tied_on(mentions[c], name, mentions[d], c in named, rng, terse=terse)
        named |= {c, d}
    rest = [extra for index, extra in enumerate(mentions) if index not in named]
    rng.shuffle(rest)
    for extra in rest:
        if body.phrase and len(relations) == 1 and rng.random() < 0.35:
            text = extra.first + (", " if terse else either(rng, _BEFORE[:3], _BEFORE)) + text
            several = extra.several
        elif terse:
            text += either(rng, (", ",), (" + ", "; ")) + extra.first
        else:
            joint = either(rng, _AFTER[:5], _AFTER[5:])
            text += (joint.format(is_=extra.verb("is")) if "{" in joint else joint) + extra.first
    return replace(body, text=text, several=several)


_BEFORE = (", ", ", and ", ", with ", ", then ", "; ", ", and also ")
_AFTER = (
    *(", and ", ", plus ", ", ", ". There {is_} also ", ", and also "),
    *(
        ", as well as ",
        ", together with ",
        "; also ",
        ". Also, ",
        ", then ",
        " & ",
        ". In addition, ",
        "; and ",
    ),
    *(", with the addition of ", ". Then there {is_} ", ". Somewhere there {is_} ", ", and finally "),
)

_BETWEEN = (
    "{a}, {rel} {b}",
    "{a} ({rel} {b})",
    "{a} that {verb} {rel} {b}",
    "{a}, which {verb} {rel} {b}",
    "{a} placed {rel} {b}",
    "{a} positioned {rel} {b}",
    "{a} - {rel} {b}",
    "{a} drawn {rel} {b}",
)
_WITH_IT = ("{b} with {a} {beside}", "{b} and {a} {beside}", "{b} and, {beside}, {a}", "{b}, {beside} {a}")
_MORE_WITH_IT = (
    "{b}, and {beside} {a}",
    "{b}; {beside}, {a}",
    "{b} - {beside}, {a}",
    "{b} ({a} {beside})",
    "{b} that {has} {a} {beside}",
    "{b}; {beside} {is_} {a}",
    "{b}. {beside} {is_} {a}",
    "{b}. {beside}, {a}",
    "{b} plus {a} {beside}",
    "{b}, together with {a} {beside}",
    "{b} and then {a} {beside}",
)
_THEN_RELATED = (" and {b}, {x} {rel} {y}", " and {b}, with {x} {rel} {y}", " and {b}; {x} {verb} {rel} {y}")
_MORE_RELATED = (
    " and {b}. {x} {verb} {rel} {y}",
    " and {b} ({x} {rel} {y})",
    " and {b}: {x} {rel} {y}",
    " plus {b}, {x} {verb} {rel} {y}",
    " & {b}, {x} {rel} {y}",
    " and {b}, where {x} {verb} {rel} {y}",
    " and {b} - {x} {rel} {y}",
    ", {b}; {x} {rel} {y}",
    ". {b}. {x} {verb} {rel} {y}",
    " and {b}, but please put {x} {rel} {y}",
    " together with {b}, and {x} {verb} {rel} {y}",
)
_FIRST_AND_SECOND = (
    "{a} and {b}, the first {rel} the second",
    "{b} and {a}, the second {rel} the first",
    "{a} and {b}; the former {verb} {rel} the latter",
    "{b} and {a}; the latter {verb} {rel} the former",
    "{a} and {b}, where the first {verb} {rel} the second",
)
_STATED = ("{a} {verb} {rel} {b}",)
_MORE_STATED = (
    "{b} {has} {a} {beside}",
    "there {is_} {a} {rel} {b}",
    "{a} would be {rel} {b}",
)
_DIRECTED = (
    "place {a} {rel} {b}",
    "put {a} {rel} {b}",
    "I see {a} {rel} {b}",
    "first draw {b}, then {a} {beside}",
    "draw {b} and put {a} {beside}",
    "start with {b} and add {a} {beside}",
    "let {a} be {rel} {b}",
)
_INVERTED = ("{rel} {b} {verb} {a}", "{rel} {b} there {is_} {a}", "{rel} {b}, {a}")
_MORE_INVERTED = (
    "{rel} {b} I want {a}",
    "{rel} {b} you can see {a}",
    "{rel} {b}: {a}",
    "{rel} {b} we find {a}",
    "{rel} {b} put {a}",
)
_SIDES = (
    "the {p} shape is {a} and the {q} one is {b}",
    "the {p} thing is {a} and the {q} thing is {b}",
    "the {p} one is {a}, the {q} one {b}",
)
_ROWS = ("{order}: {all}", "{order}: {all}", "{all}, {order}", "{all} ({order})", "{order}, {all}")
_TIED_KNOWN = (". {left} {verb} {rel} {right}", "; {left} {verb} {rel} {right}", ", {left} {rel} {right}")
_MORE_KNOWN = (
    " - {left} {verb} {rel} {right}",
    ", while {left} {verb} {rel} {right}",
    ", and {left} {verb} {rel} {right}",
    " ({left} {rel} {right})",
    ", where {left} {verb} {rel} {right}",
    ". And {left} {verb} {rel} {right}",
)
_TIED_NEW = (", with {left} {rel} {right}", ", and {left} {rel} {right}", ". {rel} {right} {verb} {left}")
_MORE_NEW = (
    ", plus {left} {rel} {right}",
    "; also, {left} {rel} {right}",
    ", then {left} {rel} {right}",
    ". There {is_} also {left} {rel} {right}",
    ". {rel} {right} there {is_} {left}",
    "; {rel} {right}, {left}",
    ", as well as {left} {rel} {right}",
    ". Please add {left} {rel} {right}",
)


def _in_order(relations: Sequence[Related], count: int) -> tuple[int, ...]:
    """The groups in the order in which one relation holds from each to the next, if that is all of them."""
    a, name, b = relations[0]
    if count == 2:
        return a, b
    if len(relations) != 2 or count != 3 or relations[1][1] != name:
        return ()
    c, _, d = relations[1]
    return (a, b, d) if c == b else (c, a, b) if d == a else ()


def _row(mentions: Sequence[Mention], relation: str, rng: Chooser) -> Body:
    order = one_of(rng, place_words.ORDER_WORDS[relation])
    form = one_of(rng, _ROWS)
    firsts = [m.first for m in mentions]
    comma = one_of(rng, (", ", ", and ")) if len(firsts) > 2 else one_of(rng, (", ", " and ", ", then "))
    text = form.format(order=order, all=", ".join(firsts[:-1]) + comma + firsts[-1])
    return Body(text=text, phrase=form.startswith("{all}"), several=mentions[0].several)


def _pair(a: Mention, relation: str, b: Mention, rng: Chooser, *, alone: bool, terse: bool) -> Body:
    """Two groups brought in by "a <relation> b", in one of many forms; `alone` if there is no third."""
    between = mostly_first(rng, place_words.RELATION_WORDS[relation], 0.5)
    draw = rng.random()
    if terse or draw < (0.24 if is_wide(rng) else 0.4):
        return Body(text=f"{a.first} {between} {b.first}", phrase=True, several=a.several)
    phrase, clause, first = True, False, a
    if draw < 0.4:
        form = one_of(rng, _BETWEEN)
    elif draw < 0.64:
        form, first = either(rng, _WITH_IT, _MORE_WITH_IT), b
    elif draw < 0.72:
        form = "{a}" + either(rng, _THEN_RELATED, _MORE_RELATED)
        if is_wide(rng) and rng.random() < 0.3 and alone and not (a.several or b.several):
            form = one_of(rng, _FIRST_AND_SECOND)
            first = a if form.startswith("{a}") else b
    elif draw < 0.86:
        form, phrase, clause = either(rng, _STATED, _MORE_STATED), False, True
        if is_wide(rng) and rng.random() < 0.4:
            form, clause = one_of(rng, _DIRECTED), False
    elif draw < 0.9 and is_wide(rng) and alone and not (a.several or b.several):
        form, phrase, clause = one_of(rng, _SIDES), False, True
    else:
        form, phrase, clause = either(rng, _INVERTED, _MORE_INVERTED), False, True
    p, q = place_words.SIDE_WORDS[relation]
    text = form.format(
        a=a.first,
        b=b.first,
        x=a.again,
        y=b.again,
        rel=between,
        beside=b.it(_beside(relation, rng)) if "{beside}" in form else "",
        verb=a.some_verb(rng) if "{verb}" in form else "",
        is_=a.verb("is"),
        has="have" if b.several else "has",
        p=p,
        q=q,
    )
    return Body(text=text, phrase=phrase, several=first.several, clause=clause)


def _beside(relation: str, rng: Chooser) -> str:
    forms = place_words.RELATION_TO_IT[relation]
    return either(rng, forms[:4], forms)


def _tied_on(a: Mention, relation: str, b: Mention, a_is_known: bool, rng: Chooser, *, terse: bool) -> str:
    """A clause "a <relation> b" of which one side has been named before."""
    between = mostly_first(rng, place_words.RELATION_WORDS[relation], 0.5)
    left, right = (a.again, b.first) if a_is_known else (a.first, b.again)
    if terse:
        return f", {left} {between} {right}"
    plain = _TIED_KNOWN if a_is_known else _TIED_KNOWN + _TIED_NEW
    form = either(rng, plain, _MORE_KNOWN if a_is_known else _MORE_KNOWN + _MORE_NEW)
    return form.format(left=left, right=right, rel=between, verb=a.some_verb(rng), is_=a.verb("is"))
