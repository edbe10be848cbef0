/* @name@.h: @title@
 *
 * Written by torchadder @version@. Bytes of an image in, integers for each class out: no floating
 * point, no heap, no library. Not re-entrant: all memory is static.
 *
 *   int32_t logits[@NAME@_CLASSES];
 *   @name@_set_pixels(pixels);
 *   @name@_run(logits);
 *   puts(@name@_class_names[@name@_class(logits)]);
 */
#ifndef @NAME@_H
#define @NAME@_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define @NAME@_HEIGHT @height@
#define @NAME@_WIDTH @width@
#define @NAME@_CHANNELS @channels@
#define @NAME@_IMAGE_BYTES @image_bytes@
#define @NAME@_CLASSES @num_classes@

/* Static memory that the net writes: activations, one window, the numbers of one pixel. */
#define @NAME@_ACTIVATION_BYTES @arena_bytes@
#define @NAME@_RAM_BYTES @ram_bytes@
/* Constants: filters, requantisation, pixels, geometry (where pointers have 32 bits). */
#define @NAME@_TABLE_BYTES @table_bytes@

/* The image of the next run: pixels 0 .. 255, row by row, the channels of a pixel side by side. */
void @name@_set_pixels(const uint8_t *pixels);

/* For those who quantise images themselves: the @NAME@_IMAGE_BYTES bytes of the input, in the same
 * order, to be written before each run. A real number x of the normalised image is the byte
 * clamp(round(x / scale) + @zero_point@, 0, 255) with scale = @input_scale@. */
uint8_t *@name@_input(void);

/* Computes the logits from the image, which is overwritten; set it again before the next run.
 * Logits are integers; times @output_scale@ they are those of the net. */
void @name@_run(int32_t *logits);

/* The class with the largest logit, the first of equals. */
int @name@_class(const int32_t *logits);

extern const char *const @name@_class_names[@NAME@_CLASSES];

#ifdef __cplusplus
}
#endif
#endif
