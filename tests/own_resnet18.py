"""As in a user's own package: He et al.'s ResNet-18 for images of 224 pixels."""

from mf_zoo import applications, chains

MFResNet18, ResNet18 = applications.register(
    applications.Architecture(
        name="ResNet18",
        title="ResNet-18",
        source="He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016",
        block=chains.BASIC,
        filters=(64, 128, 256, 512),
        blocks=(2, 2, 2, 2),
        stem=applications.Stem(64, kernel_size=7, strides=2, pooling=True),
        normalization=applications.Normalization(momentum=0.95),
        image_shape=(224, 224, 3),
        purpose="images of 224 pixels",
    )
)
