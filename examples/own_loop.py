# %% Sharpness-aware training of any model in a training loop of your own
import torch
from sklearn.datasets import load_digits

from flatbayes import SAM

x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
x = x.float() / 16
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)

for _ in range(200):
    batch = torch.randint(0, 1200, (64,))

    def closure(batch=batch):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        return loss.detach()

    loss = SAM(rho=0.05)(closure, model)()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    scheduler.step()

# %% Accuracy on test digits
accuracy = (model(x[1200:]).argmax(-1) == y[1200:]).float().mean().item()
print(f"loss {loss:.3f}, test accuracy {accuracy:.3f}")
