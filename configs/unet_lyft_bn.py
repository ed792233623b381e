# The one we recommend: batch norm, no dropout.
_base_ = ['unet_lyft.py']

norm_cfg = dict(type='BN')  # normalisation behind each convolution; None is none, as in the reference
encoder_dropout = 0.0
decoder_dropout = 0.0
learning_rate = 2e-3

model = dict(
    backbone=dict(norm_cfg=norm_cfg, dropout=encoder_dropout),
    decode_head=dict(norm_cfg=norm_cfg, dropout=decoder_dropout),
)
optim_wrapper = dict(optimizer=dict(lr=learning_rate))
