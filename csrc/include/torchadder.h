/* C interface of the adder kernels. Plain pointers, no torch; no exception leaves it.
 *
 * Every tensor is described by element strides, so that any memory format, slice or expansion is
 * read in place. Weights are contiguous (O, C / groups, R, S). Results must be contiguous as NCHW or
 * as NHWC. All functions return 0, or TA_OUT_OF_MEMORY; arguments are checked by the caller.
 *
 * Results are bitwise equal for every number of threads.
 */
#ifndef TORCHADDER_H
#define TORCHADDER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TA_API __attribute__((visibility("default")))

/* Changes whenever a struct or a signature of this file does. */
#define TA_ABI_VERSION 1

enum ta_status { TA_OK = 0, TA_OUT_OF_MEMORY = 1 };

/* Factor of the input gradient as a function of d = w - x. */
enum ta_rule {
  TA_RULE_CLIP = 0, /* clamp(d, -1, 1) */
  TA_RULE_SIGN = 1, /* sign(d), 0 at 0 */
  TA_RULE_L2 = 2    /* d */
};

enum ta_dtype { TA_FLOAT32 = 0, TA_FLOAT64 = 1 };

struct ta_problem {
  int64_t batch, in_channels, height, width;      /* N C H W */
  int64_t out_channels, kernel_h, kernel_w;       /* O R S */
  int64_t out_height, out_width;                  /* P Q */
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
  int64_t input_strides[4];                       /* of x: n, c, h, w */
  int64_t output_strides[4];                      /* of y, or of its gradient: n, o, p, q */
  int64_t result_strides[4];                      /* of the input gradient: n, c, h, w */
};

TA_API int ta_abi_version(void);

/* Instruction set in use: "avx512", "avx2" or "portable". The environment variable
 * TORCHADDER_CPU_CAPABILITY can lower it. */
TA_API const char* ta_cpu_capability(void);

/* y = bias - sum |x - w|; bias may be null. */
TA_API int ta_adder2d_forward(const struct ta_problem* problem, int dtype, const void* x,
                              const void* w, const void* bias, void* y, int threads);

/* gx = sum factor(w - x) gy. */
TA_API int ta_adder2d_backward_input(const struct ta_problem* problem, int dtype, int rule,
                                     const void* gy, const void* x, const void* w, void* gx,
                                     int threads);

/* gw = sum sign(x - w) gy, contiguous (O, C / groups, R, S). */
TA_API int ta_adder2d_backward_weight_sign(const struct ta_problem* problem, int dtype,
                                           const void* gy, const void* x, const void* w, void* gw,
                                           int threads);

/* Additions and maxima (one each) a second that one thread does in registers: the hardware limit
 * the benchmark relates the forward to; multiply-adds likewise for the convolution. */
TA_API double ta_peak_max_add(int dtype, double seconds);
TA_API double ta_peak_multiply_add(int dtype, double seconds);

#ifdef __cplusplus
}
#endif
#endif
