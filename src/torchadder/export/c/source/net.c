/* @name@.c: @title@
 *
 * Written by torchadder @version@; see @name@.h.
 */
#include "@name@.h"

#include <stddef.h>

@kernels@

/* Tables --------------------------------------------------------------------------------------- */

@tables@

/* The net -------------------------------------------------------------------------------------- */

/* All activations; what is not needed any more makes room for what comes. */
static uint8_t activations[@NAME@_ACTIVATION_BYTES];

void @name@_set_pixels(const uint8_t *pixels) {
  uint8_t *input = @name@_input();
  for (int32_t i = @num_pixels@; i > 0; --i) {
    for (int32_t c = 0; c < @NAME@_CHANNELS; ++c) *input++ = pixel_bytes[c][*pixels++];
  }
}

uint8_t *@name@_input(void) {
  return activations + @input_offset@;
}

void @name@_run(int32_t *logits) {
@steps@
  for (int32_t i = 0; i < @NAME@_CLASSES; ++i) logits[i] = numbers[i];
}

int @name@_class(const int32_t *logits) {
  int best = 0;
  for (int i = 1; i < @NAME@_CLASSES; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}
