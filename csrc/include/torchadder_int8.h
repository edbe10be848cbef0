/* C interface of the integer kernels: convolutions of bytes for inference, by sums of absolute
 * differences (adder layers) or of products (the layers that stay convolutions).
 *
 * Images are dense NHWC bytes, 0 .. 255. Zero padding of the real numbers is a byte here, the zero
 * point. Sums are exact in 32 bits for K = C / groups * R * S up to 2^23 differences or 2^16 products.
 * All functions return a ta_status; arguments are checked by the caller. Results are equal for every
 * instruction set and number of threads.
 */
#ifndef TORCHADDER_INT8_H
#define TORCHADDER_INT8_H

#include "torchadder.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ta_int8_kind {
  TA_INT8_ADDER = 0,       /* y = -sum |x - w|, filters 0 .. 255 with the images' zero point */
  TA_INT8_CONVOLUTION = 1  /* y = sum x w, filters -128 .. 127 */
};

struct ta_int8_problem {
  int64_t batch, in_channels, height, width;      /* N C H W */
  int64_t out_channels, kernel_h, kernel_w;       /* O R S */
  int64_t out_height, out_width;                  /* P Q */
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
};

/* What becomes of the sum y of output channel o:
 *
 *   clamp((y multiplier[o] + offset[o] + residual_multiplier residual) >> shift, low, high)
 *
 * The shift rounds down; offset holds the half that makes it round to the nearest, the zero points,
 * and bias and shift of a folded batch norm. Nothing overflows if |offset| and
 * 255 |residual_multiplier| stay below 2^61. */
struct ta_requantisation {
  const int32_t* multiplier;   /* (O) */
  const int64_t* offset;       /* (O) */
  int32_t shift;               /* 0 .. 62 */
  int32_t low, high;           /* within 0 .. 255 */
  const uint8_t* residual;     /* NHWC like the result, or null */
  int32_t residual_multiplier;
};

/* Bytes that the filters take in the order of summation. */
TA_API int64_t ta_int8_packed_size(const struct ta_int8_problem* problem);

/* Filters (O, C / groups, R, S) to that order. It depends on the layer alone: not on its kind, the
 * batch, the size of the images or the instruction set. */
TA_API void ta_int8_pack(const struct ta_int8_problem* problem, const void* w, void* packed);

/* Sums as int32, NHWC. */
TA_API int ta_int8_conv2d(const struct ta_int8_problem* problem, int kind, const uint8_t* x,
                          const void* packed, uint8_t zero_point, int32_t* y, int threads);

/* The same, requantised to bytes. */
TA_API int ta_int8_conv2d_requantised(const struct ta_int8_problem* problem, int kind,
                                      const uint8_t* x, const void* packed, uint8_t zero_point,
                                      const struct ta_requantisation* requantisation, uint8_t* y,
                                      int threads);

/* Largest bytes of windows; a pixel of the padding is none. `problem` has as many filters and groups
 * as channels, and every window holds a pixel of the image. */
TA_API int ta_int8_max_pool2d(const struct ta_int8_problem* problem, const uint8_t* x, uint8_t* y,
                              int threads);

#ifdef __cplusplus
}
#endif
#endif
