"""One optimizer from two: which parameters each gets, equality with each alone, schedules, state."""

import pytest
import torch
from torch import nn

from mer_r1.lab.tiny.muon import LARGEST, MuonAdamW


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
    for name, value in copies(alone).items():
        torch.testing.assert_close(copies(net)[name], value, rtol=0, atol=0)


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
