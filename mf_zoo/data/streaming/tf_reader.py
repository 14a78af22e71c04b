"""Streams that `tf.data` reads."""

from typing import Any

import numpy as np

from mf_zoo.data.epochs import batch_spec, look_ahead
from mf_zoo.data.streaming.files import Prepared
from mf_zoo.data.streaming.source import Stream

_BUFFER = 4096  # encoded images from which the next one is drawn


def tf_dataset(source: Stream, prepared: Prepared) -> Any:
    """The batches of a stream as a `tf.data.Dataset`, of which one pass is one epoch."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder, image, label = prepared.builder, prepared.image, prepared.label
    feature = builder.info.features[image]
    decoders = {image: tfds.decode.SkipDecoding()}
    index, shards = source.shard
    part = tfds.even_splits(prepared.split, shards, drop_remainder=True)[index]

    def epochs():
        yield source.epoch

    @tf.autograph.experimental.do_not_convert
    def read(epoch):
        # The graph's seed, which would else be that of `tf.random.set_seed`.
        tf.compat.v1.set_random_seed(source.order_seed())
        config = tfds.ReadConfig(
            try_autocache=False,
            skip_prefetch=True,
            shuffle_seed=epoch,
            shuffle_reshuffle_each_iteration=False,
            interleave_cycle_length=16 if source.shuffle else 1,
            enable_ordering_guard=False,
        )
        records = builder.as_dataset(
            split=part, decoders=decoders, shuffle_files=source.shuffle, read_config=config
        ).map(lambda record: (record[image], record[label]))
        if source.shuffle:
            records = records.shuffle(_BUFFER, seed=epoch, reshuffle_each_iteration=False)
        return records.enumerate().map(lambda position, record: (epoch, position, *record))

    def box(epoch, position, shape):
        return np.array(source.box(int(epoch), int(position), *shape[:2].tolist()), "int32")

    def decode(epoch, position, encoded, number):
        pixels = feature.decode_example(encoded)
        if source.crop:
            corners = tf.numpy_function(box, [epoch, position, tf.shape(pixels)], tf.int32)
            pixels = tf.image.crop_to_bounding_box(pixels, *tf.unstack(corners, 4))
            pixels = tf.image.resize(pixels, source.image_shape[:2], "bicubic", antialias=True)
            pixels = tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)
        return epoch, tf.ensure_shape(pixels, source.image_shape), tf.cast(number, tf.int64)

    def finish(index, batch):
        epoch, images, labels = batch
        if source.augment is not None:
            images, labels = tf.numpy_function(
                source.finish,
                [epoch[0], index, images, labels],
                [spec.dtype for spec in specs],
            )
        return index, epoch[0], *map(tf.ensure_shape, (images, labels), [s.shape for s in specs])

    def move_on(epoch):
        source.epoch = int(epoch) + 1

    def hand_out(index, epoch, images, labels):
        with tf.control_dependencies(
            [
                tf.cond(
                    index == len(source) - 1,
                    lambda: tf.numpy_function(move_on, [epoch], []),
                    tf.no_op,
                )
            ]
        ):
            return tf.identity(images), tf.identity(labels)

    specs = batch_spec(source, source.image_shape, "uint8")
    records = tf.data.Dataset.from_generator(
        epochs, output_signature=tf.TensorSpec((), "int64")
    ).flat_map(read)
    images = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    batches = images.batch(source.batch_size, drop_remainder=source.drop_remainder)
    finished = batches.enumerate().map(finish, num_parallel_calls=2)
    return look_ahead(finished.map(hand_out), len(source))
