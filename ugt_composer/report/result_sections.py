"""The sections of the report about results: for whom the model works, semantic IDs, single users."""

from collections.abc import Mapping, Sequence
from html import escape

from ugt_composer.report import result_figures
from ugt_composer.report.page import Cell, Plots, Section, absent, note, panels, swatch, table
from ugt_composer.report.results import RANKED_K, ByPopularity, Listed, Result, User
from ugt_composer.report.run_folder import Run
from ugt_composer.report.semantic_ids import SemanticIds
from ugt_composer.terminal import counted

BY_K = (("recall", "Found targets"), ("ndcg", "Found near the top"), ("coverage", "Items in anybody's list"))


def audience(runs: Sequence[Run], results: Mapping[int, Result], problems: Mapping[int, str], plots: Plots) -> Section:
    """
    Args:
        problems: of runs that were not evaluated: why.
    """
    title = "For whom does it work?"
    said = [_absent(runs, problems)]
    if not results:
        return Section("audience", "Audience", title, "", "".join(said))
    notes = [note(f"{runs[number].name}: {text}") for number, result in results.items() for text in result.notes]
    if len({result.data for result in results.values()}) > 1:
        notes.append(note("The runs were evaluated on different rows, so their bars and lines are not comparable."))
    models: dict[str, list[str]] = {}
    for result in results.values():
        models.setdefault(result.about, []).append(result.model)
    about = "; ".join(f"{' and '.join(names)} on {rows}" for rows, names in models.items())
    lead = f"Evaluated for this report: {escape(about)}. Error bars are 95 % intervals."
    body = ["".join(said), *notes, "<h3>By the length of the list</h3>"]
    body.append("<p class='muted'>A longer list finds more of what users took next, and shows more of the items.</p>")
    by_k = [(result_figures.by_k(runs, results, name), caption, name) for name, caption in BY_K]
    body.append(panels(plots.panel(figure, caption, f"{name}@k") for figure, caption, name in by_k if figure))
    body += [_by_history(runs, results, plots), _by_popularity(runs, results, plots)]
    return Section("audience", "Audience", title, lead, "".join(body))


def _absent(runs: Sequence[Run], problems: Mapping[int, str]) -> str:
    """Why something is not shown, once for all runs with the same reason."""
    of_reason: dict[str, list[str]] = {}
    for number, text in problems.items():
        of_reason.setdefault(text, []).append(runs[number].name)
    return "".join(absent(f"{', '.join(names)}: {text.removesuffix('.')}.") for text, names in of_reason.items())


def _by_history(runs: Sequence[Run], results: Mapping[int, Result], plots: Plots) -> str:
    figure = result_figures.by_length(runs, results)
    if figure is None:
        return absent("By history length: no row was ranked.")
    text = (
        "Users of whom little is known, on the left, are the hardest. A fall on the right can mean that histories are "
    )
    text += "longer than those that the model was trained on."
    panel = plots.panel(figure, "Recall by history length")
    return f"<h3>By what is known of the user</h3><p class='muted'>{text}</p>{panels([panel], wide=True)}"


def _by_popularity(runs: Sequence[Run], results: Mapping[int, Result], plots: Plots) -> str:
    heading = "<h3>By the popularity of the item: head and long tail</h3>"
    said = _absent(runs, {n: result.no_popularity for n, result in results.items() if result.popularity is None})
    known = [(number, result.popularity) for number, result in results.items() if result.popularity is not None]
    if not known:
        return heading + said
    number, popularity = known[-1]
    text = (
        "Items are sorted by how often they are a training target, and cut into five groups of equally many targets: "
        "group 1 has a few popular items, group 5 the long tail. A model that only knows what is popular is good on "
        "the left and finds nothing on the right. In the second figure a line above the dashed one says that the model "
        "recommends popular items even more than users take them; a line below it, that it spreads further."
    )
    parts = [
        plots.panel(result_figures.by_popularity(runs, results), "Recall by popularity of the target"),
        plots.panel(result_figures.shown_by_popularity(runs, results), "Where recommendations go"),
    ]
    summary = (
        f"<p class='muted'>{escape(runs[number].name)}, lists of {popularity.k} ({escape(popularity.source)}):</p>"
    )
    return f"{heading}<p class='muted'>{text}</p>{said}{panels(parts)}{summary}{_group_table(popularity)}"


def _group_table(popularity: ByPopularity) -> str:
    places = sum(group.shown for group in popularity.groups) or 1
    targets = sum(group.training_targets for group in popularity.groups) or 1
    items = sum(group.items for group in popularity.groups) or 1
    names = {"most popular": "1, most popular", "long tail": "5, long tail"}
    rows: list[list[Cell]] = [
        [
            names.get(group.label, group.label),
            f"{group.items:,}",
            f"{group.items / items:.1%}",
            f"{group.training_targets / targets:.1%}",
            f"{group.shown / places:.1%}",
            f"{group.targets:,}",
            "" if group.recall is None else f"{group.recall:.4f}",
            "" if group.ndcg is None else f"{group.ndcg:.4f}",
        ]
        for group in popularity.groups
        if group.items or group.targets or group.shown
    ]
    k = popularity.k
    heads = ["group", "items", "of all items", "of training targets", "of recommendations", "evaluation targets"]
    return table([*heads, f"recall@{k}", f"ndcg@{k}"], rows)


