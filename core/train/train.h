// Shared by the files of training.
#ifndef MELIES_CORE_TRAIN_H
#define MELIES_CORE_TRAIN_H

#include "kernels/train.h"
#include "ops/ops.h"
#include <melies/train.h>

const train_kernels *mel_train_rows(void);
bool mel_same_shape(const mel_tensor *a, const mel_tensor *b);
// MEL_EINVAL naming both shapes where they differ, or where one is no float.
mel_status mel_need_same(
    const mel_tensor *a, const char *name_a, const mel_tensor *b, const char *name_b, const char *what, mel_error *err);
// MEL_EINVAL unless t is dense writable f32 of param's shape: what an optimiser changes.
mel_status mel_need_state(
    const mel_tensor *param, const mel_tensor *t, const char *name, const char *what, mel_error *err);

#endif
