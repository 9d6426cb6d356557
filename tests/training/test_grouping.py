import torch

from colbert_diffusion.training.grouping import grouped


def test_every_index_is_in_one_group_and_all_groups_but_one_are_full() -> None:
    for count, size in ((64, 8), (61, 8), (3, 8), (24, 5), (16, 1)):
        groups = grouped(torch.randn(count, 4, generator=torch.Generator().manual_seed(count)), size)
        assert sorted(i for group in groups for i in group) == list(range(count))
        assert sorted(map(len, groups), reverse=True)[:-1] == [size] * (len(groups) - 1)


def test_what_is_alike_shares_a_group() -> None:
    generator = torch.Generator().manual_seed(0)
    topic = torch.randperm(8 * 16, generator=generator) % 8
    vectors = 10 * torch.eye(8)[topic] + torch.randn(8 * 16, 8, generator=generator)
    mixed = sum(len({int(topic[i]) for i in group}) for group in grouped(vectors, 16))
    assert mixed <= 24  # 8 when none is mixed, some 56 by chance: a cut along one direction parts a few topics


def test_equal_vectors_are_grouped_all_the_same() -> None:
    assert grouped(torch.ones(4, 2), 2) == [[0, 1], [2, 3]]