def semantic_id_section(
    runs: Sequence[Run], found: Sequence[SemanticIds], problems: Mapping[int, str], plots: Plots
) -> Section:
    title = "Are the semantic IDs good?"
    lead = (
        "An item is three ids, coarse to fine. Good IDs are <strong>unique</strong> (items that share one cannot be "
        "told apart), use their codebooks <strong>evenly</strong> (a code with too many items says little), and form a "
        "tree whose branches hold similar items."
    )
    body = [_absent(runs, problems)]
    body += [_ids(runs, ids, plots, len(found) > 1) for ids in found]
    return Section("ids", "Semantic IDs", title, lead if found else "", "".join(body))


def _ids(runs: Sequence[Run], ids: SemanticIds, plots: Plots, with_name: bool) -> str:
    quality = ids.quality
    shared = quality["collisions"]
    said = (
        f"{shared['items']:,} items share {counted(shared['ids'], 'semantic ID')}: where the model recommends one of "
        "these, all of its items are listed."
        if shared["ids"]
        else "No two items share a semantic ID."
    )
    used_by = f" Used by {', '.join(runs[number].name for number in ids.runs)}." if with_name else ""
    text = f"{ids.source}: {quality['items']:,} items. {said}{used_by}"
    rows: list[list[Cell]] = [
        [
            f"level {number}",
            f"{level['used']:,} of {level['room']:,}",
            f"{level['used'] / level['room']:.1%}",
            f"{level['entropy']:.2f} bits",
            f"{level['evenness']:.1%}",
            f"{level['largest_share']:.2%}",
            f"{prefix['used']:,}",
            f"{prefix['mean']:,.1f}",
            f"{prefix['most']:,}",
        ]
        for number, (level, prefix) in enumerate(zip(quality["levels"], quality["prefixes"], strict=True), start=1)
    ]
    heads = [
        "",
        "codes used",
        "of codebook",
        "entropy",
        "evenness",
        "largest code",
        "prefixes",
        "items each",
        "at most",
    ]
    parts = [
        plots.panel(
            result_figures.code_use(ids), "Use of codes", "flat is even; a long drop to the right means rare codes"
        ),
        plots.panel(
            result_figures.tree(ids), "The tree", "a field per prefix of levels 1 and 2, as large as it has items"
        ),
    ]
    return f"<p>{escape(text)}</p>{table(heads, rows)}{panels(parts)}"


def users(runs: Sequence[Run], results: Mapping[int, Result], seed: int) -> Section:
    title = "What does it recommend?"
    shown = next((number for number in reversed(list(results)) if results[number].users), None)
    if shown is None:
        why = next((result.no_users for result in results.values() if result.no_users), "")
        text = f"No lists of single users: {why or 'no model was evaluated for this report'}."
        return Section("users", "Users", title, "", absent(text))
    others = {  # lists of the other runs for the same rows
        number: {user.row: user for user in result.users} for number, result in results.items() if number != shown
    }
    chosen = results[shown].users
    hits = sum(user.hits > 0 for user in chosen)
    result = results[shown]
    name = f"hit_rate@{min(RANKED_K, max(result.k_values))}"
    overall = f" (of all {result.rows:,} users: {result.metrics[name]:.0%})" if name in result.metrics else ""
    lead = (
        f"{len(chosen)} users drawn at random (seed {seed}) of the evaluated ones, not chosen for their results: "
        f"<strong>{hits}</strong> of them have a hit in the list of {escape(runs[shown].name)}{overall}. What they "
        "took next is outlined, and marked green where it is recommended."
    )
    cards = "".join(_user(user, runs, shown, others) for user in chosen)
    return Section("users", "Users", title, lead, f'<div class="users">{cards}</div>')


def _user(user: User, runs: Sequence[Run], main: int, others: Mapping[int, Mapping[tuple[str, int], User]]) -> str:
    rank = next((place for place, item in enumerate(user.recommended, start=1) if item.is_target), None)
    badge = f'<span class="badge hit">hit at {rank}</span>' if rank else '<span class="badge">no hit</span>'
    earlier = f'<span class="chip muted">… {user.earlier:,} earlier</span>' if user.earlier else ""
    history = earlier + "".join(_chip(item) for item in user.history)
    lists = [(main, user), *((number, own[user.row]) for number, own in others.items() if user.row in own)]
    lists.sort(key=lambda one: one[0])
    return (
        f'<div class="user"><h3><span>{escape(user.user_id)}</span>{badge}</h3>'
        f'<h4>history, oldest first</h4><div class="chips">{history or "nothing"}</div>'
        f'<h4>took next</h4><div class="chips">{"".join(_chip(item, "chip target") for item in user.targets)}</div>'
        f'<div class="lists">{"".join(_list(runs[number].name, number, own) for number, own in lists)}</div></div>'
    )


def _list(name: str, number: int, user: User) -> str:
    items = "".join(f"<li>{_item(item)}</li>" for item in user.recommended)
    return f"<div><h4>{swatch(number)} {escape(name)}</h4><ol>{items}</ol></div>"


def _item(item: Listed) -> str:
    title = f'title="semantic ID {escape(item.semantic_id)}"'
    if item.is_target:
        return f'<span class="hit-item" {title}>✓ {escape(item.name)}</span>'
    return f"<span {title}>{escape(item.name)}</span>"


def _chip(item: Listed, kind: str = "chip") -> str:
    return f'<span class="{kind}" title="semantic ID {escape(item.semantic_id)}">{escape(item.name)}</span>'
