/* C interface of the lp kernels: the adder operator with |x - w|^p in the place of |x - w|.
 *
 * Problems, tensors, results and return values are those of torchadder.h. p lies strictly between 1
 * and 2 (at 1 the kernels of torchadder.h serve, at 2 convolutions) and is rounded to the data's type.
 */
#ifndef TORCHADDER_LP_H
#define TORCHADDER_LP_H

#include "torchadder.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y = bias - sum |x - w|^p; bias may be null. */
TA_API int ta_adder2d_lp_forward(const struct ta_problem* problem, int dtype, double p,
                                 const void* x, const void* w, const void* bias, void* y,
                                 int threads);

/* gx = sum factor(w - x) gy with factor(d) = p |d|^(p-1) sign(d), clamped to [-1, 1] if clip. */
TA_API int ta_adder2d_lp_backward_input(const struct ta_problem* problem, int dtype, double p,
                                        int clip, const void* gy, const void* x, const void* w,
                                        void* gx, int threads);

/* gw = sum factor(x - w) gy with the same factor, never clamped. */
TA_API int ta_adder2d_lp_backward_weight(const struct ta_problem* problem, int dtype, double p,
                                         const void* gy, const void* x, const void* w, void* gw,
                                         int threads);

#ifdef __cplusplus
}
#endif
#endif
