"""Which examples are held out."""

from collections import Counter

from backend.datasets.splitting import held_out, path_of, sections_of


def test_whole_sections_are_held_out_within_the_share() -> None:
    paths = [path_of(1, {"headings": [f"Part {number // 5}"]}) for number in range(50)]
    split = held_out(paths, 0.8)
    assert sum(split) == 10
    by_section = {path: {out for other, out in zip(paths, split, strict=True) if other == path} for path in paths}
    assert all(len(kinds) == 1 for kinds in by_section.values())


def test_deeper_headings_count_where_a_section_holds_nearly_everything() -> None:
    """A manual whose title page is the heading above all else."""
    cover = [path_of(1, {"headings": ["Product", "Manual"]})] * 4
    body = [path_of(1, {"headings": ["Product", "Manual", f"Chapter {number // 10}"]}) for number in range(80)]
    split = held_out([*cover, *body], 0.8)
    assert 10 <= sum(split) <= 17


def test_small_sections_are_not_divided() -> None:
    paths = [path_of(1, {"headings": [f"A{n // 4}", "B", f"C{n}"]}) for n in range(40)]
    split = held_out(paths, 0.9)
    assert Counter(path[1] for path, out in zip(paths, split, strict=True) if out).most_common() == [
        (name, 4) for name in {path[1] for path, out in zip(paths, split, strict=True) if out}
    ]


def test_without_headings_the_last_examples_are_held_out() -> None:
    split = held_out([path_of(1, {})] * 20, 0.9)
    assert split == [False] * 18 + [True] * 2


def test_one_large_section_is_never_held_out_whole() -> None:
    paths = [path_of(1, {"headings": ["Large"]})] * 30 + [path_of(1, {"headings": ["Small"]})] * 3
    assert [path[1] for path, out in zip(paths, held_out(paths, 0.8), strict=True) if out] == ["Small"] * 3


def test_the_smallest_section_is_held_out_where_none_is_small_enough() -> None:
    sizes = {"A": 45, "B": 25, "C": 12, "D": 38}
    paths = [path_of(1, {"headings": [name]}) for name, size in sizes.items() for _ in range(size)]
    assert {path[1] for path, out in zip(paths, held_out(paths, 0.95), strict=True) if out} == {"C"}
    # However they are called: the order of their names decides among those that fit.
    for name in "EFGHIJKL":
        mixed = [path_of(1, {"headings": [name]})] * 45 + [path_of(1, {"headings": [f"s{n // 5}"]}) for n in range(55)]
        assert sum(held_out(mixed, 0.9)) == 10


def test_of_two_documents_without_headings_the_end_of_one_is_held_out() -> None:
    """Half of all examples would be too many."""
    paths = [path_of(1 + number // 60, {}) for number in range(120)]
    chunks = [number // 5 for number in range(120)]
    split = held_out(paths, 0.9, chunks=chunks)
    out = [number for number in range(120) if split[number]]
    assert len(out) in range(10, 16)
    assert out == list(range(out[0], out[0] + len(out)))
    assert out[-1] in (59, 119)
    assert out[0] % 5 == 0
    # The other document's end, when that one leaks.
    other = held_out(paths, 0.9, chunks=chunks, never={paths[out[0]]})
    assert sum(other) == len(out)
    assert not any(one and two for one, two in zip(split, other, strict=True))


def test_of_four_documents_one_is_held_out_whole() -> None:
    paths = [path_of(1 + number // 10, {}) for number in range(40)]
    split = held_out(paths, 0.9, chunks=[number // 5 for number in range(40)])
    assert sorted(Counter(path[0] for path, out in zip(paths, split, strict=True) if out).values()) == [10]


def test_one_chunk_of_each_document_is_not_divided() -> None:
    paths = [path_of(1 + number // 6, {}) for number in range(18)]
    split = held_out(paths, 0.9, chunks=[number // 6 for number in range(18)])
    assert sorted(Counter(path[0] for path, out in zip(paths, split, strict=True) if out).values()) == [6]


def test_something_is_always_left_to_train_on() -> None:
    for count in range(2, 12):
        assert 0 < sum(held_out([path_of(1, {})] * count, 0.01)) < count


def test_a_single_example_is_for_training() -> None:
    assert held_out([path_of(1, {})], 0.9) == [False]


def test_sections_that_leak_are_held_out_only_when_all_do() -> None:
    paths = [path_of(1, {"headings": [f"Part {number // 5}"]}) for number in range(50)]
    first = {path for path, out in zip(paths, held_out(paths, 0.9), strict=True) if out}
    second = {path for path, out in zip(paths, held_out(paths, 0.9, never=first), strict=True) if out}
    assert first
    assert second
    assert not first & second
    assert sum(held_out(paths, 0.9, never=set(paths))) == 5
    assert set(sections_of(paths, 0.9)) == set(paths)


def test_without_headings_whole_chunks_are_held_out() -> None:
    chunks = [number // 6 for number in range(30)]
    for share, expected in ((0.9, 6), (0.75, 6), (0.6, 12)):
        split = held_out([path_of(1, {})] * 30, share, chunks=chunks)
        assert sum(split) == expected
        sides = {chunk: {out for other, out in zip(chunks, split, strict=True) if other == chunk} for chunk in chunks}
        assert all(len(kinds) == 1 for kinds in sides.values())


def test_a_single_chunk_is_cut() -> None:
    assert held_out([path_of(1, {})] * 10, 0.9, chunks=[7] * 10) == [False] * 9 + [True]


def test_what_is_pinned_stays_and_takes_its_section_along() -> None:
    paths = [path_of(1, {"headings": [f"Part {number // 5}"]}) for number in range(60)]
    # Part 0 and 1 were there before, each with four examples; Part 1 is held out.
    pinned = [bool(number // 5) if number < 10 and number % 5 else None for number in range(60)]
    split = held_out(paths, 0.9, pinned=pinned)
    assert split[:10] == [False] * 5 + [True] * 5
    assert sum(split) <= 6
    assert held_out(paths[:1], 0.9, pinned=[True]) == [True]
