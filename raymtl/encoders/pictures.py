"""The check of the input shape that all encoders of pictures share."""

from raymtl.types import UserError


def picture_shape(
    encoder: str, input_shape: tuple[int, ...], at_least: int
) -> tuple[int, int, int]:
    """The input shape [channels, height, width], with sides of at least `at_least` pixels.

    Raises UserError for any other shape.
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
