# The reference with batch norm in place of dropout; starts without weights from elsewhere.
_base_ = ['unet_lyft.py']

model = dict(
    backbone=dict(norm_cfg=dict(type='BN'), dropout=0.0),
    decode_head=dict(norm_cfg=dict(type='BN'), dropout=0.0),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
