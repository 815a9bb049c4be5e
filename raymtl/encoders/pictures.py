"""What encoders of pictures ask of their input."""

from raymtl.types import UserError


def picture_shape(
    encoder: str, input_shape: tuple[int, ...], at_least: int
) -> tuple[int, int, int]:
    """The input shape, if it is that of pictures [channels, height, width] with sides of `at_least`
    pixels.

    Raises UserError otherwise.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"encoder.name: {encoder} takes pictures [channels, height, width], got inputs of "
            f"shape {input_shape}. Use encoder.name: mlp."
        )
    channels, height, width = input_shape
    if min(height, width) < at_least:
        raise UserError(
            f"encoder.name: {encoder} takes pictures of at least {at_least} x {at_least} pixels, "
            f"got {height} x {width}. Use encoder.name: conv with fewer channels, or mlp."
        )
    return channels, height, width
