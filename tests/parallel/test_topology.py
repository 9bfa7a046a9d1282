"""Who must agree, against layouts written out by hand (ranks count tp, sp, pp, cfg, dp, fastest first)."""

import pytest

from fastcache_xdit.parallel.topology import Topology

SP2_PP2_CFG2_DP2 = dict(sequence_parallel_degree=2, pipefusion_parallel_degree=2, cfg_degree=2, data_parallel_degree=2)


@pytest.mark.parametrize(
    "rank, together, apart",
    [
        (0, (0, 1, 4, 5), (0, 1)),
        (3, (2, 3, 6, 7), (2, 3)),
        (6, (2, 3, 6, 7), (6, 7)),
        (12, (8, 9, 12, 13), (12, 13)),
    ],
)
def test_agreeing_ranks_share_stage_and_replica(rank, together, apart):
    topology = Topology(rank=rank, **SP2_PP2_CFG2_DP2)
    assert topology.world_size == 16
    assert topology.agreeing_ranks() == together
    assert topology.agreeing_ranks(cfg_agreement=False) == apart


def test_tensor_parallel_ranks_agree():
    topology = Topology(rank=5, tensor_parallel_degree=2, sequence_parallel_degree=2, data_parallel_degree=2)
    assert topology.agreeing_ranks() == (4, 5, 6, 7)


@pytest.mark.parametrize("degrees", [SP2_PP2_CFG2_DP2, {"tensor_parallel_degree": 2, "cfg_degree": 2}])
@pytest.mark.parametrize("cfg_agreement", [True, False])
def test_agreement_is_mutual_and_covers_every_rank_once(degrees, cfg_agreement):
    everyone = [Topology(rank=rank, **degrees) for rank in range(Topology(**degrees).world_size)]
    for topology in everyone:
        group = topology.agreeing_ranks(cfg_agreement)
        assert topology.rank in group
        assert all(everyone[other].agreeing_ranks(cfg_agreement) == group for other in group)


def test_stages_and_branches():
    everyone = [Topology(rank=rank, **SP2_PP2_CFG2_DP2) for rank in range(16)]
    assert [topology.stage for topology in everyone] == [0, 0, 1, 1] * 4
    assert [everyone[0].branch_of(rank) for rank in range(16)] == [0, 0, 0, 0, 1, 1, 1, 1] * 2
    assert everyone[5].stage_neighbour(1) == 7 and everyone[7].stage_neighbour(-1) == 5


@pytest.mark.parametrize("rank, shard, sequence", [(0, 0, (0, 2)), (3, 1, (1, 3)), (6, 1, (4, 6)), (9, 0, (9, 11))])
def test_shards_of_a_sequence_are_held_by_ranks_with_the_same_tensor_part(rank, shard, sequence):
    degrees = dict(tensor_parallel_degree=2, sequence_parallel_degree=2, pipefusion_parallel_degree=2, cfg_degree=2)
    topology = Topology(rank=rank, **degrees)
    assert (topology.shard, topology.sequence_ranks()) == (shard, sequence)
