/* C interface of the integer kernels: convolutions by sums of absolute differences of bytes.
 *
 * Images are dense NHWC bytes. Zero padding of the real numbers is a byte here, the zero point of
 * input and weights (|x - w| needs one scale and one zero point for both). Sums are exact: with
 * K = C / groups * R * S up to 2^23 they fit 32 bits. All functions return a ta_status; arguments are
 * checked by the caller. Results are equal for every instruction set and number of threads.
 */
#ifndef TORCHADDER_SAD_H
#define TORCHADDER_SAD_H

#include "torchadder.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ta_sad_problem {
  int64_t batch, in_channels, height, width;      /* N C H W */
  int64_t out_channels, kernel_h, kernel_w;       /* O R S */
  int64_t out_height, out_width;                  /* P Q */
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
};

/* What becomes of the sum y = -sum |x - w| of output channel o:
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
TA_API int64_t ta_sad_packed_size(const struct ta_sad_problem* problem);

/* Filters (O, C / groups, R, S) to that order. It depends on the layer alone: not on batch, size of
 * the images or instruction set. */
TA_API void ta_sad_pack(const struct ta_sad_problem* problem, const uint8_t* w, uint8_t* packed);

/* Sums y = -sum |x - w| as int32, NHWC. */
TA_API int ta_sad_conv2d(const struct ta_sad_problem* problem, const uint8_t* x,
                         const uint8_t* packed, uint8_t zero_point, int32_t* y, int threads);

/* The same, requantised to bytes. */
TA_API int ta_sad_conv2d_requantised(const struct ta_sad_problem* problem, const uint8_t* x,
                                     const uint8_t* packed, uint8_t zero_point,
                                     const struct ta_requantisation* requantisation, uint8_t* y,
                                     int threads);

#ifdef __cplusplus
}
#endif
#endif
