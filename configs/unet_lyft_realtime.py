# Meant for speed: as unet_lyft_lite.py, with logits at a quarter of the frame's size.
_base_ = ['unet_lyft_lite.py']

model = dict(
    decode_head=dict(
        in_channels=[24, 40, 112, 320],
        in_index=[1, 2, 3, 4],
        decoder_channels=(32, 48, 96),  # of the decoder levels, finest (stride 4) first
    )
)
