/* C interface of the sums behind PKKD's distance between two layers (arXiv 2009.13044).
 *
 * With the outputs y of the student's and of the teacher's layer, of the same shape, the two sides are
 *
 *   k = exp(clamp((y - centre[c]) rate, -limit, limit)) - 1, or y - centre[c] without a kernel,
 *
 * and likewise l for the teacher. The sums of k, l and of the products of their channels hold all that the
 * distance depends on. All functions return a ta_status; arguments are checked by the caller. Results are
 * bitwise equal for every number of threads.
 */
#ifndef TORCHADDER_PKKD_H
#define TORCHADDER_PKKD_H

#include "torchadder.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ta_pkkd_side {
  const float* output;  /* (positions, channels), contiguous: NHWC */
  const float* centre;  /* (channels) */
  float rate;           /* 1 / (2 sigma^2) */
  int has_kernel;
};

struct ta_pkkd_problem {
  int64_t positions, channels; /* channels >= 1 */
  struct ta_pkkd_side student, teacher;
  float limit; /* at most 30: sums of exp(2 limit) must stay ordinary numbers */
};

/* Over all positions: the sums of k and of l, (2, channels), then the sums of k k^T, l l^T and k l^T,
 * (3, channels, channels). Summed in float32 over at most 512 positions, then in float64. */
TA_API int ta_pkkd_sums(const struct ta_pkkd_problem* problem, double* sums, int threads);

/* The gradients of k and l are offset + matrix [k, l], with an offset of (2 channels) and a symmetric
 * matrix (2 channels, 2 channels). Through the kernel, times rate (k + 1), and less shift (channels), that
 * of k becomes the gradient of the student's output, shaped and laid out like it. rate_sums (2) is the sum
 * of gradient times (y - centre) rate log2(e) where the clamp is not reached, before the shift: of the
 * student, and of the teacher if it is wanted, else 0. */
TA_API int ta_pkkd_gradient(const struct ta_pkkd_problem* problem, const float* matrix,
                            const float* offset, const float* shift, int wants_teacher,
                            float* gradient, double* rate_sums, int threads);

#ifdef __cplusplus
}
#endif
#endif
