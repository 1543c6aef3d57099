"""One optimizer from two: which parameters each gets, equality with each alone, schedules, state."""

import pytest
import torch
from torch import nn

from mer_r1.lab.tiny.muon import LARGEST, Muon, MuonAdamW, orthogonal


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 6)
        self.inner = nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.inner(self.embed(ids)))).square().sum()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def make(net: nn.Module, rate: float = 0.01) -> MuonAdamW:
    return MuonAdamW(net.named_parameters(), adamw_lr=rate, weight_decay=0.1, muon_lr=0.02)


def descend(net: Net, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        net(torch.tensor([step % 5, 1])).backward()
        optimizer.step()


def copies(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def test_only_hidden_matrices_go_to_muon(net):
    muon, adamw = make(net).param_groups
    assert [id(p) for p in muon["params"]] == [id(net.inner.weight)]
    assert len(adamw["params"]) == 4
    wide = nn.ModuleDict({"wide": nn.Linear(LARGEST + 1, 2, bias=False), "fits": nn.Linear(LARGEST, 2, bias=False)})
    muon, adamw = make(wide).param_groups
    assert [p.shape[1] for p in muon["params"]] == [LARGEST]
    assert [p.shape[1] for p in adamw["params"]] == [LARGEST + 1]


def test_each_part_does_what_the_library_does(net):
    alone = Net()
    alone.load_state_dict(net.state_dict())
    rest = [p for name, p in alone.named_parameters() if name != "inner.weight"]
    parts = [
        torch.optim.Muon([alone.inner.weight], lr=0.02, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1),
    ]
    torch.manual_seed(1)
    gradients = {name: torch.randn_like(value) for name, value in net.named_parameters()}  # of full rank
    for model, optimizers in ((net, [make(net)]), (alone, parts)):
        for _ in range(3):
            for name, parameter in model.named_parameters():
                parameter.grad = gradients[name].clone()
            for optimizer in optimizers:
                optimizer.step()
    for name, value in copies(alone).items():  # the library's matrices go through bfloat16, of 8 bits
        torch.testing.assert_close(copies(net)[name], value, rtol=0, atol=1e-3 if name == "inner.weight" else 0)


def test_orthogonal_keeps_singular_vectors_and_levels_singular_values():
    torch.manual_seed(0)
    tall = torch.randn(2, 7, 4, dtype=torch.float64)
    left, values, right = torch.linalg.svd(tall, full_matrices=False)
    done = orthogonal(tall)
    inner = left.mT @ done @ right.mT  # diagonal, if the singular vectors are the same
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-9, rtol=0)
    level = inner.diagonal(dim1=1, dim2=2)
    assert level.min() > 0.6
    assert level.max() < 1.3
    assert values.max() / values.min() > 1.5
    torch.testing.assert_close(orthogonal(tall.mT), done.mT)


def test_processes_that_divide_the_work_step_as_one(tmp_path):
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((4, 6), (4, 6), (3, 3), (4, 6))]
    torch.multiprocessing.spawn(_divided, (start, str(tmp_path)), nprocs=2)
    alone = _stepped(start, divided=False)
    for rank in range(2):
        for found, expected in zip(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def _divided(rank, start, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(_stepped(start, divided=True), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _stepped(start, divided):
    matrices = [torch.nn.Parameter(value.clone()) for value in start]
    optimizer = Muon(matrices, lr=0.1, weight_decay=0.1, divided=divided)
    for step in range(3):
        for number, matrix in enumerate(matrices):
            matrix.grad = torch.sin(start[number] * (step + 1))
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


def test_a_schedule_reaches_both_also_after_loading(net):
    optimizer = make(net)
    optimizer.load_state_dict(optimizer.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    descend(net, optimizer)
    schedule.step()
    before = copies(net)
    descend(net, optimizer)
    for name, value in copies(net).items():
        assert torch.equal(value, before[name]), name


def test_going_on_from_a_saved_state_is_going_on(net, tmp_path):
    optimizer = make(net)
    descend(net, optimizer, 2)
    other = Net()
    other.load_state_dict(net.state_dict())
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = make(other)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    descend(net, optimizer, 3)
    descend(other, resumed, 3)
    for name, value in copies(net).items():
        torch.testing.assert_close(copies(other)[name], value, rtol=0, atol=0)


def test_a_closure_is_refused(net):
    with pytest.raises(ValueError, match="closure"):
        make(net).step(lambda: 0.0)
